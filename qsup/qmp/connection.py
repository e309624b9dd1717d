"""The monitor connection: commands and their answers, events, and the end of it, on trio.

Decides: which answer belongs to which command, when what came is no longer QMP, and what a cancelled or timed-out
command leaves behind.
Must not: know what a command does, decide what an event means for a VM, or wait for anybody who consumes.

Theory of operation. One task per connection reads; it never waits for a consumer: answers wake their callers, events go
into a bounded queue. Callers write to the socket themselves, one at a time. A command's answer is awaited before its
first byte is sent. Three ends of a command that has no answer yet:

- nothing was sent: it is forgotten, and its error says ``sent: false``;
- it was sent: it will still be carried out, so its outcome is unknown; its id is remembered so that the answer counts
  against QEMU's queue until it comes, and is dropped then;
- it was sent in part: nothing sensible can follow on this connection, which is therefore given up.

QEMU stops reading from a monitor, out-of-band commands included, once its queue of eight is full; so fewer than that
are ever under way (``_LANES``), or a stuck main loop could not be told from a stuck process. QEMU keeps only the
descriptors that came last, so a command that carries some is alone in its lane.

Commands that follow from each other are sent together (`Monitor.execute_all`): to wait for each answer costs a wakeup
of either side, as long as what QEMU does for most of them.

The messages' models and protocol errors are `qemu.qmp`'s; its client is asyncio's, and not used.

Long because sending, receiving and the end share one table of calls.
"""

from __future__ import annotations

import array
import contextlib
import enum
import itertools
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, TypeAlias

import attrs
import trio
from qemu.qmp.error import ProtocolError
from qemu.qmp.message import UnexpectedTypeError
from qemu.qmp.models import ErrorInfo

from qsup.errors import (
    MonitorClosed,
    MonitorError,
    MonitorProtocolError,
    MonitorTimeout,
    QmpCommandError,
    QsupError,
    UnsupportedError,
    from_oserror,
)
from qsup.pace import Pace
from qsup.qmp.events import EventQueue, parse_event
from qsup.qmp.messages import (
    MonitorGreeting,
    describe,
    make_request,
    parse_answer,
    parse_greeting,
    refuse_anonymous_error,
)
from qsup.qmp.wire import LineSplitter, LineTooLong, decode, encode

LatencyHook: TypeAlias = Callable[[str, float], None]
_Id: TypeAlias = str | int

#: What a message may hold: one that nobody asked for, and the answer to a command that is not expected to be long. A
#: peer that never ends its line holds no more than this.
MAX_REPLY: Final = 1024 * 1024
#: What an answer may hold where nobody can say how long it is: raw commands, the human monitor, the schema.
MAX_LARGE_REPLY: Final = 64 * 1024 * 1024
# What nobody waits for is read at this pace, in bytes: to take in an event costs what some 256 bytes of it do.
_UNASKED_RATE: Final = 2 * 1024 * 1024
_UNASKED_BURST: Final = 4 * 1024 * 1024
_UNASKED_COST: Final = 256
_RECEIVE_SIZE: Final = 64 * 1024
_MESSAGES_PER_TURN: Final = 64
_MAX_WORDS: Final = 4096


class _Lane(enum.Enum):
    """Which other commands a command has to wait for."""

    PLAIN = "plain"
    WITH_FDS = "with descriptors"
    OUT_OF_BAND = "out of band"


_LANES: Final[Mapping[_Lane, int]] = {_Lane.PLAIN: 4, _Lane.WITH_FDS: 1, _Lane.OUT_OF_BAND: 2}


@attrs.frozen(kw_only=True)
class MonitorStatistics:
    """Counters since the connection began, and two gauges.

    Args:
        commands: commands sent in full.
        in_flight: of these, how many are unanswered, abandoned ones included.
        dropped_replies: answers nobody waited for (any more).
        events: events received.
        events_queued: of these, how many wait for the consumer.
        events_lost: of these, how many did not fit.
        bytes_received: everything read from the socket.
    """

    commands: int
    in_flight: int
    dropped_replies: int
    events: int
    events_queued: int
    events_lost: int
    bytes_received: int


@attrs.frozen
class Request:
    """A command that is to be sent.

    Args:
        command: QAPI's name, such as ``query-status``.
        arguments: its arguments, JSON values only.
        fds: descriptors that travel with the command (``getfd``, ``add-fd``); the caller keeps and closes his own.
        oob: send it out of band, past a busy main loop; QEMU allows that for few commands.
        max_reply: bytes of the longest answer that is still QMP, `MAX_REPLY` or more.
    """

    command: str
    arguments: Mapping[str, object] | None = None
    fds: Sequence[int] = attrs.field(default=(), kw_only=True)
    oob: bool = attrs.field(default=False, kw_only=True)
    max_reply: int = attrs.field(default=MAX_REPLY, kw_only=True)


