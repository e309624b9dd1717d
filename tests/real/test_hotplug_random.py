"""Random changes of a VM that runs, with resets and daemons that are killed in between: the API says what QEMU has.

Decides: which steps there are, and that after each the API's devices, disks and NICs, its claims and its operations are
those of QEMU.
Must not: know how a change is carried out.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.guests import Emulator
from tests.real.daemons import Daemon, rom_unit
from tests.real.hotplug import attach, detach, fdsets, image, nodes, peripherals, qmp
from tests.waiting import came_true

pytestmark = [pytest.mark.real, pytest.mark.slow]

STEPS = 25
SLOTS = 4


class Trial:
    """One VM and what was done to it."""

    def __init__(self, daemon: Daemon, seed: int) -> None:
        self.daemon = daemon
        self.random = random.Random(seed)
        self.done: list[str] = []
        self.waiting: dict[str, str] = {}
        self._number = 0

    def step(self) -> None:
        """Do something, and look whether all is as it is told."""
        steps: list[tuple[int, Callable[[], None]]] = [
            (5, self.attach_disk),
            (3, self.attach_nic),
            (5, self.detach),
            (2, self.reset),
            (2, self.kill_daemon),
            (1, self.remove_by_hand),
            (1, self.attach_wrong),
        ]
        weights, actions = zip(*steps, strict=True)
        (action,) = self.random.choices(actions, weights)
        self.done.append(action.__name__)
        action()
        self.check()

    # steps

    def _entry(self, kind: str) -> str:
        self._number += 1
        return f"{kind}{self._number}"

    def attach_disk(self) -> None:
        """A disk, where there is a slot."""
        name, free = self._entry("d"), self.slots_free()
        image(self.daemon, f"{name}.img")
        operation = attach(self.daemon, "web", "disks", id=name, path=f"{name}.img")
        assert operation["state"] == ("succeeded" if free else "failed"), operation

    def attach_nic(self) -> None:
        """A NIC, where there is a slot."""
        free = self.slots_free()
        operation = attach(self.daemon, "web", "nics", id=self._entry("n"))
        assert operation["state"] == ("succeeded" if free else "failed"), operation

    def attach_wrong(self) -> None:
        """An image that is not there."""
        operation = attach(self.daemon, "web", "disks", id=self._entry("d"), path="none.img")
        assert operation["state"] == "failed"

    def detach(self) -> None:
        """Something that is there; the guest is a ROM, and lets nothing go."""
        entries = [each["entry"] for each in self.devices() if each["state"] == "there"]
        entries = sorted({entry for entry in entries if entry.startswith(("disk.", "nic."))})
        if entries:
            entry = self.random.choice(entries)
            kind, name = entry.split(".")
            operation = detach(self.daemon, "web", f"{kind}s/{name}", wait=0)
            assert came_true(lambda: self.daemon.view("web")["operation"] is None, seconds=10)
            self.waiting[operation["id"]] = entry

    def reset(self) -> None:
        """Which has all go that waits."""
        self.daemon.do("web", "reset")
        for operation in self.waiting:
            found = self.daemon.get(f"/v1/operations/{operation}/wait?timeout=10")
            assert found["state"] == "succeeded", found
        self.waiting.clear()

    def kill_daemon(self) -> None:
        """Without warning."""
        self.daemon.restart()
        self.daemon.wait("web", "running")

    def remove_by_hand(self) -> None:
        """An administrator takes a NIC's device by raw QMP; it goes with the next reset."""
        nics = [each["id"] for each in self.devices() if each["entry"].startswith("nic.") and each["driver"] == NIC]
        if nics:
            qmp(self.daemon, "web", "device_del", id=self.random.choice(nics))

    # what must be so

    def devices(self) -> list[dict[str, Any]]:
        """Those that the API shows."""
        found: list[dict[str, Any]] = self.daemon.get("/v1/instances/web/devices")["devices"]
        return found

    def slots_free(self) -> int:
        """By the API."""
        free: int = self.daemon.get("/v1/instances/web/devices")["slots"]["free"]
        return free

    def check(self) -> None:
        """All that is told is QEMU's truth, soon."""
        for what, holds in (
            ("devices", self._devices_agree),
            ("disks", self._disks_agree),
            ("NICs", self._nics_agree),
            ("claims", self._claims_agree),
            ("slots", self._slots_agree),
        ):
            assert came_true(holds, seconds=5.0), f"{what} differ after {self.done}"
        for operation, entry in self.waiting.items():
            assert self.daemon.get(f"/v1/operations/{operation}")["state"] == "running", (entry, self.done)

    def _devices_agree(self) -> bool:
        return {each["id"] for each in self.devices()} == peripherals(self.daemon, "web")

    def _disks_agree(self) -> bool:
        ours = {disk["id"] for disk in self.daemon.view("web")["disks"]}
        theirs = {Path(each["qdev"]).parent.name for each in qmp(self.daemon, "web", "query-block") if each.get("qdev")}
        named = {name for name in nodes(self.daemon, "web") if name.startswith("disk-")}
        return {f"disk-{name}" for name in ours} == theirs == named and len(fdsets(self.daemon, "web")) == len(ours)

    def _nics_agree(self) -> bool:
        ours = {f"nic-{nic['id']}" for nic in self.daemon.view("web")["nics"]}
        text: str = qmp(self.daemon, "web", "human-monitor-command", **{"command-line": "info network"})
        return ours == set(re.findall(r"^ \\ (nic-\w+): ", text, re.MULTILINE))

    def _claims_agree(self) -> bool:
        record = json.loads((self.daemon.run / "instances" / "web" / "record.json").read_text())
        ours = {disk["id"] for disk in self.daemon.view("web")["disks"]}
        return {claim["entry"] for claim in record["claims"]} == {f"disk.{name}" for name in ours}

    def _slots_agree(self) -> bool:
        # by QOM: query-pci does not look behind bridges that no firmware has numbered
        there = peripherals(self.daemon, "web")
        places = {
            name: qmp(self.daemon, "web", "qom-get", path=f"/machine/peripheral/{name}", property="parent_bus")
            for name in there
        }
        ports = {name for name in there if name.startswith("port-")}
        taken = {Path(place).parent.name for place in places.values()} & ports
        return len(ports - taken) == self.slots_free()


NIC = "virtio-net-pci"


@pytest.mark.parametrize("seed", range(3))
def test_the_api_says_what_qemu_has(daemon: Daemon, qemu: Emulator, rom_guest: Path, seed: int) -> None:
    """Whatever is done, in whatever order; nothing is left of what went, and what waits is known to wait."""
    daemon.unit("web", rom_unit(qemu, rom_guest, machine=f"hotplug-slots = {SLOTS}"))
    daemon.do("web", "start")
    trial = Trial(daemon, seed)
    for _ in range(STEPS):
        trial.step()
