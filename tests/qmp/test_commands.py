"""The typed verbs: what they send, and what they make of what QEMU was recorded to answer."""

from __future__ import annotations

import json
import os
import struct
import uuid
import zlib
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from qsup.api.metrics import DISK_COUNTERS
from qsup.errors import MonitorClosed, MonitorProtocolError, MonitorTimeout, QmpCommandError
from qsup.qmp import commands, screen
from qsup.qmp.connection import Monitor
from qsup.qmp.results import AddfdInfo, ChardevInfo, JobInfo, KvmInfo, StatusInfo
from tests.qmp.player import Fault, Player, as_recorded, faithful
from tests.qmp.support import TIMEOUT, by_hand, monitored
from tests.recordings.recording import load

SESSION = load("session")
DESCRIPTORS = load("descriptors")
Verb = Callable[[Monitor], Awaitable[object]]


async def test_queries_answer_with_values(nursery: trio.Nursery) -> None:
    """Every query of a recorded session becomes a frozen value with what qsup uses of it."""
    async with monitored(nursery, faithful(SESSION)) as monitor:
        assert await commands.query_status(monitor, timeout=TIMEOUT) == StatusInfo(status="prelaunch", running=False)
        assert await commands.query_kvm(monitor, timeout=TIMEOUT) == KvmInfo(enabled=False, present=True)
        assert await commands.query_name(monitor, timeout=TIMEOUT) == "web"
        identity = uuid.UUID("6d1ff6f6-6f2e-4b0c-9b5c-6d1f6f2e4b0c")
        assert await commands.query_uuid(monitor, timeout=TIMEOUT) == identity
        (cpu,) = await commands.query_cpus_fast(monitor, timeout=TIMEOUT)
        assert (cpu.cpu_index, cpu.qom_path) == (0, "/machine/unattached/device[0]")
        assert cpu.thread_id > 1
        assert cpu.props == {"core-id": 0, "thread-id": 0, "socket-id": 0}
        (drive,) = await commands.query_block(monitor, timeout=TIMEOUT)
        assert (drive.node_name, drive.driver, drive.read_only, drive.io_status) == ("disk0", "raw", False, "ok")
        assert (drive.virtual_size, drive.actual_size) == (1 << 20, 1 << 20)
        assert drive.qdev == "/machine/peripheral/root/virtio-backend"
        (stats,) = await commands.query_blockstats(monitor, timeout=TIMEOUT)
        assert (stats.node_name, stats.qdev) == (drive.node_name, drive.qdev)
        assert stats.counters["rd_bytes"] == stats.counters["failed_wr_operations"] == 0
        # what /metrics shows of a disk is what QEMU counts
        assert set(stats.counters) == set(DISK_COUNTERS)
        (device,) = await commands.query_chardev(monitor, timeout=TIMEOUT)
        assert isinstance(device, ChardevInfo)
        assert (device.label, device.frontend_open) == ("qmp", True)
        assert await commands.query_jobs(monitor, timeout=TIMEOUT) == ()
        assert await commands.query_named_block_nodes(monitor, timeout=TIMEOUT) >= {drive.node_name}
        assert await commands.qom_list_peripherals(monitor, timeout=TIMEOUT) == {"root": "virtio-blk-pci"}
        assert await commands.query_balloon(monitor, timeout=TIMEOUT) is None
        assert "query-status" in await commands.query_commands(monitor, timeout=TIMEOUT)
        text = await commands.human_monitor_command(monitor, "info version", timeout=TIMEOUT)
        assert text.startswith("7.2.22")


async def test_verbs_are_carried_out(nursery: trio.Nursery) -> None:
    """Those without an answer return when QEMU has confirmed."""
    verbs = [
        commands.cont,
        commands.stop,
        commands.system_reset,
        commands.system_powerdown,
        commands.inject_nmi,
        commands.quit,
    ]
    async with monitored(nursery, faithful(SESSION)) as monitor:
        for verb in verbs:
            await verb(monitor, timeout=TIMEOUT)
        assert [event.name for event in await monitor.events.receive_batch() if not hasattr(event, "count")] == [
            "RESUME",
            "STOP",
            "RESET",
            "POWERDOWN",
            "SHUTDOWN",
        ]


