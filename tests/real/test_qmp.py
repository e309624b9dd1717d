"""The monitor's transport before a real QEMU: beginning, busy, stopped and killed ones, and descriptors."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from qsup.errors import MonitorClosed, MonitorConnectError, MonitorTimeout, QmpCommandError, RequestError
from qsup.qmp import commands, screen
from qsup.qmp.connection import Monitor
from qsup.qmp.dial import connect_monitor
from qsup.qmp.events import QmpEvent, ShutdownEvent
from tests.bare import bare_qemu
from tests.guests import Emulator
from tests.waiting import wait_until

TIMEOUT = 20.0
SHORT = 0.3
SMALL = ("-nodefaults", "-no-user-config", "-display", "none", "-no-shutdown", "-S", "-accel", "tcg", "-m", "64")
Q35 = ("-machine", "q35", *SMALL)

Arguments = dict[str, object] | None


@contextlib.asynccontextmanager
async def monitor_of(nursery: trio.Nursery, directory: Path) -> AsyncIterator[Monitor]:
    """A monitor of the QEMU that runs in a directory."""
    monitor = await connect_monitor(nursery, directory / "qmp.sock", name="web", timeout=TIMEOUT)
    try:
        yield monitor
    finally:
        await monitor.aclose()


async def event(monitor: Monitor, name: str) -> QmpEvent:
    """Wait for an event, passing over others."""
    with trio.fail_after(TIMEOUT):
        while True:
            for notice in await monitor.events.receive_batch():
                if isinstance(notice, QmpEvent) and notice.name == name:
                    return notice


# Beginning


async def test_connecting_need_not_wait_for_qemu(nursery: trio.Nursery, root_dir: Path, qemu: Emulator) -> None:
    """Whoever holds the listener can connect before QEMU is executed."""
    path = root_dir / "qmp.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        monitors: list[Monitor] = []

        async def connect() -> None:
            monitors.append(await connect_monitor(nursery, path, name="web", timeout=TIMEOUT))

        async with trio.open_nursery() as tasks:
            tasks.start_soon(connect)
            await trio.testing.wait_all_tasks_blocked()
            chardev = f"socket,id=qmp,fd={listener.fileno()},server=on,wait=off"
            command = [str(qemu.path), *Q35, "-chardev", chardev, "-mon", "qmp,mode=control"]
            process = await trio.to_thread.run_sync(_spawn, command, listener.fileno())
        (monitor,) = monitors
        assert (monitor.greeting.major, monitor.greeting.minor) == tuple(map(int, qemu.version.split(".")[:2]))
        await commands.quit(monitor, timeout=TIMEOUT)
        ended = await event(monitor, "SHUTDOWN")
        assert isinstance(ended, ShutdownEvent)
        assert ended.reason == "host-qmp-quit"
        assert isinstance(await monitor.wait_closed(), MonitorClosed)
        assert await trio.to_thread.run_sync(process.wait, TIMEOUT) == 0


def _spawn(command: list[str], fd: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, pass_fds=[fd], stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("wrong", ["-no-such-option", "-device=no-such-device"])
async def test_a_wrong_command_line_is_told_at_once(
    nursery: trio.Nursery, root_dir: Path, qemu: Emulator, wrong: str
) -> None:
    """QEMU's death is no busy monitor."""
    with bare_qemu(root_dir, *Q35, *wrong.split("="), binary=str(qemu.path)):
        with pytest.raises(MonitorConnectError):
            await connect_monitor(nursery, root_dir / "qmp.sock", name="web", timeout=TIMEOUT)


async def test_a_busy_monitor_is_waited_for(nursery: trio.Nursery, root_dir: Path, qemu: Emulator) -> None:
    """QEMU serves one client; the next is served when that one leaves, or learns that it will not be."""
    with bare_qemu(root_dir, *Q35, binary=str(qemu.path)):
        async with monitor_of(nursery, root_dir) as first:
            with pytest.raises(MonitorConnectError, match="no greeting"):
                await connect_monitor(nursery, root_dir / "qmp.sock", name="web", timeout=SHORT)
            async with trio.open_nursery() as tasks:

                async def wait_for_turn() -> None:
                    async with monitor_of(nursery, root_dir) as second:
                        assert not (await commands.query_status(second, timeout=TIMEOUT)).running

                tasks.start_soon(wait_for_turn)
                await trio.testing.wait_all_tasks_blocked()
                await first.aclose()


