"""A bus with a systemd on it that makes scopes of directories: for machines that systemd does not run.

Decides: what that systemd answers, in D-Bus as jeepney packs it.
Must not: keep limits, or move processes; it writes the files that the kernel would.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio
from attrs import define, field
from jeepney import HeaderFields, Message, MessageType, new_error, new_method_return, new_signal
from jeepney.low_level import Parser
from jeepney.wrappers import DBusAddress

from qsup.host.systemd import Systemd
from qsup.unit.quantity import format_cpu_set

SYSTEMD = "org.freedesktop.systemd1"
_JOB = "/org/freedesktop/systemd1/job/7"
#: What the kernel says of each property's value.
_FILES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "CPUQuotaPerSecUSec": ("cpu.max", lambda value: f"{value // 10} 100000"),
    "CPUWeight": ("cpu.weight", str),
    "MemoryMax": ("memory.max", str),
    "MemoryHigh": ("memory.high", str),
    "TasksMax": ("pids.max", str),
    "AllowedCPUs": ("cpuset.cpus", lambda mask: format_cpu_set(_bits(mask)) + "\n"),
    "AllowedMemoryNodes": ("cpuset.mems", lambda mask: format_cpu_set(_bits(mask)) + "\n"),
}
_INFINITY = (1 << 64) - 1
_NONE = {"CPUQuotaPerSecUSec": "max 100000", "CPUWeight": "100", "AllowedCPUs": "\n", "AllowedMemoryNodes": "\n"}


def _bits(mask: bytes) -> list[int]:
    return [number for number in range(len(mask) * 8) if mask[number // 8] >> number % 8 & 1]


@define
class FakeSystemd:
    """Answers on a socket.

    Args:
        root: where its cgroups are.
        path: of the socket.

    Attributes:
        errors: by method, the name and the words of an error that it answers; taken out when there are no more.
        result: of a job.
        silent: methods that it does not answer.
        ignored: properties that it takes and does not write.
        started: the properties of each scope, by unit.
        calls: the methods that were called.
    """

    root: Path
    path: Path
    errors: dict[str, list[tuple[str, str]]] = field(factory=dict)
    result: str = "done"
    silent: set[str] = field(factory=set)
    ignored: set[str] = field(factory=set)
    started: dict[str, dict[str, Any]] = field(factory=dict)
    calls: list[str] = field(factory=list)

    @property
    def systemd(self) -> Systemd:
        """How it is spoken with."""
        return Systemd(bus=str(self.path), is_system=True)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve whoever connects."""
        with trio.socket.socket(trio.socket.AF_UNIX) as listening:
            await listening.bind(str(self.path))
            listening.listen()
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    connection, _ = await listening.accept()
                    nursery.start_soon(self._serve, trio.SocketStream(connection))

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            try:
                parser, serial = Parser(), 0
                parser.add_data(await _greeted(stream), [])
                while True:
                    while (message := parser.get_next_message()) is not None:
                        for answer in self._answer(message):
                            serial += 1
                            await stream.send_all(answer.serialise(serial))
                    if not (data := await stream.receive_some()):
                        return
                    parser.add_data(data, [])
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return

    def _answer(self, message: Message) -> list[Message]:
        assert message.header.message_type is MessageType.method_call
        method = message.header.fields[HeaderFields.member]
        self.calls.append(method)
        if method in self.silent:
            return []
        if errors := self.errors.get(method):
            name, words = errors.pop(0)
            return [new_error(message, name, "s", (words,))]
        match method:
            case "Hello":
                return [new_method_return(message, "s", (":1.7",))]
            case "StartTransientUnit":
                unit, mode, properties, _ = message.body
                assert mode == "fail"
                self._make(unit, {name: value for name, (_, value) in properties})
                manager = DBusAddress("/org/freedesktop/systemd1", interface=f"{SYSTEMD}.Manager")
                ended = new_signal(manager, "JobRemoved", "uoss", (7, _JOB, unit, self.result))
                return [ended, new_method_return(message, "o", (_JOB,))]
            case "SetUnitProperties":
                unit, runtime, properties = message.body
                assert runtime
                self._write(unit, {name: value for name, (_, value) in properties})
        return [new_method_return(message)]

    def directory(self, unit: str) -> Path:
        """A scope's cgroup."""
        return self.root / str(self.started[unit]["Slice"]) / unit

    def _make(self, unit: str, properties: dict[str, Any]) -> None:
        self.started[unit] = properties
        directory = self.directory(unit)
        directory.mkdir(parents=True)
        controllers = (self.root / "cgroup.controllers").read_text()
        (directory / "cgroup.controllers").write_text(controllers)
        (directory / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in properties["PIDs"]))
        for name, (file, _) in _FILES.items():
            if file.split(".")[0] in controllers.split():
                (directory / file).write_text(_NONE.get(name, "max"))
        self._write(unit, properties)

    def _write(self, unit: str, properties: dict[str, Any]) -> None:
        for name, value in properties.items():
            path = self.directory(unit) / _FILES[name][0] if name in _FILES else None
            if value == b"":
                continue  # as systemd 252 does: the kernel has what it had
            if path is not None and path.exists() and name not in self.ignored:
                path.write_text(_NONE.get(name, "max") if value == _INFINITY else _FILES[name][1](value))


async def _greeted(stream: trio.SocketStream) -> bytes:
    """Let a client in, and return what it has said after that."""
    said = b""
    while b"BEGIN\r\n" not in said:
        more = await stream.receive_some()
        said += more
        if not more:
            return b""
        if more.endswith(b"\r\n") and b"BEGIN" not in said:
            await stream.send_all(b"OK 0123456789abcdef0123456789abcdef\r\n")
    return said.partition(b"BEGIN\r\n")[2]


def unescape(unit: str) -> str:
    """What ``systemd-escape --unescape`` makes of a part of a unit's name."""
    raw = re.sub(r"\\x([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), unit.replace("-", "/"))
    return raw.encode("latin-1").decode()
