"""Changing keys of a VM that runs, without one: what is judged, in which order it is done, and what is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from attrs import evolve

from qsup.errors import ChangeError, NoSpaceError, QmpCommandError, UnsupportedError
from qsup.instance.context import Context
from qsup.instance.setting import Means, needs, set_keys
from qsup.unit.compare import Change, compare
from qsup.unit.keys import Applies
from qsup.unit.model import Unit
from qsup.unit.sections.disks import DiskSection, IothreadSection
from qsup.unit.sections.machine import CpuSection, MachineSection
from qsup.unit.sections.memory import MemorySection
from qsup.unit.sections.service import ServiceSection
from tests.instance.test_filing import Files

CHANGES = {
    "cpu": {"vcpus": 2},
    "memory": {"size": "1G"},
    "machine": {"rtc": "localtime"},
    "service": {"restart": "always"},
}


class Live:
    """One key that can be changed while a VM runs, or not, or fails."""

    def __init__(self, key: str, log: list[str], *, refuses: bool = False, fails: bool = False) -> None:
        self.key, self.log, self.refuses, self.fails = key, log, refuses, fails

    def concerns(self, key: str) -> bool:
        """Its one."""
        return key == self.key

    def check(self, change: Change, unit: Unit, context: Context) -> None:
        """Refuse if it is to."""
        if self.refuses:
            raise UnsupportedError(f"no {self.key} here")

    async def apply(self, changes: Sequence[Change], unit: Unit, context: Context) -> Mapping[str, Any]:
        """Fail if it is to."""
        assert [change.key for change in changes] == [self.key]
        if self.fails:
            raise QmpCommandError("x", "GenericError", f"no {self.key} now")
        self.log.append(self.key)
        return {self.key: {"guest": "has it"}}


class Vm:
    """What a change needs of a VM."""

    def __init__(self, *live: Live, files: Files | None = None) -> None:
        self.unit = Unit()
        self.files = files or Files()
        self.means = Means(
            live=live,
            plan=lambda *_: None,
            attach=cast("Any", None),
            check_can_go=self.check_can_go,
            depart=self.depart,
            again=lambda *_: (),
            sections=("disk",),
        )
        self.parts: dict[str, str] = {}
        self.kept: set[str] = set()
        self.asked: list[str] = []
        self.context = cast("Context", SimpleNamespace(hardware=self, name="web", goals=[], reached=[], again=False))

    def part(self, entry: str) -> Any:
        """What QEMU has of an entry."""
        return SimpleNamespace(state=self.parts[entry]) if entry in self.parts else None

    def check_can_go(self, entry: str, hardware: object) -> None:
        """Refuse what is to be kept."""
        if entry in self.kept:
            raise UnsupportedError(f"{entry} is built in")

    async def depart(self, entries: Sequence[str], context: Context) -> list[Any]:
        """Ask for them."""
        self.asked += entries
        return [SimpleNamespace(key=entry) for entry in entries]

    def set_unit(self, unit: Unit) -> None:
        """It runs as this says."""
        self.unit = unit

    async def set(
        self,
        changes: Mapping[str, Any] = CHANGES,
        *,
        persist: bool = True,
        dry_run: bool = False,
        written: bool = False,
    ) -> Mapping[str, Any]:
        """Make changes, all there are unless said otherwise."""
        filing = self.files.filing(wanted=persist)
        return await set_keys(changes, self.context, filing, self.means, dry_run=dry_run, written=written)


def applied(keys: Any) -> dict[str, str]:
    """When each key counts."""
    return {key: said["applied"] for key, said in keys.items()}


async def test_each_key_goes_its_way() -> None:
    """Live ones to those who know them, the daemon's and the others to the unit; the VM is then as it was changed."""
    log: list[str] = []
    vm = Vm(Live("cpu.vcpus", log), Live("memory.size", log))
    found = await vm.set()
    assert applied(found["keys"]) == {
        "cpu.vcpus": "live",
        "memory.size": "live",
        "machine.rtc": "start",
        "service.restart": "daemon",
    }
    assert found["keys"]["cpu.vcpus"]["guest"] == "has it"
    assert log == ["cpu.vcpus", "memory.size"]
    assert (vm.unit.cpu.vcpus, vm.unit.memory.size, vm.unit.service.restart) == (2, 1 << 30, "always")
    assert vm.unit.machine.rtc == "utc"
    assert [rehearsal for _, rehearsal in vm.files.calls] == [True, False]


