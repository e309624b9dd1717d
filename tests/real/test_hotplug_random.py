"""Random changes of a VM that runs, with resets and daemons that are killed in between: the API says what QEMU has.

Decides: which steps there are, and that after each the API's devices, disks and NICs, its claims and its operations are
those of QEMU: of its QOM, of query-block, and of query-pci where a firmware has numbered the bridges.
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

from qsup.errors import QmpCommandError
from tests.guests import Emulator, LinuxGuest
from tests.real.daemons import Daemon, linux_unit, rom_unit
from tests.real.hotplug import attach, chardevs, detach, fdsets, image, nodes, peripherals, qmp
from tests.waiting import came_true

pytestmark = [pytest.mark.real, pytest.mark.slow]

STEPS = 25
SLOTS = 4


class Trial:
    """One VM and what was done to it.

    Long because each step and each comparison is a method of its own.

    Args:
        is_deaf: its guest lets nothing go but when it is reset.

    Attributes:
        done: what was done, in order.
        waiting: the entries on their way out, by their operations.
        obedient: the entries that go without the guest: QEMU asks it only for what has a place on a PCI bus.
    """

    def __init__(self, daemon: Daemon, seed: int, *, is_deaf: bool) -> None:
        self.daemon = daemon
        self.random = random.Random(seed)
        self.done: list[str] = []
        self.waiting: dict[str, str] = {}
        self.obedient: set[str] = set()
        self._number = 0
        self._is_deaf = is_deaf

    def step(self) -> None:
        """Do something, and look whether all is as it is told."""
        steps: list[tuple[int, Callable[[], None]]] = [
            (5, self.attach_disk),
            (3, self.attach_nic),
            (3, self.attach_device),
            (6, self.detach),
            (2 if self._is_deaf else 0, self.reset),
            (2, self.kill_daemon),
            (3, self.kill_daemon_meanwhile),
            (1 if self._is_deaf else 0, self.remove_by_hand),
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

    def _attach(self, noun: str, **entry: object) -> None:
        self.done[-1] += f" {entry['id']}"
        free = self.slots_free()
        operation = attach(self.daemon, "web", noun, **entry)
        # without a slot there may be a controller that takes it
        assert operation["state"] == "succeeded" or not free, operation
        assert operation["state"] == "succeeded" or "no free slot" in operation["error"]["detail"], operation

    def attach_disk(self) -> None:
        """A disk, where there is a slot."""
        self._attach("disks", **self._disk())

    def _disk(self) -> dict[str, object]:
        name = self._entry("d")
        image(self.daemon, f"{name}.img")
        bus = self.random.choice(("virtio", "scsi", "usb"))
        if bus != "virtio":
            self.obedient.add(f"disk.{name}")
        return {"id": name, "path": f"{name}.img", "bus": bus}

    def attach_nic(self) -> None:
        """A NIC, where there is a slot."""
        self._attach("nics", id=self._entry("n"))

    def attach_device(self) -> None:
        """A device, where there is a slot."""
        name, kind = self._entry("v"), self.random.choice(("serial", "rng"))
        if kind == "serial":
            self.obedient.add(f"device.{name}")
        self._attach("devices", id=name, type=kind)

    def attach_wrong(self) -> None:
        """An image that is not there."""
        operation = attach(self.daemon, "web", "disks", id=self._entry("d"), path="none.img")
        assert operation["state"] == "failed"

    def detach(self) -> None:
        """Something that is there; the guest of a ROM lets nothing go."""
        if found := self._begin_detach(0):
            assert came_true(lambda: self.daemon.view("web")["operation"] is None, seconds=10)
            self._expect(*found)

    def _begin_detach(self, wait: float) -> tuple[str, str] | None:
        entries = [each["entry"] for each in self.devices() if each["state"] == "there"]
        entries = sorted({entry for entry in entries if entry.startswith(("disk.", "nic.", "device."))})
        if not entries:
            return None
        entry = self.random.choice(entries)
        self.done[-1] += f" {entry}"
        kind, name = entry.split(".")
        return detach(self.daemon, "web", f"{kind}s/{name}", wait=wait)["id"], entry

    def _expect(self, operation: str, entry: str) -> None:
        """That a detach is over, or that it waits for a deaf guest."""
        if self._is_deaf and entry not in self.obedient:
            self.waiting[operation] = entry
        else:
            self._succeeds(operation)

    def _succeeds(self, operation: str) -> None:
        found = self.daemon.get(f"/v1/operations/{operation}/wait?timeout=20")
        assert found["state"] == "succeeded", (found, self.done)

    def reset(self) -> None:
        """Which has all go that waits."""
        self.daemon.do("web", "reset")
        for operation in self.waiting:
            self._succeeds(operation)
        self.waiting.clear()

    def kill_daemon(self) -> None:
        """Without warning."""
        self.daemon.restart()
        self.daemon.wait("web", "running")

    def kill_daemon_meanwhile(self) -> None:
        """While it attaches or detaches, at any moment of that: the next one completes it."""
        wait = self.random.uniform(0, 0.03)
        if self.random.random() < 0.5:
            entry = self._disk()
            self.done[-1] += f" {entry}"
            free = self.slots_free()
            with self.daemon.client() as client:
                operation = client.post(f"/v1/instances/web/disks?persist=0&wait={wait:f}", entry)["id"]
            self.kill_daemon()
            found = self.daemon.get(f"/v1/operations/{operation}/wait?timeout=20")
            assert found["state"] == "succeeded" or not free, (found, self.done)
        elif found := self._begin_detach(wait):
            self.kill_daemon()
            assert came_true(lambda: self.daemon.view("web")["operation"] is None, seconds=10)
            self._expect(*found)

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
            ("character devices", self._chardevs_agree),
            ("slots", self._slots_agree),
            ("PCI functions", self._functions_agree),
        ):
            assert came_true(holds, seconds=5.0), f"{what} differ after {self.done}"
        for operation, entry in self.waiting.items():
            assert self.daemon.get(f"/v1/operations/{operation}")["state"] == "running", (entry, self.done)

    def _devices_agree(self) -> bool:
        return {each["id"] for each in self.devices()} == peripherals(self.daemon, "web")

    def _disks_agree(self) -> bool:
        ours = {disk["id"] for disk in self.daemon.view("web")["disks"]}
        blocks = qmp(self.daemon, "web", "query-block")
        # by its id, or by a path below it
        found = [re.search(r"(?:^|/)(disk-\w+)", each.get("qdev", "")) for each in blocks]
        theirs = {match[1] for match in found if match}
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

    def _chardevs_agree(self) -> bool:
        ours = {each["entry"].partition(".")[2] for each in self.devices() if each["driver"] == "virtserialport"}
        theirs = {name.partition("-")[2] for name in chardevs(self.daemon, "web") if name.startswith("channel-")}
        return ours - {""} == theirs

    def _functions_agree(self) -> bool:
        if self._is_deaf:
            return True  # query-pci does not look behind bridges that no firmware has numbered
        buses = qmp(self.daemon, "web", "query-pci")
        theirs = {name for name in _ids([each for bus in buses for each in bus["devices"]]) if name}
        pci = {each["id"] for each in self.devices() if each["bus"] == "pcie.0" or each["bus"].startswith("port-")}
        return theirs == pci

    def _slots_agree(self) -> bool:
        there = peripherals(self.daemon, "web")
        path = "/machine/peripheral/{}".format
        try:
            places = {
                name: qmp(self.daemon, "web", "qom-get", path=path(name), property="parent_bus") for name in there
            }
        except QmpCommandError:
            return False  # a controller goes by itself once nothing hangs on it, and has just done so
        ports = {name for name in there if name.startswith("port-")}
        taken = {Path(place).parent.name for place in places.values()} & ports
        return len(ports - taken) == self.slots_free()


NIC = "virtio-net-pci"


def _ids(devices: list[dict[str, Any]]) -> set[str]:
    """The ids of PCI devices of query-pci, those behind bridges among them."""
    behind = [each["pci_bridge"].get("devices", []) for each in devices if "pci_bridge" in each]
    return {each["qdev_id"] for each in devices}.union(*map(_ids, behind))


@pytest.mark.parametrize("seed", range(3))
def test_the_api_says_what_qemu_has(daemon: Daemon, qemu: Emulator, rom_guest: Path, seed: int) -> None:
    """Whatever is done, in whatever order; nothing is left of what went, and what waits is known to wait."""
    daemon.unit("web", rom_unit(qemu, rom_guest, machine=f"hotplug-slots = {SLOTS}"))
    daemon.do("web", "start")
    trial = Trial(daemon, seed, is_deaf=True)
    for _ in range(STEPS):
        trial.step()


@pytest.mark.parametrize("seed", range(2))
def test_the_api_says_what_qemu_has_with_a_live_guest(
    daemon: Daemon, qemu: Emulator, linux_guest: LinuxGuest, seed: int
) -> None:
    """The same where the guest lets go what it is asked for, when it likes to."""
    daemon.unit("web", linux_unit(qemu, linux_guest, machine=f"hotplug-slots = {SLOTS}"))
    daemon.do("web", "start")
    trial = Trial(daemon, seed, is_deaf=False)
    for _ in range(STEPS):
        trial.step()