async def test_a_concluded_job_is_read(nursery: trio.Nursery) -> None:
    """Progress and status come with it."""
    async with monitored(nursery, faithful(load("devices"))) as monitor:
        (job,) = await commands.query_jobs(monitor, timeout=TIMEOUT)
    expected = JobInfo(id="create", type="create", status="concluded", current_progress=1, total_progress=1, error="")
    assert job == expected


def _shaped(command: str, value: object) -> Fault:
    """A QEMU that answers one command with a value of another type."""

    def change(lines: list[bytes]) -> Iterable[bytes]:
        return as_recorded([json.dumps(json.loads(lines[-1]) | {"return": value}).encode()])

    return Fault(name="shaped", recording=SESSION, at=command, change=change)


QUERIES: dict[str, Verb] = {
    "query-status": lambda monitor: commands.query_status(monitor, timeout=TIMEOUT),
    "query-kvm": lambda monitor: commands.query_kvm(monitor, timeout=TIMEOUT),
    "query-name": lambda monitor: commands.query_name(monitor, timeout=TIMEOUT),
    "query-uuid": lambda monitor: commands.query_uuid(monitor, timeout=TIMEOUT),
    "query-cpus-fast": lambda monitor: commands.query_cpus_fast(monitor, timeout=TIMEOUT),
    "query-block": lambda monitor: commands.query_block(monitor, timeout=TIMEOUT),
    "query-blockstats": lambda monitor: commands.query_blockstats(monitor, timeout=TIMEOUT),
    "query-chardev": lambda monitor: commands.query_chardev(monitor, timeout=TIMEOUT),
    "query-jobs": lambda monitor: commands.query_jobs(monitor, timeout=TIMEOUT),
    "query-named-block-nodes": lambda monitor: commands.query_named_block_nodes(monitor, timeout=TIMEOUT),
    "qom-list": lambda monitor: commands.qom_list_peripherals(monitor, timeout=TIMEOUT),
    "query-commands": lambda monitor: commands.query_commands(monitor, timeout=TIMEOUT),
    "human-monitor-command": lambda monitor: commands.human_monitor_command(monitor, "", timeout=TIMEOUT),
}


@pytest.mark.parametrize("command", QUERIES)
@pytest.mark.parametrize("value", [None, 7, [7], {"name": 7, "UUID": "x", "status": [], "enabled": 1}], ids=repr)
async def test_an_answer_of_another_type_is_no_crash(nursery: trio.Nursery, command: str, value: object) -> None:
    """A hostile QEMU's answer is a protocol error that names the command."""
    async with monitored(nursery, _shaped(command, value)) as monitor:
        with pytest.raises(MonitorProtocolError, match=command):
            await QUERIES[command](monitor)


async def test_quit_succeeds_by_qemus_end_alone(nursery: trio.Nursery) -> None:
    """Its answer, the event and the end of the connection come in any order."""
    fault = Fault(name="ends", recording=SESSION, at="quit", change=lambda _lines: [b""])
    async with monitored(nursery, fault) as monitor:
        await commands.quit(monitor, timeout=TIMEOUT)
        with pytest.raises(MonitorClosed):
            await commands.quit(monitor, timeout=TIMEOUT)


# Descriptors


async def test_descriptors_are_lent_and_taken_back(nursery: trio.Nursery, tmp_path: Path) -> None:
    """The recorded exchange, with QEMU's own refusal of a name it does not know."""
    async with monitored(nursery, faithful(DESCRIPTORS)) as monitor:
        with (tmp_path / "file").open("wb") as file:
            await commands.getfd(monitor, file.fileno(), "vnc", timeout=TIMEOUT)
            await commands.getfd(monitor, file.fileno(), "unused", timeout=TIMEOUT)
            await commands.closefd(monitor, "unused", timeout=TIMEOUT)
            with pytest.raises(QmpCommandError, match="No file descriptor supplied"):
                await commands.getfd(monitor, file.fileno(), "missing", timeout=TIMEOUT)
            added = await commands.add_fd(monitor, file.fileno(), timeout=TIMEOUT)
            assert added == AddfdInfo(fdset_id=0, fd=11)
            await commands.remove_fd(monitor, added.fdset_id, timeout=TIMEOUT)