async def test_a_trial_does_nothing() -> None:
    """Only the rehearsal."""
    log: list[str] = []
    vm = Vm(Live("cpu.vcpus", log))
    assert applied((await vm.set(dry_run=True))["keys"])["cpu.vcpus"] == "live"
    assert (log, vm.unit, [rehearsal for _, rehearsal in vm.files.calls]) == ([], Unit(), [True])


@pytest.mark.parametrize(("persist", "refused"), [(True, 1), (False, 3)])
async def test_what_is_refused_refuses_all(persist: bool, refused: int) -> None:
    """A live key by its own reason; at run time alone, what only a unit can say, too. No file is looked at."""
    log: list[str] = []
    vm = Vm(Live("cpu.vcpus", log), Live("memory.size", log, refuses=True))
    with pytest.raises(UnsupportedError if persist else ChangeError, match=r"no memory\.size here") as no:
        await vm.set(persist=persist)
    verdicts = list(applied(no.value.details["keys"]).values())
    assert verdicts.count("refused") == refused
    assert (log, vm.unit, vm.files.calls) == ([], Unit(), [])


async def test_what_a_unit_says_already_waits_where_it_cannot_be_now() -> None:
    """One key that a running VM refuses keeps none of the others from it: the next start has all of them anyway."""
    log: list[str] = []
    vm = Vm(Live("cpu.vcpus", log), Live("memory.size", log, refuses=True))
    keys = (await vm.set(written=True))["keys"]
    assert applied(keys) == {
        "cpu.vcpus": "live",
        "memory.size": "start",
        "machine.rtc": "start",
        "service.restart": "daemon",
    }
    assert keys["memory.size"]["why"] == "no memory.size here"
    assert (log, vm.unit.memory.size) == (["cpu.vcpus"], Unit().memory.size)


async def test_what_the_guest_has_yet_to_do_is_not_written_yet() -> None:
    """It may never: then the next start is as it was."""
    log: list[str] = []
    vm = Vm(Live("cpu.vcpus", log), Live("memory.size", log))
    vm.context.goals.append(cast("Any", SimpleNamespace(key="memory.size")))
    await vm.set()
    (rehearsed, _), (written, _) = vm.files.calls
    assert rehearsed == CHANGES
    assert written == {section: values for section, values in CHANGES.items() if section != "memory"}


async def test_keys_that_make_a_unit_only_together_are_all_in_it() -> None:
    """One that was done before the other is in the unit of what runs no sooner than that, but then it is."""
    log: list[str] = []
    vm = Vm(Live("disk.a.path", log), Live("disk.a.format", log))
    vm.unit = Unit(disks=(DiskSection(id="a", type="cdrom", path="a.iso"),))
    await vm.set({"disk": [{"id": "a", "path": "b.qcow2", "format": "qcow2"}]}, persist=False)
    assert log == ["disk.a.path", "disk.a.format"]
    assert (vm.unit.disks[0].path, vm.unit.disks[0].format) == ("b.qcow2", "qcow2")


async def test_what_fails_midway_says_what_was_done() -> None:
    """And nothing is written."""
    log: list[str] = []
    vm = Vm(Live("cpu.vcpus", log), Live("memory.size", log, fails=True))
    with pytest.raises(QmpCommandError, match=r"cpu\.vcpus was changed, then: x: no memory\.size now") as failed:
        await vm.set()
    assert applied(failed.value.details["keys"])["cpu.vcpus"] == "live"
    assert applied(failed.value.details["keys"])["memory.size"] == "refused"
    assert (vm.unit.cpu.vcpus, vm.unit.memory.size) == (2, Unit().memory.size)
    assert [rehearsal for _, rehearsal in vm.files.calls] == [True]


async def test_what_is_so_and_could_not_be_written_says_so() -> None:
    """With every key."""
    log: list[str] = []
    vm = Vm(Live("cpu.vcpus", log), Live("memory.size", log), files=Files(full=True))
    with pytest.raises(
        NoSpaceError, match=r"cpu\.vcpus, memory\.size was changed while it runs, but that could"
    ) as failed:
        await vm.set()
    assert applied(failed.value.details["keys"])["cpu.vcpus"] == "live"
    assert (vm.unit.cpu.vcpus, vm.unit.service.restart) == (2, "no")