async def test_an_answer_to_the_client_before_us_is_dropped(
    nursery: trio.Nursery, root_dir: Path, qemu: Emulator
) -> None:
    """The old client's dump ends after it left, and QEMU tells the new one."""
    with bare_qemu(root_dir, *Q35, "-m", "512", binary=str(qemu.path)):
        async with monitor_of(nursery, root_dir) as first:
            dump = {"paging": False, "protocol": f"file:{root_dir}/dump"}
            with pytest.raises(MonitorTimeout):
                await first.execute("dump-guest-memory", dump, timeout=0.05)
        async with monitor_of(nursery, root_dir) as second:
            assert second.statistics().dropped_replies == 1
            assert (await commands.query_status(second, timeout=TIMEOUT)).status == "prelaunch"


# A QEMU that does not answer


async def test_a_busy_main_loop_is_told_from_a_stopped_process(
    nursery: trio.Nursery, root_dir: Path, qemu: Emulator
) -> None:
    """Out of band a busy QEMU still answers, a stopped one does not; both go on where they were."""
    with bare_qemu(root_dir, *Q35, "-m", "1G", binary=str(qemu.path)) as process:
        async with monitor_of(nursery, root_dir) as monitor:
            async with trio.open_nursery() as tasks:
                dump = {"paging": False, "protocol": f"file:{root_dir}/dump"}
                tasks.start_soon(lambda: monitor.execute("dump-guest-memory", dump, timeout=TIMEOUT))
                await wait_until((root_dir / "dump").exists, "the dump has begun")
                with pytest.raises(MonitorTimeout):
                    await commands.query_status(monitor, timeout=0.05)
                await monitor.execute("query-yank", timeout=TIMEOUT, oob=True)
            process.send_signal(signal.SIGSTOP)
            for oob in (False, True):
                with pytest.raises(MonitorTimeout):
                    await monitor.execute("query-yank", timeout=SHORT, oob=oob)
            process.send_signal(signal.SIGCONT)
            assert not (await commands.query_status(monitor, timeout=TIMEOUT)).running
            assert monitor.statistics().in_flight == 0
            assert monitor.statistics().dropped_replies == 3


async def test_a_stopped_process_can_be_left_and_found_again(
    nursery: trio.Nursery, root_dir: Path, qemu: Emulator
) -> None:
    """Closing never waits; the next connection is served as soon as QEMU can."""
    with bare_qemu(root_dir, *Q35, binary=str(qemu.path)) as process:
        async with monitor_of(nursery, root_dir) as monitor:
            process.send_signal(signal.SIGSTOP)
            with pytest.raises(MonitorTimeout):
                await commands.stop(monitor, timeout=SHORT)
            await monitor.aclose()
            with pytest.raises(MonitorConnectError):
                await connect_monitor(nursery, root_dir / "qmp.sock", name="web", timeout=SHORT)
        process.send_signal(signal.SIGCONT)
        async with monitor_of(nursery, root_dir) as monitor:
            assert (await commands.query_status(monitor, timeout=TIMEOUT)).status == "prelaunch"


async def test_a_killed_qemu_ends_everything_at_once(nursery: trio.Nursery, root_dir: Path, qemu: Emulator) -> None:
    """The caller is told, and nobody listens any more."""
    with bare_qemu(root_dir, *Q35, "-m", "1G", binary=str(qemu.path)) as process:
        async with monitor_of(nursery, root_dir) as monitor:
            async with trio.open_nursery() as tasks:

                async def ask() -> None:
                    dump = {"paging": False, "protocol": f"file:{root_dir}/dump"}
                    with pytest.raises(MonitorClosed) as caught:
                        await monitor.execute("dump-guest-memory", dump, timeout=TIMEOUT)
                    assert caught.value.details["sent"] is True

                tasks.start_soon(ask)
                await wait_until((root_dir / "dump").exists, "the dump has begun")
                process.kill()
            with pytest.raises(MonitorConnectError, match="refused"):
                await connect_monitor(nursery, root_dir / "qmp.sock", name="web", timeout=TIMEOUT)


# What QEMU's parser does not take

ODD = [
    *(chr(code) for code in (0, 1, 0x1F, 0x7F, 0x80, 0xD7FF, 0xE000, 0xFDCF, 0xFDF0, 0xFFFD, 0x10000, 0x10FFFD)),
    *(chr(code) for code in (0xD800, 0xDFFF, 0xFDD0, 0xFDEF, 0xFFFE, 0xFFFF, 0x1FFFE, 0x1FFFF, 0x10FFFF)),
    1 << 63,
    1 << 200,
    -(1 << 200),
    1e308,
    float("nan"),
    float("-inf"),
]


