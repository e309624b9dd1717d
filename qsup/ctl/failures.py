"""How a failure ends a command: the words on standard error and the exit code.

Decides: systemctl's exit codes for every error of the tree.
Must not: print to standard output, or hold a verb's logic.
"""

from __future__ import annotations

import sys

from qsup.api.protocol import EXIT_FAILURE, EXIT_NO_SUCH_UNIT, EXIT_OK, EXIT_UNREACHABLE, EXIT_USAGE
from qsup.ctl.render import clean
from qsup.errors import DaemonUnreachable, NoSuchInstance, NoSuchUnit, QsupError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def exit_code(error: QsupError) -> int:
    """The exit code that tells an error's kind to a script."""
    if isinstance(error, NoSuchUnit | NoSuchInstance):
        return EXIT_NO_SUCH_UNIT
    if isinstance(error, DaemonUnreachable):
        return EXIT_UNREACHABLE
    return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILURE


def report(error: QsupError) -> int:
    """Say on standard error what happened and what to do next; returns the exit code.

    An error about unit files is told line by line, as a compiler would.
    """
    lines = [f"qsupctl: {clean(error)}{_error_class(error)}"]
    diagnostics = error.details.get("diagnostics")
    if isinstance(diagnostics, list) and diagnostics:
        # a line of a file says by itself whose it is
        whose = f"{error.instance}: " if error.instance else ""
        lines = [
            f"qsupctl: {clean('' if diagnostic['line'] else whose)}{clean(diagnostic_line(diagnostic))}"
            for diagnostic in diagnostics
        ]
    if error.hint:
        lines.append(f"  hint: {clean(error.hint)}")
    complain(*lines)
    return exit_code(error)


def _error_class(error: QsupError) -> str:
    """What QEMU or the guest agent calls the kind of its error, in parentheses."""
    said = error.details.get("qmp") or error.details.get("agent")
    return f" ({clean(said['class'])})" if isinstance(said, dict) and said.get("class") else ""


def complain(*lines: str) -> None:
    """Write lines to standard error, after what standard output still holds."""
    sys.stdout.flush()
    sys.stderr.write("".join(f"{line}\n" for line in lines))


def diagnostic_line(diagnostic: dict[str, object]) -> str:
    """``file:line: key: message`` of a `qsup.api.wire.DiagnosticWire`."""
    place = f"{diagnostic['file']}:{diagnostic['line']}" if diagnostic["line"] else str(diagnostic["file"])
    return ": ".join(str(part) for part in (place, diagnostic["key"], diagnostic["message"]) if part)


def for_each(names: Iterable[str], act: Callable[[str], int | None]) -> int:
    """Do something for every name; one that fails is reported and does not keep the others from their turn.

    Returns:
        The highest exit code.

    Raises:
        DaemonUnreachable: for all of them alike, so it is told once.
    """
    worst = EXIT_OK
    for name in names:
        try:
            code = act(name) or EXIT_OK
        except DaemonUnreachable:
            raise
        except QsupError as error:
            if not error.instance:
                error.instance = name
            code = report(error)
        worst = max(worst, code)
    return worst
