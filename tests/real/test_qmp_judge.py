"""The monitor's transport judged by the `qemu.qmp` library's own client, before one real QEMU."""

from __future__ import annotations

import asyncio
from pathlib import Path

import trio
from qemu.qmp import ExecuteError, QMPClient

from qsup.errors import QmpCommandError
from qsup.qmp.connection import Monitor
from qsup.qmp.dial import connect_monitor
from qsup.qmp.events import Notice, QmpEvent
from tests.bare import bare_qemu
from tests.guests import Emulator
from tests.waiting import wait_until

TIMEOUT = 20.0
MACHINE = ("-machine", "q35", "-nodefaults", "-no-user-config", "-display", "none", "-no-shutdown", "-S")

Arguments = dict[str, object] | None

ASKED: tuple[tuple[str, Arguments], ...] = (
    ("query-status", None),
    ("query-status", {}),
    ("query-version", None),
    ("query-name", None),
    ("query-uuid", None),
    ("query-kvm", None),
    ("query-commands", None),
    ("query-qmp-schema", None),
    ("query-machines", None),
    ("query-cpus-fast", None),
    ("query-block", None),
    ("query-blockstats", None),
    ("query-chardev-backends", None),
    ("query-named-block-nodes", None),
    ("query-command-line-options", None),
    ("query-jobs", None),
    ("query-balloon", None),
    ("query-migrate", None),
    ("qom-list", {"path": "/machine"}),
    ("qom-list-types", {"implements": "device", "abstract": False}),
    ("device-list-properties", {"typename": "virtio-blk-pci"}),
    ("human-monitor-command", {"command-line": "info qtree"}),
    ("object-add", {"qom-type": "secret", "id": "s0", "data": "ä\U0001f600\u0000\x7f\\\"'"}),
    ("qom-get", {"path": "/objects/s0", "property": "data"}),
    ("object-del", {"id": "s0"}),
    ("object-del", {"id": "s0"}),
    ("device_add", {"driver": "no-such-device"}),
    ("blockdev-add", {"driver": "null-co", "node-name": "n0", "size": 1 << 40}),
    ("blockdev-del", {"node-name": "n0"}),
    ("query-status", {"unexpected": 1}),
    ("human-monitor-command", None),
    ("no-such-command", None),
    ("qmp_capabilities", None),
    ("inject-nmi", None),
    ("cont", None),
    ("stop", None),
    ("system_reset", None),
    ("system_powerdown", None),
)
OUT_OF_BAND = (("query-yank", None), ("query-status", None))


class Judge:
    """`qemu.qmp`'s client, in an event loop of its own, on a second monitor."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def _ask(self) -> tuple[list[object], list[dict[str, object]]]:
        client = QMPClient("judge")
        await client.connect(str(self._path))
        results: list[object] = []
        for oob, asked in ((False, ASKED), (True, OUT_OF_BAND)):
            for command, arguments in asked:
                try:
                    results.append(await client.execute(command, arguments, oob=oob))
                except ExecuteError as error:
                    results.append((error.error_class, str(error)))
        told = client.events.history
        await client.disconnect()
        return results, [dict(message) for message in told]

    def ask(self) -> tuple[list[object], list[dict[str, object]]]:
        """Everything asked, as the library answers it, and the events it saw meanwhile."""
        return asyncio.run(self._ask())


async def ours(monitor: Monitor) -> list[object]:
    """Everything asked, as the monitor answers it."""
    results: list[object] = []
    for oob, asked in ((False, ASKED), (True, OUT_OF_BAND)):
        for command, arguments in asked:
            try:
                results.append(await monitor.execute(command, arguments, timeout=TIMEOUT, oob=oob))
            except QmpCommandError as error:
                results.append((error.error_class, error.desc))
    return results


def _as_told(events: tuple[Notice, ...]) -> list[dict[str, object]]:
    """Our events in the library's shape."""
    assert all(isinstance(event, QmpEvent) for event in events)
    return [
        {
            "event": event.name,
            "timestamp": {"seconds": event.seconds, "microseconds": event.microseconds},
            **({"data": dict(event.data)} if event.data else {}),
        }
        for event in events
        if isinstance(event, QmpEvent)
    ]


async def test_the_library_gets_the_same_answers_and_events(
    nursery: trio.Nursery, root_dir: Path, qemu: Emulator
) -> None:
    """Asked the same, this transport and `qemu.qmp.QMPClient` hear the same from one QEMU."""
    second = root_dir / "second"
    chardev = f"socket,id=second,path={second},server=on,wait=off"
    with bare_qemu(root_dir, *MACHINE, "-chardev", chardev, "-mon", "second,mode=control", binary=str(qemu.path)):
        monitor = await connect_monitor(nursery, root_dir / "qmp.sock", name="web", timeout=TIMEOUT)
        try:
            # some answers change once they were given: a module that is asked for stays loaded
            await ours(monitor)
            await monitor.events.receive_batch()
            before = monitor.statistics().events
            expected, told = await trio.to_thread.run_sync(Judge(second).ask)
            await wait_until(lambda: monitor.statistics().events == before + len(told), "the same events came here")
            assert _as_told(await monitor.events.receive_batch()) == told
            assert {message["event"] for message in told} >= {"RESUME", "STOP", "RESET", "POWERDOWN"}
            for asked, found, wanted in zip((*ASKED, *OUT_OF_BAND), await ours(monitor), expected, strict=True):
                assert found == wanted, asked
        finally:
            await monitor.aclose()
            second.unlink()
