"""The command line of one verb.

Decides: what an option, a value and a name are, the options that every verb takes, how a wrong command line is told.
Must not: know a verb.

Declarations are written as for `argparse` and mean the same (a test parses with both); but `argparse` costs 6 ms at
every start, a quarter of what all of ``qsupctl list`` may take.
"""

from __future__ import annotations

from types import SimpleNamespace

from qsup.ctl.words import suggestion
from qsup.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import NoReturn

STYLES = ("table", "json", "jsonl")
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_HELP_COLUMN = 28


class Options(SimpleNamespace):
    """What the command line says, each value by its name."""


class _Argument:
    __slots__ = ("action", "choices", "default", "dest", "flags", "help", "metavar", "nargs", "type")

    def __init__(
        self,
        flags: tuple[str, ...],
        *,
        action: str = "store",
        nargs: str | None = None,
        type: Callable[[str], object] = str,
        choices: Sequence[str] = (),
        default: object = None,
        dest: str = "",
        metavar: str = "",
        help: str = "",
    ) -> None:
        self.flags = flags
        self.action = action
        self.nargs = nargs
        self.type = type
        self.choices = choices
        self.default = False if action == "store_true" and default is None else default
        self.dest = dest or max(flags, key=len).lstrip("-").replace("-", "_")
        self.metavar = metavar or self.dest.upper()
        self.help = help

    @property
    def takes_value(self) -> bool:
        return self.action in ("store", "append")

    @property
    def label(self) -> str:
        """How messages and help name it."""
        flags = ", ".join(self.flags)
        if not flags.startswith("-"):
            return f"[{self.metavar}]" if self.nargs == "?" else self.metavar
        return f"{flags} {self.metavar}" if self.takes_value else flags