@attrs.frozen(kw_only=True)
class Outcome:
    """What became of a command: its result, a JSON value, or why there is none."""

    result: object = None
    error: QsupError | None = None


class _Call:
    """A command under way, from before its first byte until its answer, even if nobody waits for that any more."""

    __slots__ = (
        *("abandoned", "answered", "began", "command", "done", "error", "fds", "id", "lane", "line", "max_reply"),
        *("result", "sent"),
    )

    def __init__(self, call_id: _Id, request: Request, line: bytes) -> None:
        self.id = call_id
        self.command = request.command
        self.fds = request.fds
        self.line = line
        self.lane = _Lane.OUT_OF_BAND if request.oob else _Lane.WITH_FDS if request.fds else _Lane.PLAIN
        self.max_reply = request.max_reply
        self.began = 0.0
        self.sent = False
        self.abandoned = False
        self.answered = False
        self.done = trio.Event()
        self.result: object = None
        self.error: ErrorInfo | None = None


class Monitor:
    """One QMP connection, made by `qsup.qmp.dial.connect_monitor` and handed out once it is negotiated.

    It has no task of its own but `run`, and never raises through it: when the connection ends, for whatever reason,
    `close_reason` is set, every caller gets an error and `run` returns. Long because what sends, what receives and what
    ends a connection share its calls.

    Args:
        stream: a connected, non-blocking Unix socket, which becomes the monitor's.
        name: the VM's, for errors.
        on_latency: called with a command's name and the seconds from sending to its answer.

    Attributes:
        events: what QEMU tells unasked, for one consumer.
        closing: unwound when the connection ends, for what lives no longer than it does.
    """

    def __init__(self, stream: socket.socket, *, name: str, on_latency: LatencyHook | None = None) -> None:
        self.name = name
        self.events = EventQueue()
        self.closing = contextlib.ExitStack()
        self._socket = stream
        self._on_latency = on_latency
        self._lines = LineSplitter(MAX_REPLY)
        # An answer to whoever was connected before may still come, ahead of the one to our first command, never behind
        # it: QEMU works a monitor's commands off one by one. So the first id is unique, and all others only short,
        # because QEMU reads its monitor byte by byte, at some 5 us for each.
        self._ids: Iterator[_Id] = itertools.chain([uuid.uuid4().hex], itertools.count(1))
        self._calls: dict[_Id, _Call] = {}
        self._sending = False
        self._turn = trio.lowlevel.ParkingLot()
        self._greeting: MonitorGreeting | None = None
        self._greeted = trio.Event()
        self._close_reason: MonitorError | None = None
        self._closed = trio.Event()
        self._commands = self._dropped = self._events = self._bytes = 0
        self._pace = Pace(rate=_UNASKED_RATE, burst=_UNASKED_BURST)
        self._unasked = 0

    @property
    def greeting(self) -> MonitorGreeting:
        """What QEMU said on connecting."""
        assert self._greeting is not None, "a monitor is handed out after its greeting"
        return self._greeting

    @property
    def oob(self) -> bool:
        """Whether commands can be sent out of band; what QEMU offers is always taken."""
        return "oob" in self.greeting.capabilities

    @property
    def close_reason(self) -> MonitorError | None:
        """Why the connection ended, or ``None`` while it lasts."""
        return self._close_reason

    async def wait_greeted(self) -> None:
        """Wait until QEMU has greeted or the connection has ended."""
        await self._greeted.wait()

    async def wait_closed(self) -> MonitorError:
        """Wait until the connection has ended and return why. An end is not QEMU's exit: only its pidfd tells that."""
        await self._closed.wait()
        assert self._close_reason is not None
        return self._close_reason

    def close_nowait(self) -> None:
        """End the connection now, without a word to QEMU, which may be standing still."""
        self._close(MonitorClosed("the connection was closed by the daemon", instance=self.name))

    async def aclose(self) -> None:
        """`close_nowait`, and a checkpoint."""
        self.close_nowait()
        await trio.lowlevel.checkpoint()

    def statistics(self) -> MonitorStatistics:
        """The connection's counters."""
        return MonitorStatistics(
            commands=self._commands,
            in_flight=len(self._calls),
            dropped_replies=self._dropped,
            events=self._events,
            events_queued=len(self.events),
            events_lost=self.events.lost,
            bytes_received=self._bytes,
        )

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout: float,
        fds: Sequence[int] = (),
        oob: bool = False,
        max_reply: int = MAX_REPLY,
    ) -> object:
        """Send a command and wait for its answer. Any number of tasks may do so at a time.

        Args:
            timeout: seconds for everything, the wait for a turn included.
            command, arguments, fds, oob, max_reply: see `Request`.

        Returns:
            the answer's ``return`` member, a JSON value.

        Raises:
            QmpCommandError: QEMU's own answer.
            MonitorTimeout: no answer in time; unless ``details["sent"]`` is false the command may still be carried out.
            MonitorClosed: the connection ended before; unless ``details["sent"]`` is false the outcome is unknown.
            MonitorProtocolError: what came was not QMP, or too long; the connection is given up.
            HostError: the kernel did not take it; it was not sent.
            RequestError: the arguments cannot be expressed in QMP.
            UnsupportedError: ``oob`` on a monitor without it.
        """
        request = Request(command, arguments, fds=fds, oob=oob, max_reply=max_reply)
        (outcome,) = await self.execute_all((request,), timeout=timeout)
        if outcome.error is not None:
            raise outcome.error
        return outcome.result

    async def execute_all(self, requests: Sequence[Request], *, timeout: float) -> list[Outcome]:
        """Send commands one behind the other, without waiting for the answers in between.

        QEMU carries them out in their order, whatever becomes of each. So one that depends on another must fail, or do
        no harm, where that has failed.

        Args:
            timeout: seconds for the first answer, and from each answer to the next.

        Returns:
            What became of each; an error is one that `execute` raises.

        Raises:
            RequestError, UnsupportedError: as `execute`; none was sent.
        """
        calls = [self._call(request) for request in requests]
        failure: QsupError | None = None
        with trio.CancelScope(deadline=trio.current_time() + max(timeout, 0)) as scope:
            try:
                try:
                    for number, call in enumerate(calls):
                        await self._wait_turn(call)
                        if number:  # there was room, or an answer has made some
                            scope.deadline = trio.current_time() + timeout
                        await self._send(call)
                except QsupError as error:
                    failure = error
                for call in calls:
                    if call.sent:
                        await call.done.wait()
                        scope.deadline = trio.current_time() + timeout
            except trio.Cancelled:
                for call in calls:
                    call.abandoned = not call.answered
                raise
        late = timeout if scope.cancelled_caught else None
        return [self._outcome(call, failure, late) for call in calls]

    def _call(self, request: Request) -> _Call:
        if request.oob and not self.oob:
            raise UnsupportedError("this QEMU takes no out-of-band commands", instance=self.name)
        call_id = next(self._ids)
        line = encode(make_request(request.command, request.arguments, call_id, oob=request.oob))
        return _Call(call_id, request, line)

    def _outcome(self, call: _Call, failure: QsupError | None, late: float | None) -> Outcome:
        if call.answered:
            if call.error is None:
                return Outcome(result=call.result)
            words = call.error.desc[:_MAX_WORDS]
            return Outcome(error=QmpCommandError(call.command, call.error.class_, words, instance=self.name))
        if late is not None:
            words = f"{call.command}: {'no answer' if call.sent else 'not even sent'} within {late:g} s"
            return Outcome(error=MonitorTimeout(words, instance=self.name, sent=call.sent))
        if failure is not None and not call.sent:
            return Outcome(error=failure)
        ended = self._ended(call)
        ended.__cause__ = self._close_reason
        return Outcome(error=ended)

    # Sending

    async def _wait_turn(self, call: _Call) -> None:
        while self._close_reason is None and (self._sending or self._is_full(call.lane)):
            await self._turn.park()
        if self._close_reason is not None:
            raise self._ended(call) from self._close_reason

    def _is_full(self, lane: _Lane) -> bool:
        return sum(call.lane is lane for call in self._calls.values()) >= _LANES[lane]

    async def _send(self, call: _Call) -> None:
        line, fds = call.line, call.fds
        # before the first byte: the answer may be here before this task runs again
        self._calls[call.id] = call
        call.began = trio.current_time()
        self._sending = True
        sent = 0
        try:
            sent = _write_nowait(self._socket, line, fds)
            while sent < len(line):
                await trio.lowlevel.wait_writable(self._socket)
                sent += _write_nowait(self._socket, memoryview(line)[sent:], () if sent else fds)
            call.sent = True
            self._commands += 1
        except ConnectionError as error:
            # what QEMU said before it went is still to be read, so the end is left to the reading task
            words = f"{call.command}: the connection broke: {error.strerror}"
            raise MonitorClosed(words, instance=self.name, sent=False) from error
        except OSError as error:
            raise from_oserror(error, f"could not send {call.command}", instance=self.name) from error
        except trio.ClosedResourceError:
            raise self._ended(call) from self._close_reason
        finally:
            self._sending = False
            if sent < len(line):
                self._calls.pop(call.id, None)
                if sent:
                    self._close(MonitorClosed(f"{call.command} was sent in part only", instance=self.name))
            self._pass_turn()

    def _pass_turn(self) -> None:
        if self._turn:
            self._turn.unpark_all()

    # Receiving

    async def run(self) -> None:
        """Read until the connection ends, in a nursery whose cancellation ends it."""
        try:
            while self._close_reason is None:
                await trio.lowlevel.wait_readable(self._socket)
                await self._receive()
        except ProtocolError as error:
            self._close(MonitorProtocolError(f"QEMU sent {error.error_message}", instance=self.name), cause=error)
        except OSError as error:
            self._close(MonitorClosed(f"the connection broke: {error.strerror}", instance=self.name), cause=error)
        except trio.ClosedResourceError:
            pass  # closed by another task, which has said why
        finally:
            self._close(MonitorClosed("the connection was given up by the daemon", instance=self.name))

    async def _receive(self) -> None:
        try:
            data = self._socket.recv(_RECEIVE_SIZE)
        except BlockingIOError:
            return
        if not data:
            self._close(MonitorClosed("QEMU closed its monitor", instance=self.name))
            return
        self._bytes += len(data)
        self._lines.limit = max((MAX_REPLY, *(call.max_reply for call in self._calls.values())))
        for count, line in enumerate(self._lines.feed(data), 1):
            self._dispatch(decode(line), len(line))
            if count % _MESSAGES_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
                if self._close_reason is not None:
                    return
        if self._unasked:
            unasked, self._unasked = self._unasked, 0
            await self._pace.spend(unasked)

    def _call_of(self, message: Mapping[str, object]) -> _Call | None:
        """The command under way that a message names."""
        call_id = message.get("id")
        # not isinstance: true would be 1
        return self._calls.get(call_id) if type(call_id) is str or type(call_id) is int else None

    def _dispatch(self, message: dict[str, object], size: int) -> None:
        if size > MAX_REPLY and ((call := self._call_of(message)) is None or size > call.max_reply):
            # the splitter let it pass for the sake of another command
            raise LineTooLong(f"a message of {size} bytes")
        if "event" in message:
            self._events += 1
            self._unasked += size + _UNASKED_COST
            self.events.put_nowait(parse_event(message), size)
        elif "return" in message or "error" in message:
            self._answer(message, size)
        elif self._greeting is None:
            self._greeting = parse_greeting(message)
            self._greeted.set()
        else:
            raise UnexpectedTypeError("a message that is neither an answer nor an event", describe(message))

    def _answer(self, message: dict[str, object], size: int) -> None:
        refuse_anonymous_error(message)
        call = self._call_of(message)
        if call is None or call.abandoned:
            # it was asked by a client before us, answered already, or is too late
            self._dropped += 1
            self._unasked += size + _UNASKED_COST
        if call is not None:
            # while it is still in the table: if this fails, it is one of those to be told of the connection's end
            call.result, call.error = parse_answer(message, call.command)
            del self._calls[call.id]
            call.answered = True
            call.done.set()
            self._pass_turn()
            if self._on_latency is not None and not call.abandoned:
                self._on_latency(call.command, trio.current_time() - call.began)

    # The end

    def _close(self, reason: MonitorError, *, cause: BaseException | None = None) -> None:
        if self._close_reason is not None:
            return
        # a closed connection is remembered, but what was read is not: neither in part, nor by the cause's traceback
        reason.__cause__ = cause and cause.with_traceback(None)
        self._lines = LineSplitter(0)
        self._close_reason = reason
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
        for call in self._calls.values():
            call.done.set()
        self._calls.clear()
        self.events.close(reason)
        self._greeted.set()
        self._closed.set()
        self.closing.close()
        self._pass_turn()

    def _ended(self, call: _Call) -> MonitorError:
        reason = self._close_reason
        kind = MonitorProtocolError if isinstance(reason, MonitorProtocolError) else MonitorClosed
        words = reason.message if reason is not None else "the connection is closed"
        return kind(f"{call.command}: {words}", instance=self.name, sent=call.sent)


def _write_nowait(stream: socket.socket, data: bytes | memoryview, fds: Sequence[int]) -> int:
    """Write what the socket takes, and the descriptors with its first byte; the number of bytes written."""
    try:
        if not fds:
            return stream.send(data, socket.MSG_NOSIGNAL)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        return stream.sendmsg([data], rights, socket.MSG_NOSIGNAL)
    except BlockingIOError:
        return 0
