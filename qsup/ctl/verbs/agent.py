"""``agent``: the guest agent, and commands in the guest.

Decides: how its answers read, and that a command's exit code becomes ours.
Must not: let a guest's output drive the terminal.
"""

from __future__ import annotations

import sys

from qsup.api.protocol import EXIT_FAILURE, EXIT_OK, instance_path
from qsup.ctl.client import ANSWER_TIMEOUT
from qsup.ctl.failures import complain
from qsup.ctl.names import add_name
from qsup.ctl.parser import seconds
from qsup.ctl.render import clean_lines, document, fields, table
from qsup.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TextIO

    from qsup.api.wire import AgentReply, AgentRequest, ExecResult
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser

COMMANDS = ("ping", "info", "addresses", "exec")
EPILOG = """  qsupctl agent web addresses
  qsupctl agent web exec -- systemctl status nginx
exec ends with the command's own exit code, or 128 + N when signal N ended it."""


def options(parser: Parser, verb: str) -> None:
    """Declare ``agent NAME ping|info|addresses|exec [--stdin] [--timeout TIME] [-- PATH ARG...]``."""
    add_name(parser)
    parser.add_argument("command", choices=COMMANDS, help="what to ask")
    parser.add_argument("words", nargs="*", metavar="ARG", help="for exec: the program in the guest and its arguments")
    parser.add_argument("--stdin", action="store_true", help="for exec: hand standard input over, read to its end")
    parser.add_argument("--timeout", type=seconds, default=30.0, metavar="TIME", help="how long (default: 30s)")
    parser.set_defaults(rest=[])


def run(client: Client, options: Options) -> int:
    """Ask, print the answer."""
    path = instance_path(options.name, "/agent")
    reply: AgentReply = client.post(path, _request(options), timeout=options.timeout + ANSWER_TIMEOUT)
    result = reply["result"]
    if options.output != "table":
        sys.stdout.write(document(result, options.output))
        return _exit_code(result) if options.command == "exec" else EXIT_OK
    if options.command == "exec":
        return _show_exec(result)
    if options.command == "addresses":
        sys.stdout.write(table(("INTERFACE", "MAC", "ADDRESSES"), [_interface(entry) for entry in result]))
    elif options.command == "info":
        commands = [entry["name"] for entry in result.get("supported_commands", []) if entry.get("enabled", True)]
        facts = [("Version", clean_lines(str(result.get("version", "unknown")))), ("Commands", ", ".join(commands))]
        sys.stdout.write(fields((label, clean_lines(text)) for label, text in facts))
    else:
        sys.stdout.write("the guest agent answers\n")
    return EXIT_OK


def _request(options: Options) -> AgentRequest:
    request: AgentRequest = {"command": options.command, "timeout": options.timeout}
    words = [*options.words, *options.rest]
    if options.command != "exec":
        if words:
            raise UsageError(f"agent: {options.command} takes no arguments")
        return request
    if not words:
        raise UsageError("agent: which program?", hint=f"qsupctl agent {options.name} exec -- PROGRAM ARG...")
    request["path"], request["arguments"] = words[0], words[1:]
    if options.stdin:
        request["input"] = sys.stdin.read()
    return request


def _show_exec(result: ExecResult) -> int:
    _pass_on(result["stdout"], result.get("stdout_base64"), sys.stdout)
    sys.stdout.flush()
    _pass_on(result["stderr"], result.get("stderr_base64"), sys.stderr)
    if result["truncated"]:
        complain("qsupctl: the output was longer than the guest agent hands over; its end is missing")
    return _exit_code(result)


def _pass_on(text: str, encoded: str | None, stream: TextIO) -> None:
    """Write what a command wrote: to a terminal what cannot drive it, to anything else every byte as it was."""
    if encoded is None or stream.isatty():
        stream.write(clean_lines(text) if stream.isatty() else text)
        return
    import base64

    stream.flush()
    stream.buffer.write(base64.b64decode(encoded))
    stream.buffer.flush()


def _exit_code(result: ExecResult) -> int:
    if result["signal"] is not None:
        return 128 + result["signal"]
    return EXIT_FAILURE if result["exit_code"] is None else result["exit_code"] & 0xFF


def _interface(entry: dict[str, Any]) -> tuple[str, str, str]:
    addresses = [f"{address['ip-address']}/{address['prefix']}" for address in entry.get("ip-addresses", [])]
    return entry["name"], entry.get("hardware-address", ""), " ".join(addresses)