class Parser:
    """Parses the arguments of one verb; options may stand anywhere among the names, and behind ``--`` are names alone.

    Args:
        verb: for messages and help.
        summary: what it does, without a full stop.
        epilog: what stands below the options in the help.
    """

    def __init__(self, verb: str, summary: str = "", epilog: str = "") -> None:
        self._verb = verb
        self._summary = summary
        self._epilog = epilog
        self._names: list[_Argument] = []
        self._options: list[_Argument] = []
        self._common: list[_Argument] = []
        self._defaults: dict[str, object] = {}

    def add_argument(
        self,
        *flags: str,
        action: str = "store",
        nargs: str | None = None,
        type: Callable[[str], object] = str,
        choices: Sequence[str] = (),
        default: object = None,
        dest: str = "",
        metavar: str = "",
        help: str = "",
    ) -> None:
        """Declare an option, or a name where the only flag has no dash; a small part of `argparse`'s method.

        Args:
            action: ``store``, ``append``, ``store_true`` or ``store_false``.
            nargs: for a name: ``None`` (exactly one), ``?``, ``*`` or ``+``; the last two come last.
            type: turns the text into the value; its `ValueError` becomes a `UsageError`.
        """
        argument = _Argument(
            flags,
            action=action,
            nargs=nargs,
            type=type,
            choices=choices,
            default=default,
            dest=dest,
            metavar=metavar,
            help=help,
        )
        (self._options if flags[0].startswith("-") else self._names).append(argument)

    def set_defaults(self, **values: object) -> None:
        """Values that are there when nothing on the command line sets them. ``rest=[]`` allows ``-- ANYTHING``."""
        self._defaults |= values

    def add_common_options(self) -> None:
        """Declare what every verb takes."""
        own, self._options = self._options, []
        self.add_argument("-o", "--output", choices=STYLES, default="table", help="how to print (default: table)")
        self.add_argument("--socket", metavar="PATH", help="the daemon's socket (QSUP_SOCKET)")
        self.add_argument("--root", metavar="DIR", help="the daemon of qsupd --root DIR")
        self.add_argument("--user", action="store_true", help="your own daemon, that of qsupd --user")
        wait = "how long to wait for a daemon that goes (default: 30s)"
        self.add_argument("--daemon-timeout", type=seconds, metavar="TIME", help=wait)
        self.add_argument("-h", "--help", action="store_true", help="explain the verb")
        self._common, self._options = self._options, own

    def parse_args(self, arguments: Sequence[str]) -> Options:
        """The values by their names; `UsageError` when the arguments are not as declared.

        With ``--help`` among them, names may be missing: the caller shows the help.
        """
        arguments, behind = self._split_rest(list(arguments))
        everything = (*self._options, *self._common, *self._names)
        options = Options(**{argument.dest: argument.default for argument in everything if argument.action != "append"})
        for argument in everything:
            if argument.action == "append":
                setattr(options, argument.dest, [])
            elif argument.nargs == "*":
                setattr(options, argument.dest, argument.default or [])
        vars(options).update(self._defaults)
        names = self._take_options(arguments, options)
        if "rest" not in self._defaults:
            names += behind or []
        elif behind is not None:
            options.rest = behind
        if not getattr(options, "help", False):
            self._take_names(names, options)
        return options

    def help(self) -> str:
        """The text for ``--help``."""
        names = " ".join(_usage(argument) for argument in self._names)
        rest = " [-- ARG...]" if "rest" in self._defaults else ""
        lines = [f"usage: qsupctl {self._verb} [OPTION...] {names}".rstrip() + rest, "", f"{self._summary}."]
        for title, group in (("", self._names + self._options), ("for every verb:", self._common)):
            lines += ["", title] if title else [""]
            lines += (f"  {argument.label:<{_HELP_COLUMN}} {_explained(argument)}" for argument in group)
        if self._epilog:
            lines += ["", self._epilog]
        return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"

    def error(self, message: str) -> NoReturn:
        """Raise a `UsageError` about this verb."""
        raise UsageError(f"{self._verb}: {message}", hint=f"qsupctl {self._verb} --help explains it")

    def none_of(self, label: str, text: str, words: Sequence[str]) -> NoReturn:
        """Raise a `UsageError` about a value that must be one of some words."""
        self.error(f"{label}: {text!r} is none of {', '.join(words)}{suggestion(text, tuple(words))}")

    def _split_rest(self, arguments: list[str]) -> tuple[list[str], list[str] | None]:
        if "--" not in arguments:
            return arguments, None
        split = arguments.index("--")
        return arguments[:split], arguments[split + 1 :]

    def _take_options(self, arguments: list[str], options: Options) -> list[str]:
        """Set every option; returns the arguments that are none."""
        names = []
        left = iter(arguments)
        for text in left:
            if not _is_flag(text):
                names.append(text)
            elif text.startswith("--"):
                flag, equals, value = text.partition("=")
                self._take_option(flag, value if equals else None, left, options)
            else:
                self._take_cluster(text[1:], left, options)
        return names

    def _take_cluster(self, letters: str, left: Iterator[str], options: Options) -> None:
        """``-f``, ``-fn5``, ``-n 5``: the first flag that takes a value has the rest for it, or the next argument."""
        while letters:
            flag, letters = f"-{letters[0]}", letters[1:]
            if self._find(flag).takes_value:
                self._take_option(flag, letters or None, left, options)
                return
            self._take_option(flag, None, left, options)

    def _take_option(self, flag: str, value: str | None, left: Iterator[str], options: Options) -> None:
        argument = self._find(flag)
        if not argument.takes_value:
            if value is not None:
                self.error(f"{flag} takes no value")
            setattr(options, argument.dest, argument.action == "store_true")
            return
        if value is None and ((value := next(left, None)) is None or _is_flag(value)):
            self.error(f"{flag} needs a value: {argument.label}")
        if argument.action == "append":
            getattr(options, argument.dest).append(self._value(argument, value))
        else:
            setattr(options, argument.dest, self._value(argument, value))

    def _find(self, flag: str) -> _Argument:
        for argument in (*self._options, *self._common):
            if flag in argument.flags:
                return argument
        flags = tuple(known for argument in (*self._options, *self._common) for known in argument.flags)
        self.error(f"there is no option {flag}{suggestion(flag, flags)}")

    def _take_names(self, names: list[str], options: Options) -> None:
        for argument in self._names:
            if argument.nargs in ("*", "+"):
                taken, names = names, []
                if taken:
                    setattr(options, argument.dest, [self._value(argument, name) for name in taken])
                elif argument.nargs == "+":
                    self.error(f"{argument.metavar} is missing")
            elif names:
                setattr(options, argument.dest, self._value(argument, names.pop(0)))
            elif argument.nargs is None:
                self.error(f"{argument.metavar} is missing")
        if names:
            self.error(f"{names[0]!r} is one argument too many")

    def _value(self, argument: _Argument, text: str) -> object:
        try:
            value = argument.type(text)
        except ValueError:
            self.error(f"{argument.label}: {text!r} is not valid")
        if argument.choices and value not in argument.choices:
            self.none_of(argument.label, text, argument.choices)
        return value


def _is_flag(text: str) -> bool:
    """Whether it is an option rather than a value; ``-`` is a value, and so is a negative number."""
    return text.startswith("-") and len(text) > 1 and not text[1:].replace(".", "", 1).isdigit()


def _usage(argument: _Argument) -> str:
    many = "..." if argument.nargs in ("*", "+") else ""
    return f"[{argument.metavar}{many}]" if argument.nargs in ("?", "*") else f"{argument.metavar}{many}"


def _explained(argument: _Argument) -> str:
    if argument.choices and len(argument.choices) < 6:
        return f"{argument.help}: {', '.join(argument.choices)}"
    return argument.help


def seconds(text: str) -> float:
    """A time on the command line: ``90``, ``1.5s``, ``200ms``, ``2min``, ``1h``; `ValueError` for anything else."""
    number = text.rstrip("hmins")
    unit = _SECONDS.get(text.removeprefix(number))
    if unit is None or not 0.0 <= float(number) * unit < 1e9:
        raise ValueError(text)
    return float(number) * unit


def count(text: str) -> int:
    """A whole number on the command line, 0 or more; `ValueError` for anything else."""
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value
