"""Which VMs a command is about: names, globs, all.

Decides: what is a glob, and that one which matches nothing is an error.
Must not: judge names, but for an empty one; the daemon does.
"""

from __future__ import annotations

from qsup.api.protocol import PREFIX
from qsup.errors import NoSuchInstance, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from qsup.api.wire import Instance
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser


def is_glob(text: str) -> bool:
    """Whether it holds one of ``* ? [``, none of which a name can hold."""
    return any(sign in text for sign in "*?[")


def name_of_vm(text: str) -> str:
    """The type of every NAME; `ValueError` for an empty one, as an unset variable of a script's gives."""
    if not text:
        raise ValueError(text)
    return text


def add_name(parser: Parser) -> None:
    """Add ``NAME`` to a verb that is about one VM."""
    parser.add_argument("name", type=name_of_vm, metavar="NAME", help="the VM")


def add_names(parser: Parser, *, optional: bool = False) -> None:
    """Add ``NAME...`` (globs allowed) to a verb, and ``--all`` where at least one VM must be named."""
    meaning = "VMs; shell patterns such as 'web*' match several"
    parser.add_argument("names", nargs="*", type=name_of_vm, metavar="NAME", help=meaning)
    if not optional:
        parser.add_argument("--all", "-a", action="store_true", help="every VM")


def instances(client: Client, state: str = "") -> Iterator[Instance]:
    """Every VM that the daemon knows, or those in a state or substate."""
    return client.pages(f"{PREFIX}/instances" + (f"?state={state}" if state else ""), "instances")


def matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Whether a name is one of several names or matches one of several globs (case matters)."""
    from fnmatch import fnmatchcase

    kept = tuple(patterns)
    return lambda name: any(fnmatchcase(name, pattern) for pattern in kept)


def targets(client: Client, options: Options) -> list[str]:
    """The names that the options of `add_names` mean, each once, in the order given.

    Raises:
        UsageError: no name, or names beside ``--all``.
        NoSuchInstance: a glob matches nothing.
    """
    if options.all == bool(options.names):
        raise UsageError(
            f"{options.verb}: name the VMs, or say --all, not both" if options.all else f"{options.verb}: which VM?",
            hint=f"qsupctl {options.verb} NAME..., or --all; qsupctl list shows the names",
        )
    if options.all:
        return [instance["name"] for instance in instances(client)]
    return expand(client, options.names)


def expand(client: Client, patterns: Iterable[str]) -> list[str]:
    """Names and globs as names, each once; `NoSuchInstance` when a glob matches nothing."""
    found: dict[str, None] = {}
    known: list[str] | None = None
    for pattern in patterns:
        if not is_glob(pattern):
            found[pattern] = None
            continue
        if known is None:
            known = [instance["name"] for instance in instances(client)]
        matched = list(filter(matcher([pattern]), known))
        if not matched:
            raise NoSuchInstance(f"no VM matches {pattern!r}", hint="qsupctl list shows the names")
        found |= dict.fromkeys(matched)
    return list(found)
