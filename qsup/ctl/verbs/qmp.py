"""``qmp``: raw QMP commands, one from the command line or many at a prompt.

Decides: how the prompt behaves, and where its history is kept.
Must not: interpret a command or its result.
"""

from __future__ import annotations

import os
import sys

from qsup.api.protocol import EXIT_OK, instance_path
from qsup.ctl.arguments import parse_arguments, parse_line
from qsup.ctl.client import ANSWER_TIMEOUT
from qsup.ctl.completion import Completer
from qsup.ctl.failures import report
from qsup.ctl.names import add_name
from qsup.ctl.parser import seconds
from qsup.ctl.render import clean_lines, document
from qsup.errors import DaemonUnreachable, QsupError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from qsup.api.wire import QmpReply, QmpRequest
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser

EPILOG = """  qsupctl qmp web query-status
  qsupctl qmp web device_add driver=virtio-rng-pci id=rng1
  qsupctl qmp web blockdev-add '{"driver": "null-co", "node-name": "n0"}'
A dot in a key leads into a nested object. Without a command: a prompt (Tab completes, Ctrl-D ends)."""
_HISTORY_LINES = 1000


def options(parser: Parser, verb: str) -> None:
    """Declare ``qmp NAME [COMMAND [ARG...]] [--timeout TIME]``."""
    add_name(parser)
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="the QMP command")
    parser.add_argument("words", nargs="*", metavar="ARG", help="key=value, or a JSON object")
    parser.add_argument("--timeout", type=seconds, default=30.0, metavar="TIME", help="how long (default: 30s)")


def run(client: Client, options: Options) -> int:
    """Run the command, or every line of the prompt; the exit code is that of the worst."""
    if options.command is not None:
        request: QmpRequest = {"execute": options.command, "arguments": parse_arguments(options.words)}
        _show(_execute(client, options, request), options.output)
        return EXIT_OK
    worst = EXIT_OK
    for line in _prompt(client, options) if sys.stdin.isatty() else sys.stdin:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            _show(_execute(client, options, parse_line(line.strip())), options.output)
        except DaemonUnreachable:
            raise
        except QsupError as error:
            worst = max(worst, report(error))
    return worst


def _execute(client: Client, options: Options, request: QmpRequest) -> Any:
    request["timeout"] = options.timeout
    path = instance_path(options.name, "/qmp")
    reply: QmpReply = client.post(path, request, timeout=options.timeout + ANSWER_TIMEOUT)
    return reply["result"]


def _show(result: object, style: str) -> None:
    if isinstance(result, str) and style == "table":  # human-monitor-command answers with text
        sys.stdout.write(clean_lines(result if not result or result.endswith("\n") else f"{result}\n"))
    else:
        sys.stdout.write(document(result, "jsonl" if style == "jsonl" else "json"))
    sys.stdout.flush()


def _prompt(client: Client, options: Options) -> Iterator[str]:
    """The lines a person types; Ctrl-C drops a line, Ctrl-D ends."""
    completer = Completer(lambda command: _execute(client, options, {"execute": command}))
    with _LineEditor(completer):
        while True:
            try:
                yield input(f"{options.name}> ")
            except KeyboardInterrupt:
                sys.stdout.write("\n")
            except EOFError:
                sys.stdout.write("\n")
                return


class _LineEditor:
    """readline(3) with completion and a history that outlives the program; without readline, neither."""

    def __init__(self, completer: Completer) -> None:
        self._completer = completer
        self._found: list[str] = []
        state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        self._history = os.path.join(state, "qsup", "qmp_history")

    def __enter__(self) -> None:
        try:
            import readline
        except ImportError:
            return
        readline.set_completer(self._complete)
        readline.set_completer_delims(" \t\n")
        readline.parse_and_bind("tab: complete")
        readline.set_history_length(_HISTORY_LINES)
        try:
            readline.read_history_file(self._history)
        except OSError:
            pass  # no history yet, or none to be had: the prompt works without

    def __exit__(self, *exc: object) -> None:
        try:
            import readline

            os.makedirs(os.path.dirname(self._history), mode=0o700, exist_ok=True)
            readline.write_history_file(self._history)
        except (ImportError, OSError):
            pass  # a home that cannot be written to costs the history, not the command

    def _complete(self, word: str, state: int) -> str | None:
        import readline

        if state == 0:
            before = readline.get_line_buffer()[: readline.get_begidx()]
            self._found = self._completer.candidates(before, word)
        return self._found[state] if state < len(self._found) else None
