"""qsupctl: find the verb, load it alone, run it, end with systemctl's exit code.

Decides: the verbs, the options that all of them take, and what happens to an error that nobody expected.
Must not: import anything for a verb that is not used: the time to start is promised (docs/performance.md).
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from qsup.ctl.parser import Options, Parser

#: Verb -> the module in `qsup.ctl.verbs` that carries it out, and what it does. A module has ``options(parser, verb)``,
#: which declares the verb's own options, and ``run(client, options)``, which returns the exit code.
VERBS = {
    "list": ("list", "List the VMs and their states"),
    "status": ("status", "Show VMs in detail, with their last log lines"),
    "start": ("power", "Start VMs"),
    "stop": ("power", "Shut VMs down: ask the guest, then insist"),
    "restart": ("power", "Stop and start VMs"),
    "kill": ("power", "End VMs at once, as if the power failed"),
    "pause": ("power", "Stop the virtual CPUs"),
    "resume": ("power", "Let paused VMs go on"),
    "reset": ("power", "Press the reset button"),
    "powerdown": ("power", "Press the power button; the guest decides"),
    "nmi": ("power", "Send a non-maskable interrupt"),
    "reset-failed": ("power", "Forget that VMs have failed, and how often they were restarted"),
    "list-dependencies": ("dependencies", "Show who requires and wants whom, as a tree"),
    "attach": ("attach", "Attach a disk, NIC or device to a VM that runs"),
    "detach": ("attach", "Detach one, and wait until the guest has let it go"),
    "set": ("set", "Change keys of a VM, while it runs where that is possible, and of its unit"),
    "apply": ("set", "Have a VM that runs be as its unit says, as far as that is possible"),
    "devices": ("attach", "Show every device of a VM that runs"),
    "insert": ("disk", "Put a medium into a CD drive of a VM"),
    "eject": ("disk", "Take the medium out of one"),
    "resize": ("disk", "Make a disk of a VM that runs larger"),
    "wait": ("wait", "Wait until VMs reach a state"),
    "console": ("console", "Attach the terminal to a VM's serial console (Ctrl-] detaches)"),
    "screenshot": ("screenshot", "Save a VM's screen as a PNG file"),
    "agent": ("agent", "Ask the guest agent, or run a command in the guest"),
    "logs": ("logs", "Show what QEMU wrote to its output"),
    "events": ("events", "Show what happens, as it happens"),
    "cpus": ("cpus", "Show the threads of a VM that runs, and which CPUs they run on"),
    "stats": ("stats", "Show what VMs that run use of CPUs, memory, disks and network"),
    "cmdline": ("cmdline", "Show QEMU's command line"),
    "qmp": ("qmp", "Send QMP commands to QEMU, one or at a prompt"),
    "show": ("show", "Show every key of a unit with its effective value"),
    "edit": ("edit", "Edit a unit, and apply to its VM what can be applied while it runs"),
    "cat": ("show", "Show the unit's files"),
    "verify": ("verify", "Check unit files; needs no daemon"),
    "enable": ("enable", "Start VMs when the daemon starts"),
    "disable": ("enable", "Do not start VMs when the daemon starts"),
    "diff": ("diff", "Show what a restart of running VMs would change"),
    "reload": ("reload", "Read all unit files again"),
    "operations": ("operations", "List or cancel operations"),
    "topology": ("topology", "Draw what the host is made of, how full it is, and who is pinned where"),
    "capacity": ("capacity", "Show what of the host may be promised to VMs, and what is"),
    "whoami": ("about", "Show what the daemon lets you do"),
    "health": ("about", "Show how the daemon is"),
    "version": ("about", "Show the versions of qsupctl and the daemon"),
    "help": ("help", "Explain qsupctl or one verb"),
}
DEFAULT_VERB = "list"
_OPTIONS_WITH_VALUE = ("--socket", "--root", "--output", "-o", "--daemon-timeout")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code and never raises.

    Args:
        argv: the arguments behind the program's name, by default the process's own.
    """
    _open_missing_streams()
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        from qsup.api.protocol import EXIT_INTERRUPTED

        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return _reader_left()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except Exception as error:  # the last boundary: a user sees a sentence, never a traceback
        return _report(error)