async def test_a_vnc_client_is_handed_over_under_a_name_of_its_own(nursery: trio.Nursery, tmp_path: Path) -> None:
    """Two at a time cannot take each other's."""
    player = Player(faithful(DESCRIPTORS))
    async with monitored(nursery, player) as monitor:
        with (tmp_path / "file").open("wb") as file:
            for _ in range(2):
                await commands.add_client_vnc(monitor, file.fileno(), timeout=TIMEOUT)
    requests = [json.loads(line) for line in player.received]
    handed = [request["arguments"]["fdname"] for request in requests if request["execute"] == "getfd"]
    used = [request["arguments"] for request in requests if request["execute"] == "add_client"]
    assert len(set(handed)) == 2
    assert used == [{"protocol": "vnc", "fdname": name, "skipauth": True} for name in handed]


# The screen

PIXELS = st.integers(1, 40).flatmap(
    lambda width: st.integers(1, 20).flatmap(
        lambda height: st.tuples(
            st.just(width), st.just(height), st.binary(min_size=width * height * 3, max_size=width * height * 3)
        )
    )
)


def decoded(png: bytes) -> tuple[int, int, bytes]:
    """Width, height and pixels of a PNG without filters, every checksum verified."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    chunks: dict[bytes, bytes] = {}
    place = 8
    while place < len(png):
        (length,) = struct.unpack_from(">I", png, place)
        body = png[place + 4 : place + 8 + length]
        assert struct.unpack_from(">I", png, place + 8 + length) == (zlib.crc32(body),)
        chunks[body[:4]] = chunks.get(body[:4], b"") + body[4:]
        place += length + 12
    width, height, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (rest, b"IEND" in chunks) == ([8, 2, 0, 0, 0], True)
    rows = zlib.decompress(chunks[b"IDAT"])
    step = 1 + width * 3
    assert len(rows) == step * height
    assert not any(rows[::step])
    return width, height, b"".join(rows[i + 1 : i + step] for i in range(0, len(rows), step))


@given(PIXELS)
def test_a_picture_keeps_its_pixels(picture: tuple[int, int, bytes]) -> None:
    """PNG holds what PPM held."""
    width, height, pixels = picture
    assert decoded(screen.png_from_ppm(b"P6\n%d %d\n255\n" % (width, height) + pixels)) == picture


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"P6",
        b"P5\n1 1\n255\n\0",
        b"P6\n1 1\n255\n\0\0",
        b"P6\n0 1\n255\n",
        b"P6\n999999 999999\n255\n",
        b"\x89PNG",
    ],
    ids=repr,
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    """A hostile QEMU may write anything."""
    with pytest.raises(ValueError, match="picture"):
        screen.png_from_ppm(data)


async def test_a_qemu_that_writes_no_picture_is_told_as_one(nursery: trio.Nursery) -> None:
    """The player writes nothing at all; the file it should have written to is lent once."""
    player = Player(faithful(DESCRIPTORS))
    async with monitored(nursery, player) as monitor:
        for _ in range(2):
            with pytest.raises(MonitorProtocolError, match="screendump"):
                await screen.screendump(monitor, timeout=TIMEOUT)
    sent = [json.loads(line) for line in player.received]
    assert [request["execute"] for request in sent[1:]] == ["add-fd", "screendump", "screendump"]
    assert sent[2]["arguments"] == {"filename": "/dev/fdset/0"}


async def test_a_picture_that_comes_too_late_is_not_the_next_one(nursery: trio.Nursery) -> None:
    """After a timeout QEMU may yet draw: what it draws on is given up."""
    late = Fault(name="late", recording=DESCRIPTORS, at="screendump", change=lambda _lines: [], times=1)
    player = Player(late)
    before = len(os.listdir("/proc/self/fd"))
    async with monitored(nursery, player) as monitor:
        with pytest.raises(MonitorTimeout):
            await screen.screendump(monitor, timeout=0.1)
        with pytest.raises(MonitorProtocolError):
            await screen.screendump(monitor, timeout=TIMEOUT)
    sent = [json.loads(line)["execute"] for line in player.received]
    assert sent[1:] == ["add-fd", "screendump"] * 2
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_machine_without_a_screen_says_so(nursery: trio.Nursery) -> None:
    """QEMU's refusal reaches the caller."""
    refusal = SESSION.answers("screendump")[0][0]
    async with by_hand(nursery) as (monitor, peer), trio.open_nursery() as callers:

        async def take() -> None:
            with pytest.raises(QmpCommandError, match="no console"):
                await screen.screendump(monitor, timeout=TIMEOUT)

        callers.start_soon(take)
        await peer.answer(await peer.command(), {"fdset-id": 3, "fd": 9})
        dump = await peer.command()
        assert dump["arguments"] == {"filename": "/dev/fdset/3"}
        await peer.say(json.dumps(json.loads(refusal) | {"id": dump["id"]}).encode())