def test_what_a_difference_needs() -> None:
    """Live only where whoever would do it could; without a VM to look at, what is usual."""
    vm = Vm(Live("cpu.vcpus", []), Live("memory.size", [], refuses=True))
    unit = Unit(
        cpu=CpuSection(vcpus=2, max_vcpus=2),
        memory=MemorySection(size=1 << 30),
        machine=MachineSection(rtc="localtime"),
        service=ServiceSection(restart="always"),
    )
    live = ("cpu.vcpus", "memory.size")
    hardware = cast("Any", vm)
    found = [evolve(change, needs=Applies.LIVE) if change.key in live else change for change in compare(Unit(), unit)]
    looked = {change.key: change.needs for change in needs(found, unit, vm.means, hardware, vm.context)}
    assert looked == {
        "service.restart": Applies.SUPERVISOR,
        "machine.rtc": Applies.RESTART,
        "cpu.vcpus": Applies.LIVE,
        "cpu.max-vcpus": Applies.RESTART,
        "memory.size": Applies.RESTART,
    }
    usual = {change.key: change.needs for change in needs(found, unit, vm.means, hardware, None)}
    assert usual == looked | {"memory.size": Applies.LIVE}


DISKS = tuple(DiskSection(id=name, path=f"{name}.img") for name in ("root", "data", "old", "log"))


def departing() -> Vm:
    """A VM with four disks: one is built in, one is on its way out."""
    vm = Vm()
    vm.unit = Unit(disks=DISKS)
    vm.parts = dict.fromkeys(("disk.root", "disk.data", "disk.log"), "there") | {"disk.old": "leaving"}
    vm.kept = {"disk.root"}
    return vm


ABSENT = {"disk": [{"id": disk.id, "present": False} for disk in DISKS[:3]]}


async def test_what_a_units_files_have_no_more_is_asked_to_go() -> None:
    """Until it has gone the VM has it; what cannot go waits, and what is on its way out needs a reset at most."""
    vm = departing()
    filing = vm.files.filing(wanted=True)
    found = await set_keys(ABSENT, vm.context, filing, vm.means, dry_run=False, written=True)
    assert applied(found["keys"]) == {"disk.root": "start", "disk.data": "live", "disk.old": "reset"}
    assert found["keys"]["disk.root"]["why"] == "disk.root is built in"
    assert "a reset of it ends that" in found["keys"]["disk.old"]["why"]
    assert vm.asked == [goal.key for goal in vm.context.goals] == ["disk.data"]
    assert vm.unit.disks == DISKS
    trial = await set_keys(ABSENT, departing().context, filing, vm.means, dry_run=True, written=True)
    assert trial["keys"] == found["keys"]
    assert vm.asked == ["disk.data"]


async def test_a_request_alone_detaches_nothing() -> None:
    """That a disk is not present is said of its unit; who wants it gone now detaches it."""
    vm = departing()
    found = await set_keys(ABSENT, vm.context, vm.files.filing(wanted=True), vm.means, dry_run=False)
    assert set(applied(found["keys"]).values()) == {"start"}
    assert vm.asked == []


async def test_iothreads_stay_while_the_vm_runs() -> None:
    """Nothing that the guest does takes one away, so nobody is told to detach it; the unit may do without."""
    absent = {"iothread": [{"id": "fast", "present": False}]}
    vm = Vm()
    vm.unit = Unit(iothreads=(IothreadSection(id="fast"),))
    with pytest.raises(ChangeError) as refused:
        await set_keys(absent, vm.context, vm.files.filing(wanted=False), vm.means, dry_run=False)
    why = cast("Any", refused.value.details["keys"])["iothread.fast"]["why"]
    assert why == "iothread.fast cannot be taken away while it runs"
    found = await set_keys(absent, vm.context, vm.files.filing(wanted=True), vm.means, dry_run=True)
    assert applied(found["keys"]) == {"iothread.fast": "start"}


def test_what_a_departure_needs() -> None:
    """The same, as a difference shows it."""
    vm = departing()
    changes = compare(vm.unit, Unit(disks=DISKS[3:]))
    for context in (vm.context, None):
        found = {change.key: change.needs for change in needs(changes, Unit(), vm.means, cast("Any", vm), context)}
        assert found == {"disk.root": Applies.RESTART, "disk.data": Applies.LIVE, "disk.old": Applies.RESET}
