"""Hostile and careless clients against a server of its own process, whose memory is watched."""

from __future__ import annotations

import itertools
import json
import re
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from attrs import frozen

from tests.api.serving import Client, ConnectionEnded, Reply, request
from tests.waiting import wait_until

pytestmark = pytest.mark.fault

MEBIBYTE = 1 << 20
#: How much the server's peak memory may grow under any of this, in bytes.
GROWTH_MAX = 16 * MEBIBYTE
#: Seconds any one answer may take.
PATIENCE = 20.0


@frozen(kw_only=True)
class Target:
    """The server under attack."""

    path: str
    process: subprocess.Popen[bytes]
    errors: Path

    async def connect(self) -> Client:
        """A new connection."""
        return Client(await trio.open_unix_socket(self.path))

    async def get(self, path: str) -> Reply:
        """One good request on a new connection."""
        client = await self.connect()
        async with client.stream:
            return await client.get(path)

    def peak_memory(self) -> int:
        """The most memory it ever held, in bytes (proc(5): VmHWM)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
        return int(kilobytes) * 1024


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    """A server that must live to the end, say nothing, and hardly grow."""
    path, errors = tmp_path / "api.sock", tmp_path / "stderr"
    command = [sys.executable, "-m", "tests.api.abused", str(path)]
    with errors.open("wb") as stderr, subprocess.Popen(command, stderr=stderr) as process:
        try:
            yield Target(path=str(path), process=process, errors=errors)
            assert process.poll() is None
        finally:
            process.kill()
    assert errors.read_text() == ""


async def warmed_up(target: Target) -> int:
    """Wait until the server answers and has imported and allocated what it ever needs; its peak memory then."""
    await wait_until(lambda: is_listening(target.path), "the server listens", seconds=30)
    for _ in range(20):
        assert (await target.get("/v1/instances/web")).json() == {"name": "web"}
    return target.peak_memory()


def is_listening(path: str) -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(path) == 0


async def attack(target: Target, pieces: Iterator[bytes], method: str = "PUT") -> Reply | None:
    """Send pieces until they end or nobody takes them; the answer, ``None`` for a connection closed without one."""
    client = await target.connect()
    async with client.stream:
        with trio.fail_after(PATIENCE):
            try:
                for piece in pieces:
                    await client.stream.send_all(piece)
            except trio.BrokenResourceError:
                pass  # the server closed; what it said first can still be read
            try:
                return await client.reply(method)
            except (trio.BrokenResourceError, ConnectionEnded):
                return None


CPUS = "PUT /v1/instances/web/cpus"


def endless(piece: bytes, *, mebibytes: int = 100) -> Iterator[bytes]:
    """The same piece again and again, so many MiB in total."""
    return itertools.repeat(piece, mebibytes * MEBIBYTE // len(piece))


def after(head: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """A head, then pieces."""
    return itertools.chain([head], pieces)


def body(data: bytes) -> Iterator[bytes]:
    """A request with a body, in one piece."""
    return iter([request(CPUS, body=data)])


def big_chunks() -> Iterator[bytes]:
    """100 MiB in chunks of 64 KiB."""
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    return after(request(CPUS, "Transfer-Encoding: chunked"), endless(chunk))


HEAD = b"GET /v1/instances/web HTTP/1.1\r\nHost: x\r\n"
CHUNKED = request(CPUS, "Transfer-Encoding: chunked")

ATTACKS: dict[str, Callable[[], Iterator[bytes]]] = {
    "100 MB body, declared": lambda: after(request(CPUS, f"Content-Length: {100 * MEBIBYTE}"), endless(b"x" * 65536)),
    "100 MB body in chunks": big_chunks,
    "body of 1-byte chunks": lambda: after(CHUNKED, endless(b"1\r\nx\r\n" * 10000, mebibytes=8)),
    "endless chunk header": lambda: after(CHUNKED, endless(b"1;" + b"x" * 65534)),
    "endless trailer": lambda: after(CHUNKED + b"0\r\n", endless(b"x: " + b"y" * 1000 + b"\r\n")),
    "endless request line": lambda: endless(b"x" * 65536),
    "endless header line": lambda: after(HEAD + b"x-a: ", endless(b"x" * 65536)),
    "endless header lines": lambda: after(HEAD, endless(b"x-a: b\r\n" * 8192)),
    "endless blank lines": lambda: endless(b"\r\n" * 32768),
    "noise": lambda: endless(bytes(range(256)) * 256),
    "a TLS hello": lambda: iter([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)]),
    "100,000 nested arrays": lambda: body(b"[" * 100000),
    "100,000 nested objects": lambda: body(b'{"a":' * 100000 + b"1" + b"}" * 100000),
    "a million digits": lambda: body(b'{"vcpus": ' + b"9" * 1000000 + b"}"),
    "bad UTF-8": lambda: body(b'{"vcpus": "\xff\xfe"}'),
    "lone surrogate": lambda: body(b'{"vcpus": "\\ud800"}'),
    "NaN": lambda: body(b'{"vcpus": NaN}'),
    "Infinity": lambda: body(b'{"vcpus": -Infinity}'),
    "2^63": lambda: body(json.dumps({"vcpus": 2**63}).encode()),
    "-2^63": lambda: body(json.dumps({"vcpus": -(2**63)}).encode()),
    "2^64": lambda: body(json.dumps({"vcpus": 2**64}).encode()),
    "float": lambda: body(b'{"vcpus": 2.0}'),
    "string": lambda: body(b'{"vcpus": "2"}'),
    "boolean": lambda: body(b'{"vcpus": true}'),
    "null": lambda: body(b"null"),
    "array": lambda: body(b"[2]"),
    "unknown member": lambda: body(b'{"vcpus": 2, "admin": true}'),
    "member twice": lambda: body(b'{"vcpus": 2, "vcpus": 3}'),
    "empty body": lambda: iter([request(CPUS)]),
    "content length and chunks": lambda: iter(
        [request(CPUS, "Content-Length: 6", "Transfer-Encoding: chunked") + b"0\r\n\r\nGET /v1/x HTTP/1.1\r\n\r\n"]
    ),
    "two lengths": lambda: iter([request(CPUS, "Content-Length: 4", "Content-Length: 5") + b"nullx"]),
    "two codings": lambda: iter([request(CPUS, "Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n"]),
    "coding in HTTP/1.0": lambda: iter([b"PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"]),
    "signed length": lambda: iter([request(CPUS, "Content-Length: +4") + b"null"]),
    "long length": lambda: iter([request(CPUS, "Content-Length: " + "9" * 5000)]),
    "bad chunk size": lambda: iter([CHUNKED + b"-1\r\nx\r\n0\r\n\r\n"]),
    "bad chunk end": lambda: iter([CHUNKED + b"4\r\nnullXX0\r\n\r\n"]),
    "huge chunk size": lambda: iter([CHUNKED + b"f" * 100 + b"\r\nx"]),
    "space before the colon": lambda: iter([HEAD + b"content-length : 4\r\n\r\nnull"]),
    "bare line feed in a value": lambda: iter([HEAD + b"x-a: b\nc\r\n\r\n"]),
    "NUL in a header": lambda: iter([HEAD + b"x-a: b\0c\r\n\r\n"]),
    "no host": lambda: iter([b"GET / HTTP/1.1\r\n\r\n"]),
    "two hosts": lambda: iter([HEAD + b"Host: y\r\n\r\n"]),
    "version 2.0": lambda: iter([b"GET /v1/instances/web HTTP/2.0\r\nHost: x\r\n\r\n"]),
    "HTTP/2 preface": lambda: iter([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]),
    "CONNECT": lambda: iter([b"CONNECT /v1/instances/web HTTP/1.1\r\nHost: x\r\n\r\n"]),
}
"""What to send, by name; each is refused with a problem document, or the connection is closed."""


async def test_t12_malformed_requests_are_refused(target: Target) -> None:
    """Whatever is malformed, ambiguous or too large gets a problem document or is cut off; memory hardly grows."""
    before = await warmed_up(target)
    for name, pieces in ATTACKS.items():
        reply = await attack(target, pieces(), "CONNECT" if name == "CONNECT" else "PUT")
        if reply is not None:
            assert 400 <= reply.status < 500, (name, reply)
            assert reply.json()["status"] == reply.status, name
        assert (await target.get("/v1/instances/web")).status == 200, name
    growth = target.peak_memory() - before
    assert growth < GROWTH_MAX


NAMES = "..  .  %2e%2e  ..%2f..%2fetc%2fpasswd  a%2fb  %00  a%0ab  -a  a%20b  %7f  %c3%a4  @".split()


async def test_t12_impossible_names_reach_the_handler_and_no_further(target: Target) -> None:
    """A name with dots, slashes, NUL or control characters is no instance, whatever its encoding."""
    await warmed_up(target)
    for name in (*NAMES, "a" * 200):
        reply = await target.get(f"/v1/instances/{name}")
        assert (reply.status, reply.code) == (404, "no-such-instance"), name


async def test_t12_abuse_after_the_upgrade_is_bounded(target: Target) -> None:
    """Endless frames, fragments and messages end the connection; memory hardly grows."""
    before = await warmed_up(target)
    handshake = request(
        "GET /v1/instances/web/console",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    )
    mask = b"\0" * 4
    for first in (
        b"\x82\xff" + (1 << 62).to_bytes(8, "big") + mask,
        b"\x02\x81" + mask + b"x",
        b"\x01\xfe\xff\xff" + mask,
    ):
        rest = b"\x00\x81" + mask + b"x" if first[1] == 0x81 else b"x"
        client = await target.connect()
        async with client.stream:
            with trio.fail_after(PATIENCE):
                for piece in after(handshake + first, endless(rest * (65536 // len(rest)), mebibytes=10)):
                    try:
                        await client.stream.send_all(piece)
                    except trio.BrokenResourceError:
                        break
                else:
                    raise AssertionError("everything was taken")
        assert (await target.get("/v1/instances/web")).status == 200
    assert target.peak_memory() - before < GROWTH_MAX


async def test_t13_idle_connections_and_a_mute_subscriber_harm_nobody(target: Target) -> None:
    """200 idle connections and a subscriber that never reads are evicted while everybody else is served."""
    before = await warmed_up(target)
    idle = [await target.connect() for _ in range(200)]
    subscriber = await target.connect()
    await subscriber.send(request("GET /v1/events"))
    with trio.fail_after(PATIENCE):
        for _ in range(100):
            assert (await target.get("/v1/instances/web")).status == 200
        kept = await target.connect()
        for _ in range(100):
            assert (await kept.get("/v1/instances/web")).status == 200
        # the oldest ones went when the bound of one user was reached
        assert [await client.closed() for client in idle[:50]] == [b""] * 50
        await wait_until(lambda: has_hung_up(subscriber), "the subscriber is given up", seconds=PATIENCE)
    for client in (*idle, subscriber, kept):
        client.stream.socket.close()
    assert target.peak_memory() - before < GROWTH_MAX


def has_hung_up(client: Client) -> bool:
    """Whether the server closed the connection, whatever it sent before is read or not."""
    poll = select.poll()
    poll.register(client.stream.socket.fileno(), 0)
    return bool(poll.poll(0))
