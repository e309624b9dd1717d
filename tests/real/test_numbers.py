"""What VMs have of their host, counted by the kernel: time of each vCPU, where threads were, where memory is."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from qsup.ctl.websocket import connect
from qsup.errors import DeniedError
from tests.guests import Emulator
from tests.real.daemons import Daemon, rom_unit, signal_process
from tests.waiting import poll_until

pytestmark = [pytest.mark.real]

MIB = 1 << 20
#: One CPU for each of two vCPUs, and the first for all else.
APART = 'vcpus = 2\npin = ["0", "1"]\nemulator-pin = "0"'


def start(daemon: Daemon, emulator: Emulator, rom: Path, cpu: str = "vcpus = 2", **sections: str) -> dict[str, Any]:
    """A VM of the ROM guest, the view of it."""
    daemon.unit("web", rom_unit(emulator, rom, cpu=cpu, **sections))
    return daemon.do("web", "start")


def spin(daemon: Daemon) -> None:
    """Have the first vCPU burn a CPU, by a command that the guest does not echo."""
    daemon.type("web", "x")
    before = vcpu_seconds(daemon)[0]
    with daemon.client() as client:
        console = connect(client, "/v1/instances/web/console?mode=write")
        try:
            console.send(b"S")
            console.flush()
            poll_until(lambda: vcpu_seconds(daemon)[0] > before + 0.1, "it spins")
        finally:
            console.close()


def stats(daemon: Daemon) -> dict[str, Any]:
    """Its counters."""
    found: dict[str, Any] = daemon.get("/v1/instances/web/stats")
    return found


def vcpu_seconds(daemon: Daemon) -> list[float]:
    """Of each vCPU."""
    return [each["seconds"] for each in stats(daemon)["times"] if each["vcpus"]]


def metrics(daemon: Daemon) -> dict[tuple[str, ...], float]:
    """Each sample by its name and the values of its labels, in the order of their names."""
    with daemon.client() as client:
        text = client.exchange("GET", "/metrics").decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_time_of_a_vcpu_is_its_own(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """One burns a CPU; the other has nothing to do, and all of it is in the VM's time. No counter goes back."""
    start(daemon, emulator, rom_guest)
    before = stats(daemon)
    spin(daemon)
    burnt, rested = vcpu_seconds(daemon)
    poll_until(lambda: vcpu_seconds(daemon)[0] > burnt + 0.5, "the first has run")
    first, second = vcpu_seconds(daemon)
    assert second < rested + 0.1
    after = stats(daemon)
    assert after["cpu_seconds"] - before["cpu_seconds"] >= first - burnt
    assert after["read_at"] > before["read_at"]
    samples = metrics(daemon)
    assert samples["qsup_vcpu_cpu_seconds_total", "web", "0"] >= first
    assert second <= samples["qsup_vcpu_cpu_seconds_total", "web", "1"] < second + 0.1
    assert samples["qsup_vcpu_wait_seconds_total", "web", "0"] >= 0
    assert samples["qsup_instance_cpu_seconds_total", "web"] >= after["cpu_seconds"]
    threads = daemon.get("/v1/instances/web/cpus")["threads"]
    by_vcpu = {vcpu: thread for thread in threads for vcpu in thread["vcpus"]}
    assert by_vcpu[0]["seconds"] >= first and by_vcpu[0]["migrations"] >= 0


def test_the_next_daemon_counts_on(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """The counters are the kernel's: they go on over a daemon's death, and stand still when the VM is stopped."""
    view = start(daemon, emulator, rom_guest)
    spin(daemon)
    poll_until(lambda: vcpu_seconds(daemon)[0] > 0.2, "it has run")
    before = stats(daemon)
    daemon.restart(signal.SIGKILL)
    daemon.wait("web", "running")
    poll_until(lambda: len(vcpu_seconds(daemon)) == 2, "its vCPUs are known")
    after = stats(daemon)
    assert after["cpu_seconds"] >= before["cpu_seconds"]
    assert after["times"][0]["seconds"] >= before["times"][0]["seconds"]
    signal_process(view["pid"], signal.SIGSTOP)
    still = metrics(daemon)["qsup_vcpu_cpu_seconds_total", "web", "0"]
    assert metrics(daemon)["qsup_vcpu_cpu_seconds_total", "web", "0"] == still
    daemon.do("web", "kill")
    assert not [key for key in metrics(daemon) if key[0].startswith(("qsup_vcpu", "qsup_instance_cpu"))]
    with pytest.raises(DeniedError, match="nothing to count"):
        stats(daemon)


def test_vcpus_in_one_thread_are_counted_together(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Nobody knows what each of them had."""
    start(daemon, emulator, rom_guest, "vcpus = 3", qemu='extra-args = ["-icount", "shift=auto"]')
    assert [each["vcpus"] for each in stats(daemon)["times"]] == [[0, 1, 2]]
    assert [key[2] for key in metrics(daemon) if key[0] == "qsup_vcpu_cpu_seconds_total"] == ["0-2"]


def test_it_is_counted_how_often_a_thread_was_moved_and_where_it_was(
    daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """By thread, with the CPU that it ran on."""
    assert {0, 1} <= os.sched_getaffinity(0), "this test needs the CPUs 0 and 1"
    view = start(daemon, emulator, rom_guest, APART)
    spin(daemon)
    thread = view["cpus"]["threads"][0]
    with daemon.events() as events:
        os.sched_setaffinity(thread, {1})
        events.next("pin-drift")
    found = {each["thread"]: each for each in daemon.get("/v1/instances/web/cpus")["threads"]}
    assert (found[thread]["drifts"], found[thread]["drift_cpu"]) == (1, 1)
    assert [each["drifts"] for each in found.values() if each["thread"] != thread] == [0] * (len(found) - 1)
    assert found[thread]["migrations"] >= 1
    assert metrics(daemon)["qsup_instance_pin_drifts_total", "web"] == 1
    (line,) = [line for line in daemon.ctl("cpus", "web").stdout.splitlines() if line.split()[:1] == [str(thread)]]
    assert line.endswith("1, on 1")


def test_memory_is_found_where_it_is(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """All of the guest's that was taken at once, and what QEMU has besides; counters and metrics have it soon after."""
    start(daemon, emulator, rom_guest, memory="prealloc = true")
    memory = daemon.get("/v1/instances/web/memory")
    found = sum(part["anonymous"] + part["file"] for part in memory["nodes"])
    assert 16 * MIB <= found <= 16 * MIB + stats(daemon)["memory_rss"]
    assert memory["age"] == 0
    poll_until(lambda: stats(daemon)["node_memory"] is not None, "it is among the counters")
    assert 0 <= stats(daemon)["node_memory"]["age"] < 60
    node = str(memory["nodes"][0]["node"])
    assert metrics(daemon)["qsup_instance_node_memory_bytes", "web", "anonymous", node] > 0
    shown = daemon.ctl("cpus", "web").stdout
    assert shown.splitlines()[-len(memory["nodes"]) - 1].split()[0] == "NODE"


def test_stats_show_what_a_vm_uses(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """A vCPU that burns a CPU is some part of one, whatever else the host does."""
    start(daemon, emulator, rom_guest)
    spin(daemon)
    header, line = daemon.ctl("stats", "web", "--interval", "500ms").stdout.splitlines()
    cells = dict(zip(header.split(), line.split(), strict=False))
    assert cells["NAME"] == "web"
    assert 5 < float(cells["CPU"].rstrip("%")) < 250
    assert 0 <= float(cells["STEAL"].rstrip("%")) <= 100