async def test_nothing_that_is_sent_makes_qemu_lose_the_thread(
    nursery: trio.Nursery, root_dir: Path, qemu: Emulator
) -> None:
    """Whatever a caller passes is answered under its id or refused here: QEMU never answers to nobody."""
    deep: object = "x"
    for _ in range(900):
        deep = [deep]
    refused = 0
    with bare_qemu(root_dir, *Q35, binary=str(qemu.path)):
        async with monitor_of(nursery, root_dir) as monitor:
            for value in [*ODD, deep, "x" * (1 << 17)]:
                try:
                    with pytest.raises(QmpCommandError):
                        await monitor.execute("query-status", {"odd": value}, timeout=TIMEOUT)
                except RequestError:
                    refused += 1
                assert monitor.close_reason is None
            assert not (await commands.query_status(monitor, timeout=TIMEOUT)).running
    assert refused == 11


# Descriptors


async def test_vnc_needs_no_listening_socket(nursery: trio.Nursery, root_dir: Path, qemu: Emulator) -> None:
    """Several clients at a time are handed over as connected sockets."""
    with bare_qemu(root_dir, *Q35, "-device", "VGA", "-vnc", "none", binary=str(qemu.path)):
        async with monitor_of(nursery, root_dir) as monitor:
            for _ in range(3):
                near, far = socket.socketpair()
                with near, far:
                    await commands.add_client_vnc(monitor, far.fileno(), timeout=TIMEOUT)
                    far.close()
                    async with trio.SocketStream(trio.socket.from_stdlib_socket(near)) as stream:
                        with trio.fail_after(TIMEOUT):
                            assert await stream.receive_some(12) == b"RFB 003.008\n"


async def test_the_screen_is_a_picture(nursery: trio.Nursery, root_dir: Path, qemu: Emulator) -> None:
    """A PNG of the right size, again and again; no descriptor stays with a QEMU that stands still, or here."""
    before = len(os.listdir("/proc/self/fd"))
    with bare_qemu(root_dir, *Q35, "-device", "VGA", "-vnc", "none", binary=str(qemu.path)) as process:
        async with monitor_of(nursery, root_dir) as monitor:
            first = await screen.screendump(monitor, timeout=TIMEOUT)
            held = len(os.listdir(f"/proc/{process.pid}/fd"))
            async with trio.open_nursery() as tasks:

                async def take(monitor: Monitor) -> None:
                    assert await screen.screendump(monitor, timeout=TIMEOUT) == first

                for _ in range(5):
                    tasks.start_soon(take, monitor)
            assert len(os.listdir(f"/proc/{process.pid}/fd")) == held
    assert len(os.listdir("/proc/self/fd")) == before
    assert first.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack_from(">II", first, 16)
    assert width >= 640
    (length,) = struct.unpack_from(">I", first, 33)
    assert len(zlib.decompress(first[41 : 41 + length])) == height * (1 + 3 * width)


async def test_descriptors_never_meet_each_others_commands(
    nursery: trio.Nursery, root_dir: Path, qemu: Emulator
) -> None:
    """Sent by many tasks at once, each reaches the set it was meant for."""
    names = [root_dir / f"disk{number}" for number in range(12)]
    for name in names:
        name.write_bytes(b"x")
    with bare_qemu(root_dir, *Q35, binary=str(qemu.path)) as process:
        async with monitor_of(nursery, root_dir) as monitor:
            found: dict[Path, str] = {}

            async def add(name: Path) -> None:
                fd = os.open(name, os.O_RDONLY)
                added = await commands.add_fd(monitor, fd, timeout=TIMEOUT, opaque=name.name)
                os.close(fd)
                found[name] = os.readlink(f"/proc/{process.pid}/fd/{added.fd}")

            async with trio.open_nursery() as tasks:
                for name in names:
                    tasks.start_soon(add, name)
                    tasks.start_soon(lambda: monitor.execute("query-status", timeout=TIMEOUT))
            assert found == {name: str(name) for name in names}


async def test_the_agents_port_tells_when_the_guest_has_it_open(
    nursery: trio.Nursery, root_dir: Path, qemu: Emulator
) -> None:
    """Without a guest nobody has, and query-chardev says so."""
    channel = ("-chardev", "null,id=agent", "-device", "virtio-serial-pci")
    port = ("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0,id=port")
    with bare_qemu(root_dir, *Q35, *channel, *port, binary=str(qemu.path)):
        async with monitor_of(nursery, root_dir) as monitor:
            devices = {device.label: device for device in await commands.query_chardev(monitor, timeout=TIMEOUT)}
            assert not devices["agent"].frontend_open
            assert devices["qmp"].frontend_open
