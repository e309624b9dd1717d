"""The least that h11 on trio can do: one body for all. ``python -m tests.bench.canned SOCKET FILE``

Decides: nothing. It is what the daemon's HTTP is compared with.
Must not: become any better than that.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import h11
import trio


async def answer(body: bytes, stream: trio.SocketStream) -> None:
    """Serve one connection."""
    headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
    connection = h11.Connection(h11.SERVER)
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some())
        elif isinstance(event, h11.EndOfMessage):
            parts = (h11.Response(status_code=200, headers=headers), h11.Data(data=body), h11.EndOfMessage())
            await stream.send_all(b"".join(connection.send(part) or b"" for part in parts))
            connection.start_next_cycle()
        elif isinstance(event, h11.ConnectionClosed):
            return


async def main(path: str, body: bytes) -> None:
    """Serve until killed."""
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(path)
    listener.listen()
    await trio.serve_listeners(partial(answer, body), [trio.SocketListener(listener)])


if __name__ == "__main__":
    trio.run(main, sys.argv[1], Path(sys.argv[2]).read_bytes())
