"""A server to be abused, in a process of its own so that its memory can be measured: ``python -m tests.api.abused``.

Decides: a route of each kind that a hostile client can reach.
Must not: be kinder than the daemon: the kernel's own limits, except for the time a client has to read.
"""

from __future__ import annotations

import socket
import sys
import traceback
from collections.abc import AsyncIterator

import trio

from qsup.api.http import (
    Answer,
    Limits,
    Request,
    Role,
    Router,
    StreamResponse,
    UpgradeResponse,
    WebSocket,
    json_response,
    serve,
)
from qsup.errors import NoSuchInstance, RequestError
from qsup.unit.kinds import is_instance_name

SEND_TIMEOUT = 1.0


async def instance(request: Request) -> Answer:
    """Answer with a name that can be one."""
    name = request.params["instance"]
    if not is_instance_name(name):
        raise NoSuchInstance(f"there is no instance {name[:100]!r}")
    return json_response({"name": name})


async def resize(request: Request) -> Answer:
    """Take ``{"vcpus": 1..255}``."""
    match await request.json():
        case {"vcpus": int(vcpus), **rest} if not rest and not isinstance(vcpus, bool) and 1 <= vcpus <= 255:
            return json_response({"vcpus": vcpus})
        case _:
            raise RequestError("the body must be an object with 'vcpus', an integer from 1 to 255")


async def events(request: Request) -> Answer:
    """Stream without end."""

    async def chunks() -> AsyncIterator[bytes]:
        while True:
            yield b'{"type": "x"}\n' * 100

    return StreamResponse(chunks=chunks())


async def console(request: Request) -> Answer:
    """Upgrade, and read."""

    async def read(socket: WebSocket) -> None:
        while await socket.receive() is not None:
            pass

    return UpgradeResponse(handler=read)


async def main(path: str) -> None:
    """Serve for ever."""
    router = Router()
    router.add("GET", "/v1/instances/{instance}", instance, Role.READ)
    router.add("PUT", "/v1/instances/{instance}/cpus", resize, Role.OPERATE)
    router.add("GET", "/v1/instances/{instance}/console", console, Role.OPERATE)
    router.add("GET", "/v1/events", events, Role.READ)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(512)
        await serve(
            listener,
            router,
            limits=Limits(send_timeout=SEND_TIMEOUT),
            authorise=lambda role, request: None,
            on_bug=lambda error, request_id, where: traceback.print_exception(error),
        )


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
