"""What a person sees of a VM and types into it: the text console, the screen, QEMU's own output.

Decides: how a console and a VNC connection travel over a WebSocket, and how output is followed.
Must not: interpret what a guest writes; it is hostile, and goes on as it is.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Generic, TypeVar

import trio

from qsup.api import jsontext, wire
from qsup.api.http import Answer, Response, Role, StreamResponse, UpgradeResponse, WebSocket, json_response
from qsup.api.protocol import NDJSON, PNG
from qsup.api.routes.endpoint import Call, Endpoint, Reply
from qsup.api.routes.instances import INSTANCE
from qsup.api.routes.parameters import choice, count, flag
from qsup.errors import BusyError, DeniedError, MonitorError, NoSuchInstance, UpgradeRequired

T = TypeVar("T")

#: Bytes of VNC taken from QEMU at once.
_CHUNK = 65536
#: Lines of output shown when the client does not say, and at most.
_LINES_DEFAULT = 200
_LINES_MAX = 1_000_000


async def _log(call: Call) -> Answer:
    name, lines = call.instance(), call.query["lines"]
    if not call.query["follow"]:
        log: wire.Log = {"lines": list(call.backend.log(name, lines))}
        return json_response(log)
    # both at one moment, so that no line is lost or doubled between them
    recent, coming = call.backend.log(name, lines), call.backend.follow_log(name)
    return StreamResponse(headers={"content-type": NDJSON}, chunks=_log_lines(recent, coming))


async def _log_lines(recent: Iterable[str], coming: AsyncIterator[str]) -> AsyncIterator[bytes]:
    try:
        if history := b"".join(map(_log_line, recent)):
            yield history
        async for line in coming:
            yield _log_line(line)
    finally:
        # a client that left while a line was on its way to it leaves a generator half-way
        if isinstance(coming, AsyncGenerator):
            await coming.aclose()


def _log_line(line: str) -> bytes:
    shape: wire.LogLine = {"line": line}
    return jsontext.dumps(shape) + b"\n"


async def _screenshot(call: Call) -> Answer:
    return Response(headers={"content-type": PNG}, body=await call.backend.screenshot(call.instance()))


class _Attachment(Generic[T]):
    """Enters a context before the handshake is answered, and keeps what it gave for the conversation after it."""

    def __init__(self, context: AbstractAsyncContextManager[T]) -> None:
        self._context = context
        self.value: T

    async def __aenter__(self) -> None:
        self.value = await self._context.__aenter__()

    async def __aexit__(self, *error: Any) -> bool | None:
        return await self._context.__aexit__(*error)


async def _console(call: Call) -> Answer:
    write = call.query["mode"] == "write"
    console = _Attachment(call.backend.console(call.instance(), write=write))

    async def talk(socket: WebSocket) -> None:
        await _pump(socket, console.value.receive, console.value.send)

    return UpgradeResponse(attach=console, handler=talk)


async def _vnc(call: Call) -> Answer:
    vnc = _Attachment(call.backend.vnc(call.instance()))

    async def talk(socket: WebSocket) -> None:
        await _pump(socket, partial(vnc.value.receive_some, _CHUNK), vnc.value.send_all)

    return UpgradeResponse(attach=vnc, handler=talk)


async def _pump(
    socket: WebSocket, receive: Callable[[], Awaitable[bytes]], send: Callable[[bytes], Awaitable[None]]
) -> None:
    """Carry bytes both ways until either side ends; text from the client counts as its UTF-8."""

    async def carry_out() -> None:
        while data := await receive():
            await socket.send_bytes(data)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(carry_out)
        while (message := await socket.receive()) is not None:
            await send(message.encode() if isinstance(message, str) else message)
        nursery.cancel_scope.cancel()


_MODE = choice("mode", "`write` types too, which one client at a time may.", "watch", "write")

ENDPOINTS = (
    Endpoint(
        id="getInstanceLog",
        method="GET",
        pattern=f"{INSTANCE}/log",
        handler=_log,
        role=Role.READ,
        summary="What QEMU itself wrote: its output and errors",
        query=(
            count("lines", "The last lines, that many.", minimum=0, maximum=_LINES_MAX, default=_LINES_DEFAULT),
            flag("follow", "Go on with every further line as it comes, over all lives of the VM, without end."),
        ),
        replies=(
            Reply(shape=wire.Log, doc="The lines, oldest first."),
            Reply(shape=wire.LogLine, media=NDJSON, many=True, doc="With `follow`: one object for each line."),
        ),
        errors=(NoSuchInstance,),
    ),
    Endpoint(
        id="getInstanceScreenshot",
        method="GET",
        pattern=f"{INSTANCE}/screenshot",
        handler=_screenshot,
        role=Role.OPERATE,
        summary="A picture of the screen",
        replies=(Reply(shape=bytes, media=PNG, doc="The picture."),),
        errors=(NoSuchInstance, DeniedError, MonitorError),
    ),
    Endpoint(
        id="attachConsole",
        method="GET",
        pattern=f"{INSTANCE}/console",
        handler=_console,
        role=Role.OPERATE,
        summary="Attach to the text console, by WebSocket",
        doc="Binary messages both ways: what the guest writes, recent history first, and what is typed. Any number may "
        "watch, one may type. A guest's reset does not end it.",
        query=(_MODE,),
        replies=(Reply(status=101, doc="Attached."),),
        errors=(NoSuchInstance, DeniedError, BusyError, UpgradeRequired),
    ),
    Endpoint(
        id="attachVnc",
        method="GET",
        pattern=f"{INSTANCE}/vnc",
        handler=_vnc,
        role=Role.OPERATE,
        summary="Connect to the screen by VNC, through a WebSocket",
        doc="Binary messages both ways hold the bytes of RFB (RFC 6143), as noVNC and websockify speak it.",
        replies=(Reply(status=101, doc="Connected."),),
        errors=(NoSuchInstance, DeniedError, UpgradeRequired),
    ),
)
