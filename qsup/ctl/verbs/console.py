"""``console``: the terminal becomes the VM's serial console.

Decides: what happens when the VM goes down, when somebody else types, and when standard input is no terminal.
Must not: touch the bytes.
"""

from __future__ import annotations

import sys

from qsup.api.protocol import EXIT_OK, instance_path
from qsup.ctl import websocket
from qsup.ctl.connection import Deadline
from qsup.ctl.failures import complain
from qsup.ctl.names import add_name
from qsup.ctl.parser import seconds
from qsup.ctl.render import clean
from qsup.ctl.terminal import CLOSED, DETACHED, RawTerminal, Relay
from qsup.ctl.watch import events_of
from qsup.errors import BusyError, DaemonUnreachable, DeniedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qsup.api.wire import Instance
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser

#: Seconds that a person's console waits for a daemon that went, and between two attempts.
_DAEMON_BACK, _DAEMON_STEP = 5.0, 0.2
EPILOG = """Ctrl-] detaches; the VM goes on. The console outlives resets and restarts of the VM: while
it is down, qsupctl waits, and at a terminal it waits some seconds for a daemon that is replaced. One
client types, any number watch (--watch). From a pipe, standard input is typed, then output is shown
until the VM goes down or --timeout is over."""


def options(parser: Parser, verb: str) -> None:
    """Declare ``console NAME [--watch] [--wait | --no-wait] [--timeout TIME]``."""
    add_name(parser)
    parser.add_argument("--watch", action="store_true", help="only look; somebody else may type")
    parser.add_argument("--wait", action="store_true", help="wait while the VM is down (default at a terminal)")
    parser.add_argument("--no-wait", action="store_true", help="end when the VM goes down (default from a pipe)")
    parser.add_argument("--timeout", type=seconds, metavar="TIME", help="detach after this time")


def run(client: Client, options: Options) -> int:
    """Attach until detached."""
    sys.stdout.flush()
    interactive = sys.stdin.isatty()
    if not interactive:
        return _Session(client, options, interactive=False).attach()
    session = _Session(client, options, interactive=True)
    with RawTerminal(sys.stdin.fileno()):
        code = session.attach()
    complain(f"qsupctl: detached from {options.name}")
    return code


class _Session:
    """One use of the verb: attached, waiting while the VM is down, attached again."""

    def __init__(self, client: Client, options: Options, *, interactive: bool) -> None:
        self._client = client
        self._name: str = options.name
        self._mode = "watch" if options.watch else "write"
        self._waits = options.wait or (interactive and not options.no_wait)
        self._deadline = Deadline(options.timeout)
        self._interactive = interactive
        self._was_attached = False
        self._met_daemon = False
        self._relay = Relay(interactive=interactive, typing=not options.watch)

    def attach(self) -> int:
        """Attach, again and again where that is wanted; returns the exit code."""
        while (connection := self._connect()) is not None:
            self._was_attached = True
            try:
                if self._interactive:
                    self._say("watching" if self._mode == "watch" else "attached", "Ctrl-] detaches")
                outcome = self._relay.run(connection, self._deadline)
            finally:
                connection.close()
            if outcome is CLOSED and connection.daemon_left:
                if not self._interactive:
                    raise DaemonUnreachable("the daemon ended the console", instance=self._name)
                continue
            if outcome is not CLOSED or not self._waits:
                break
            self._say("the console was closed", connection.reason or "the VM goes down")
        return EXIT_OK

    def _connect(self) -> websocket.WebSocket | None:
        """As `_await_console`; a daemon that goes while a person is attached may be changing places with the next."""
        patience: Deadline | None = None
        while True:
            try:
                return self._await_console()
            except DaemonUnreachable:
                if not (self._interactive and self._met_daemon) or (patience and patience.left() == 0.0):
                    raise
            if patience is None:
                patience = Deadline(_DAEMON_BACK)
                self._say("the daemon went away", "waiting for the next one; the VM runs on")
            if self._relay.wait(None, Deadline(_DAEMON_STEP)) is DETACHED or self._deadline.left() == 0.0:
                return None

    def _await_console(self) -> websocket.WebSocket | None:
        """The console, once there is one; ``None`` when the person or the time ended the wait."""
        # subscribed before the first attempt: a VM that comes up in between is not missed
        with events_of(self._client, self._name) as events:
            self._met_daemon = True
            told = False
            while True:
                try:
                    return websocket.connect(self._client, instance_path(self._name, f"/console?mode={self._mode}"))
                except BusyError as error:
                    error.hint = f"look on with: qsupctl console --watch {self._name}"
                    raise
                except DeniedError:
                    if not self._may_come():
                        raise
                if not told:
                    self._say("the VM is down", "waiting for it")
                    told = True
                if self._relay.wait(events.fileno(), self._deadline) is not None:
                    return None
                if events.read(self._deadline) is None:
                    raise DaemonUnreachable("the daemon ended the stream of events", instance=self._name)

    def _may_come(self) -> bool:
        """Whether a refused console is only a matter of time."""
        instance: Instance = self._client.get(instance_path(self._name))
        # behind a console that was closed, the daemon may not have seen the end of the process yet
        is_down = self._was_attached or instance["state"] != "active"
        return self._waits and is_down and instance["console"]["type"] != "none"

    def _say(self, what: str, more: str) -> None:
        # in raw mode a line feed alone does not return the carriage
        end = "\r\n" if self._interactive else "\n"
        sys.stderr.write(f"{end if self._interactive else ''}qsupctl: {clean(self._name)}: {what} ({clean(more)}){end}")
        sys.stderr.flush()