def split_verb(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The verb and all other arguments. Options that every verb takes may stand before it.

    >>> split_verb(["-o", "json", "stop", "web"])
    ('stop', ['-o', 'json', 'web'])
    """
    position = 0
    while position < len(argv) and argv[position].startswith("-"):
        position += 2 if argv[position] in _OPTIONS_WITH_VALUE else 1
    if position >= len(argv):
        return "", list(argv)
    return argv[position], [*argv[:position], *argv[position + 1 :]]


def parser_for(verb: str) -> tuple[Parser, ModuleType]:
    """The parser of one verb's command line and the module behind it, which is loaded now."""
    from qsup.ctl.parser import Parser

    module_name, summary = VERBS[verb]
    full_name = f"qsup.ctl.verbs.{module_name}"
    __import__(full_name)  # importlib is another half millisecond
    module = sys.modules[full_name]
    parser = Parser(verb, summary, getattr(module, "EPILOG", ""))
    parser.set_defaults(verb=verb)
    module.options(parser, verb)
    parser.add_common_options()
    return parser, module


def _open_missing_streams() -> None:
    """Give a caller that closed standard streams (``<&-``) the null device in their place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open("/dev/null", mode))  # noqa: SIM115  # it lives as long as the process


def _run(argv: list[str]) -> int:
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # text of the guest's may hold lone surrogates
    verb, rest = split_verb(argv)
    if not verb and any(option in rest for option in ("--help", "-h")):
        verb, rest = "help", []
    elif not verb and "--version" in rest:
        verb, rest = "version", [option for option in rest if option != "--version"]
    verb = verb or DEFAULT_VERB
    if verb not in VERBS:
        raise _unknown_verb(verb)
    parser, module = parser_for(verb)
    options = parser.parse_args(rest)
    if options.help:
        sys.stdout.write(parser.help())
        return 0
    return _carry_out(module, options)


def _carry_out(module: ModuleType, options: Options) -> int:
    import os

    from qsup.ctl.client import Client
    from qsup.ctl.connection import find_address
    from qsup.ctl.failures import complain

    address = find_address(
        socket_path=options.socket, root=options.root, user=options.user, environ=os.environ, uid=os.geteuid()
    )
    client = Client(address, tell=lambda words: complain(f"qsupctl: {words}"), returns=options.daemon_timeout)
    try:
        code: int = module.run(client, options)
    finally:
        client.close()
    return code


def _unknown_verb(verb: str) -> Exception:
    from difflib import get_close_matches

    from qsup.errors import UsageError

    near = get_close_matches(verb, VERBS, n=1)
    hint = f"did you mean qsupctl {near[0]}?" if near else "qsupctl help lists the verbs"
    return UsageError(f"there is no verb {verb!r}", hint=hint)


def _report(error: Exception) -> int:
    import os

    from qsup.ctl.failures import report
    from qsup.errors import QsupError, from_oserror

    if os.environ.get("QSUP_DEBUG"):
        import traceback

        traceback.print_exception(error)
    if isinstance(error, OSError):
        name = f" ({error.filename})" if error.filename else ""
        error = from_oserror(error, f"the operating system refused{name}")
    elif not isinstance(error, QsupError):
        error = QsupError(
            f"unexpected: {type(error).__name__}: {error}",
            hint="are qsupctl and the daemon of one version? (qsupctl version) QSUP_DEBUG=1 shows where it happened",
        )
    try:
        return report(error)
    except BrokenPipeError:
        return _reader_left()


def _reader_left() -> int:
    """Whoever read the output is gone: end as a program killed by SIGPIPE would, without a word."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + 13


if __name__ == "__main__":
    sys.exit(main())
