"""Events, the console and VNC over a real socket."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock
from wsproto.events import BytesMessage, CloseConnection, TextMessage

import qsup
from qsup.api.protocol import EVENT_TYPES
from qsup.api.routes.events import KEEP_ALIVE
from qsup.errors import GoneError
from qsup.instance import messages
from qsup.instance.events import KEPT, OVERFLOW, EventRing
from qsup.instance.state import State
from tests.api.calling import Caller, Daemon, check_value, daemon
from tests.api.serving import PATIENCE, request
from tests.api.websockets import HANDSHAKE, upgraded
from tests.api.websockets import Caller as Socket
from tests.waiting import wait_until


class Listener:
    """A client on an endless answer."""

    def __init__(self, caller: Caller) -> None:
        self._stream = caller.client.stream
        self._data = b""

    async def read_until(self, text: bytes) -> bytes:
        """Read until ``text`` has come; what came up to its end, with HTTP's chunk lines."""
        with trio.fail_after(PATIENCE):
            while text not in self._data:
                received = await self._stream.receive_some(65536)
                assert received, f"the stream ended before {text!r}"
                self._data += received
        end = self._data.index(text) + len(text)
        piece, self._data = self._data[:end], self._data[end:]
        return piece

    async def next_event(self) -> dict[str, Any]:
        """The next event of an x-ndjson stream, of the documented shape."""
        await self.read_until(b'{"seq":')
        line = b'{"seq":' + await self.read_until(b"\n")
        event: dict[str, Any] = json.loads(line)
        check_value(event, {"$ref": "#/components/schemas/Event"})
        return event