async def test_iothreads(nursery: trio.Nursery) -> None:
    """Each with its id and its thread; anything else is a protocol error that names the command."""
    async with by_hand(nursery) as (monitor, peer), trio.open_nursery() as peers:

        async def answer() -> None:
            await peer.answer(await peer.command(), [{"id": "iothread-fast", "thread-id": 7, "poll-max-ns": 0}])
            await peer.answer(await peer.command(), [{"id": "iothread-fast"}])

        peers.start_soon(answer)
        (found,) = await commands.query_iothreads(monitor, timeout=TIMEOUT)
        assert (found.id, found.thread_id) == ("iothread-fast", 7)
        with pytest.raises(MonitorProtocolError, match="query-iothreads"):
            await commands.query_iothreads(monitor, timeout=TIMEOUT)


async def test_memory_and_places_for_vcpus(nursery: trio.Nursery) -> None:
    """What a VM may grow by, as QEMU says it; a balloon that never had a driver says nothing."""
    answers: dict[str, object] = {
        "query-hotpluggable-cpus": [
            {"type": "max-x86_64-cpu", "vcpus-count": 1, "props": {"core-id": 1}},
            {"type": "max-x86_64-cpu", "vcpus-count": 1, "props": {"core-id": 0}, "qom-path": "/machine/unattached/x"},
        ],
        "query-memory-devices": [
            {"type": "virtio-mem", "data": {"id": "memory", "size": 4, "requested-size": 8, "block-size": 2}},
            {"type": "dimm", "data": {"size": 16}},
        ],
        "query-memory-size-summary": {"base-memory": 10, "plugged-memory": 4},
        "qom-get": {"stats": {"stat-free-memory": 7}, "last-update": 0},
    }

    async with by_hand(nursery) as (monitor, peer), trio.open_nursery() as peers:

        async def answer() -> None:
            while True:
                command = await peer.command()
                await peer.answer(command, answers[str(command["execute"])])

        peers.start_soon(answer)
        first, second = await commands.query_hotpluggable_cpus(monitor, timeout=TIMEOUT)
        assert (first.props, first.qom_path, second.props) == ({"core-id": 0}, "/machine/unattached/x", {"core-id": 1})
        growth, module = await commands.query_memory_devices(monitor, timeout=TIMEOUT)
        assert (growth.id, growth.size, growth.requested, growth.block) == ("memory", 4, 8, 2)
        assert (module.kind, module.id, module.size) == ("dimm", "", 16)
        assert await commands.query_memory_size(monitor, timeout=TIMEOUT) == 14
        assert await commands.query_guest_stats(monitor, "/machine/peripheral/balloon", timeout=TIMEOUT) == {}
        answers["qom-get"] = {"stats": {"stat-free-memory": 7}, "last-update": 1}
        assert await commands.query_guest_stats(monitor, "/x", timeout=TIMEOUT) == {"free_memory": 7}
        peers.cancel_scope.cancel()