async def listen(qsupd: Daemon, target: str, *headers: str) -> Listener:
    """Ask for an endless answer and read its head."""
    caller = await qsupd.connect()
    await caller.client.send(request(f"GET {target}", *headers))
    listener = Listener(caller)
    head = await listener.read_until(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    return listener


async def test_events_come_as_they_happen(tmp_path: Path) -> None:
    """A listener gets each event after its request as one JSON object a line."""
    async with daemon(tmp_path, "web") as qsupd:
        qsupd.backend.set_state("web", State.PAUSED)
        listener = await listen(qsupd, "/v1/events")
        qsupd.backend.set_state("web", State.RUNNING)
        event = await listener.next_event()
    assert (event["seq"], event["type"], event["instance"]) == (2, "instance-state", "web")
    assert event["data"] == {"old": "paused", "new": "running"}


async def test_since_goes_on_behind_an_event(tmp_path: Path) -> None:
    """``since`` replays what is kept, then goes on; a number that is not kept is 410 before anything is streamed."""
    async with daemon(tmp_path, "web") as qsupd:
        for state in (State.PAUSED, State.RUNNING):
            qsupd.backend.set_state("web", state)
        listener = await listen(qsupd, "/v1/events?since=1")
        qsupd.backend.set_state("web", State.PAUSED)
        numbers = [(await listener.next_event())["seq"] for _ in range(2)]
        ahead = await (await qsupd.connect()).get("/v1/events?since=99")
    assert numbers == [2, 3]
    assert (ahead.status, ahead.code) == (410, "gone")


async def test_filters_take_names_and_globs(tmp_path: Path) -> None:
    """Only events whose type and instance both match pass."""
    async with daemon(tmp_path, "db", "web-1", "web-2") as qsupd:
        listener = await listen(qsupd, "/v1/events?type=instance-*,watchdog&instance=web-*")
        publish = qsupd.backend.ring.publish
        publish("units-reloaded", None, {})
        publish("watchdog", "db", {})
        publish("watchdog", "web-1", {})
        publish("guest-reset", "web-1", {})
        publish("instance-state", "web-2", {})
        events = [await listener.next_event() for _ in range(2)]
    assert [(event["type"], event["instance"]) for event in events] == [
        ("watchdog", "web-1"),
        ("instance-state", "web-2"),
    ]


@pytest.mark.parametrize(
    ("types", "wrong"),
    [("instance-sate", "instance-sate"), ("operation,guest*,foo*", "foo*"), ("Operation", "Operation")],
)
async def test_a_type_that_can_never_match_is_refused(tmp_path: Path, types: str, wrong: str) -> None:
    """With those that there are, and a suggestion; a glob must match one, too."""
    async with daemon(tmp_path) as qsupd:
        reply = await (await qsupd.connect()).get(f"/v1/events?type={types}")
    assert (reply.status, reply.code) == (400, "bad-request")
    detail = str(reply.json()["detail"])
    assert f"query parameter 'type': {wrong!r} is none of {', '.join(EVENT_TYPES)}" in detail
    assert ("did you mean 'instance-state'?" in detail) == (wrong == "instance-sate")


def test_every_event_that_is_told_has_a_known_type() -> None:
    """The types that listeners may ask for are those that the daemon's code names."""
    told = {OVERFLOW, messages.HELPER_ENDED, messages.DEVICE_PULLED, messages.PIN_DRIFT}
    for path in Path(qsup.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            kinds = [word.value for word in node.keywords if word.arg == "type"] if called == "Told" else []
            kinds += node.args[:1] if called in ("publish", "_publish") else []
            told |= {getattr(messages, getattr(kind, "id", ""), getattr(kind, "value", "")) for kind in kinds}
    assert told - {""} == set(EVENT_TYPES)


async def test_server_sent_events_on_request(tmp_path: Path) -> None:
    """``Accept: text/event-stream`` gets id, event and data; ``Last-Event-ID`` counts as ``since``."""
    async with daemon(tmp_path, "web") as qsupd:
        for state in (State.PAUSED, State.RUNNING):
            qsupd.backend.set_state("web", state)
        listener = await listen(qsupd, "/v1/events", "Accept: text/event-stream", "Last-Event-ID: 1")
        sent = (await listener.read_until(b"\n\n")).decode()
    assert "id: 2\nevent: instance-state\ndata: {" in sent
    assert json.loads(sent.partition("data: ")[2])["seq"] == 2


@pytest.mark.parametrize(
    ("accept", "status"),
    [("application/json", 406), ("text/html, application/xml;q=0.9", 406), ("text/html, */*", 410), ("", 406)],
)
async def test_other_media_types_are_not_offered(tmp_path: Path, accept: str, status: int) -> None:
    """A client that takes neither form is told so; a wildcard takes the first."""
    async with daemon(tmp_path) as qsupd:
        reply = await (await qsupd.connect()).get("/v1/events?since=5", f"Accept: {accept}")
    assert reply.status == status


async def test_a_malformed_last_event_id_is_refused(tmp_path: Path) -> None:
    """What an EventSource sends back is a number of ours."""
    async with daemon(tmp_path) as qsupd:
        reply = await (await qsupd.connect()).get("/v1/events", "Accept: text/event-stream", "Last-Event-ID: x")
    assert (reply.status, reply.code) == (400, "bad-request")


async def test_silence_is_filled_for_server_sent_events(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A listener hears a comment now and then, and no event is lost around it."""
    async with daemon(tmp_path, "web") as qsupd:
        listener = await listen(qsupd, "/v1/events", "Accept: text/event-stream")
        began = trio.current_time()
        for _ in range(2):
            await listener.read_until(b": keep-alive\n\n")
        assert trio.current_time() - began == pytest.approx(2 * KEEP_ALIVE, rel=0.1)
        qsupd.backend.set_state("web", State.PAUSED)
        assert b"id: 1\n" in await listener.read_until(b"\n\n")


async def test_a_listener_that_was_overtaken_is_told_and_ended(tmp_path: Path) -> None:
    """``overflow`` passes every filter and is the last of the stream."""
    async with daemon(tmp_path, "web") as qsupd:
        listener = await listen(qsupd, "/v1/events?type=operation&instance=web")
        for _ in range(KEPT + 2):
            qsupd.backend.ring.publish("noise", "web", {})
        event = await listener.next_event()
        await listener.read_until(b"0\r\n\r\n")
    assert (event["type"], event["data"]) == ("overflow", {"lost": 2})


async def test_a_cancelled_wait_loses_no_event() -> None:
    """Whoever stops waiting for a while gets every event all the same."""
    ring = EventRing("life")
    listener = ring.subscribe(since=None)
    for number in range(1, 4):
        with trio.move_on_after(0) as scope:
            await anext(listener)
        assert scope.cancelled_caught
        ring.publish("tick", None, {})
        assert (await anext(listener)).seq == number


async def test_an_overtaken_listener_ends_by_itself() -> None:
    """After ``overflow`` there is nothing more, and the number to go on from is the newest."""
    ring = EventRing("life")
    listener = ring.subscribe(since=None)
    for _ in range(KEPT + 1):
        ring.publish("tick", None, {})
    assert [(record.type, record.seq) async for record in listener] == [(OVERFLOW, KEPT + 1)]
    with pytest.raises(GoneError):
        ring.subscribe(since=0)


async def received(socket: Socket, text: bytes) -> bytes:
    """Read binary messages until some text has come."""
    data = b""
    while text not in data:
        event = await socket.next()
        assert isinstance(event, BytesMessage), event
        data += event.data
    return data


async def test_a_console_shows_its_history_and_takes_input(tmp_path: Path) -> None:
    """What the guest wrote before comes first; bytes and text go to the guest."""
    async with daemon(tmp_path, "web") as qsupd:
        socket = await upgraded(qsupd.served, "/v1/instances/web/console?mode=write")
        history = await received(socket, b"login: ")
        await socket.send(BytesMessage(data=b"ro\xff"), TextMessage(data="öt\r"))
        echo = await received(socket, b"\r")
        await socket.send(CloseConnection(code=1000))
        assert await socket.close_code() == 1000
        await wait_until(lambda: not qsupd.backend.consoles["web"], "the console is given back")
    assert history == b"login: "
    assert echo == b"ro\xff" + "öt\r".encode()


async def test_many_watch_and_one_types(tmp_path: Path) -> None:
    """A second writer is refused with 409 while it is still HTTP; watchers are not, until they type."""
    async with daemon(tmp_path, "web") as qsupd:
        writer = await upgraded(qsupd.served, "/v1/instances/web/console?mode=write")
        busy = await (await qsupd.connect()).get("/v1/instances/web/console?mode=write", *HANDSHAKE)
        watcher = await upgraded(qsupd.served, "/v1/instances/web/console")
        await received(watcher, b"login: ")
        await watcher.send(BytesMessage(data=b"x"))
        event = await watcher.next()
        await watcher.send(CloseConnection(code=1011))
        await wait_until(lambda: len(qsupd.backend.consoles["web"]) == 1, "the watcher is gone")
        await received(writer, b"login: ")
    assert (busy.status, busy.code) == (409, "busy")
    assert isinstance(event, CloseConnection)
    assert (event.code, event.reason) == (1011, "this client only watches the console")


async def test_a_console_that_ends_closes_its_socket(tmp_path: Path) -> None:
    """When QEMU is gone, so is the WebSocket, in good order."""
    async with daemon(tmp_path, "web") as qsupd:
        socket = await upgraded(qsupd.served, "/v1/instances/web/console")
        await received(socket, b"login: ")
        qsupd.backend.consoles["web"][0].hang_up()
        assert await socket.close_code() == 1000


async def test_attaching_is_refused_before_the_upgrade(tmp_path: Path) -> None:
    """No VM, no console, no display, no handshake, no such mode: each is a status and a problem."""
    async with daemon(tmp_path, "web") as qsupd:
        view = qsupd.backend.views["web"]
        qsupd.backend.set_state("web", view.state, console="none", display="none")
        targets = {
            "/v1/instances/nobody/console": "no-such-instance",
            "/v1/instances/web/console": "not-allowed",
            "/v1/instances/web/vnc": "not-allowed",
            "/v1/instances/web/console?mode=type": "bad-request",
        }
        for target, code in targets.items():
            assert (await (await qsupd.connect()).get(target, *HANDSHAKE)).code == code
        plain = await (await qsupd.connect()).get("/v1/instances/web/vnc")
    assert (plain.status, plain.code) == (426, "upgrade-required")


async def test_vnc_carries_bytes_both_ways(tmp_path: Path) -> None:
    """The bytes of RFB pass as they are, in binary messages."""
    async with daemon(tmp_path, "web") as qsupd:
        socket = await upgraded(qsupd.served, "/v1/instances/web/vnc")
        greeting = await received(socket, b"\n")
        await socket.send(BytesMessage(data=b"rfb 003.008\n"))
        echo = await received(socket, b"\n")
    assert greeting == echo == b"RFB 003.008\n"


async def test_open_consoles_do_not_hold_up_the_end(tmp_path: Path) -> None:
    """When the daemon ends, consoles are closed with 1001 and given back."""
    async with daemon(tmp_path, "web") as qsupd:
        socket = await upgraded(qsupd.served, "/v1/instances/web/console?mode=write")
        await received(socket, b"login: ")
        qsupd.served.scope.cancel()
        assert await socket.close_code() == 1001
        await socket.send(CloseConnection(code=1001))
        await qsupd.served.ended.wait()
        assert not qsupd.backend.consoles["web"]
