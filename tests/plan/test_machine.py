"""Machine types, accelerators and CPUs, against what was recorded of a real QEMU."""

from __future__ import annotations

import pytest
from attrs import evolve

from qsup.errors import UnsupportedError
from qsup.plan.board import BOARDS
from qsup.plan.machine import choose_accel, choose_machine
from qsup.plan.spec import Identity
from qsup.unit.families import FAMILIES
from qsup.unit.model import Unit
from qsup.unit.sections.devices import NIC_MODELS, NicSection
from qsup.unit.sections.disks import DiskSection
from qsup.unit.sections.machine import CpuSection, MachineSection
from tests.plan import goldens
from tests.plan.building import build

CAPABILITIES = goldens.capabilities()
NEW = Identity(name="web", uuid=goldens.UUID)


def refusal(unit: Unit, **changes: object) -> UnsupportedError:
    """What is said of a unit for which no plan can be made."""
    with pytest.raises(UnsupportedError) as caught:
        build(unit, **changes)
    return caught.value


def test_alias_is_resolved() -> None:
    """An alias means QEMU's newest version of it, and the plan says which alias it was."""
    plan = build(Unit(machine=MachineSection(type="q35")))
    assert (plan.machine, plan.machine_alias) == ("pc-q35-7.2", "q35")


def test_resolved_alias_is_kept() -> None:
    """A VM that was once a pc-q35-6.2 stays one, whatever q35 means today."""
    kept = choose_machine("q35", evolve(NEW, machines={"q35": "pc-q35-6.2"}), CAPABILITIES)
    assert (kept.type.name, kept.alias) == ("pc-q35-6.2", "q35")


def test_kept_machine_that_is_gone_is_named() -> None:
    """When this QEMU has the VM's own machine type no more, that is said, with the way out."""
    with pytest.raises(UnsupportedError, match=r"is a pc-q35-1\.0, which .* does not have") as caught:
        choose_machine("q35", evolve(NEW, machines={"q35": "pc-q35-1.0"}), CAPABILITIES)
    assert "pc-q35-7.2" in caught.value.hint


@pytest.mark.parametrize(("wanted", "suggested"), [("q53", "q35"), ("pc-q35-7.3", "pc-q35-7."), ("micro", "microvm")])
def test_unknown_machine_type_gets_suggestions(wanted: str, suggested: str) -> None:
    """A machine type that QEMU does not have is answered with those that are spelt like it."""
    error = refusal(Unit(machine=MachineSection(type=wanted)))
    assert f"has no machine type '{wanted}'; did you mean" in error.message
    assert suggested in error.message.partition("mean ")[2]


def test_unplanned_board_is_refused() -> None:
    """A machine type that QEMU has, but no plan exists for, is refused as such."""
    assert "qsup plans q35, pc and microvm machines" in refusal(Unit(machine=MachineSection(type="isapc"))).message


def test_every_family_has_its_board() -> None:
    """What the rules between keys let a family have, its board has a place for, and nothing else."""
    assert FAMILIES.keys() == BOARDS.keys()
    for name, family in FAMILIES.items():
        board = BOARDS[name]
        assert family.has_graphics is ("video" in board.single)
        assert (family.nic_models == NIC_MODELS) is board.has_pci
        assert {bus: bus in family.disk_buses for bus in ("scsi", "usb")} == {
            bus: bus in board.single for bus in ("scsi", "usb")
        }
        assert family.room == {kind: slots.size for kind, slots in board.several.items() if kind != "free"}


def test_deprecated_machine_is_warned_of() -> None:
    """A machine type that QEMU is going to drop works, with a warning."""
    plan = build(Unit(machine=MachineSection(type="pc-i440fx-1.7")))
    assert "machine type pc-i440fx-1.7 is deprecated in this QEMU" in plan.warnings


@pytest.mark.parametrize(
    ("wanted", "host", "accel"),
    [
        ("auto", "", "tcg"),
        ("auto", "kvm", "kvm"),
        ("auto", "kvm-device", "tcg"),
        ("kvm", "kvm", "kvm"),
        ("kvm", "kvm-device", "kvm"),
        ("tcg", "kvm", "tcg"),
        ("tcg", "", "tcg"),
    ],
)
def test_accelerator(wanted: str, host: str, accel: str) -> None:
    """`auto` is KVM exactly where it can be used; `kvm` and `tcg` mean what they say."""
    assert choose_accel(wanted, goldens.HOSTS[host], CAPABILITIES)[0] == accel


def test_kvm_without_kvm_says_why() -> None:
    """KVM that was asked for and cannot be used is refused with the host's reason and a way out."""
    error = refusal(Unit(machine=MachineSection(accel="kvm")))
    assert error.message.startswith("KVM was asked for and cannot be used: there is no /dev/kvm")
    assert "auto" in error.hint


def test_kvm_of_another_architecture_is_refused() -> None:
    """An emulator of another architecture than the host's cannot use KVM."""
    host = evolve(goldens.HOSTS["kvm"], architecture="aarch64")
    error = refusal(Unit(machine=MachineSection(accel="kvm")), host=host)
    assert "emulates x86_64, and the host is aarch64" in error.message
    assert build(Unit(), host=host).accel == "tcg"


def test_qemu_without_an_accelerator() -> None:
    """A QEMU that was built without KVM or without TCG is not asked for it."""
    without_kvm = evolve(CAPABILITIES, accelerators=frozenset({"tcg"}))
    without_tcg = evolve(CAPABILITIES, accelerators=frozenset({"kvm"}))
    assert build(Unit(), host=goldens.HOSTS["kvm"], capabilities=without_kvm).accel == "tcg"
    assert (
        "was built without KVM"
        in refusal(
            Unit(machine=MachineSection(accel="kvm")), host=goldens.HOSTS["kvm"], capabilities=without_kvm
        ).message
    )
    assert "was built without TCG" in refusal(Unit(), capabilities=without_tcg).message


@pytest.mark.parametrize("model", ["host", "host,-vmx"])
def test_host_model_needs_kvm(model: str) -> None:
    """The host's own CPU model is refused under TCG."""
    assert "needs KVM" in refusal(Unit(cpu=CpuSection(model=model))).message


def test_more_cpus_than_the_machine_allows() -> None:
    """As many CPUs as the machine type allows are planned; one more is refused with its limit."""
    assert "289 CPUs are more than the 288 that pc-q35-7.2 allows" in refusal(Unit(cpu=CpuSection(vcpus=289))).message
    assert "cpus=288,maxcpus=288" in build(Unit(cpu=CpuSection(vcpus=288))).arguments


def test_cpus_to_come_on_a_machine_that_takes_none() -> None:
    """Room for more CPUs is refused on a machine type that takes none while it runs."""
    unit = Unit(machine=MachineSection(type="microvm"), cpu=CpuSection(vcpus=1, max_vcpus=2))
    assert "microvm takes no CPU while it runs" in refusal(unit).message


@pytest.mark.parametrize(
    ("disk", "words"),
    [
        (DiskSection(id="a", path="x", bus="ide"), "a q35 machine has no ide bus"),
        (DiskSection(id="a", path="x", aio="io_uring"), "built without aio = 'io_uring'"),
        (DiskSection(id="a", path="x", bus="nvme"), "has no device 'nvme'"),
    ],
    ids=["bus", "aio", "device"],
)
def test_disk_that_cannot_be(disk: DiskSection, words: str) -> None:
    """A disk that this board or this QEMU cannot have is refused by its id, with the reason."""
    poor = evolve(
        CAPABILITIES,
        devices=CAPABILITIES.devices - {"nvme"},
        schema_features=CAPABILITIES.schema_features - {"aio-io_uring"},
    )
    error = refusal(Unit(disks=(disk,)), capabilities=poor)
    assert error.message.startswith("disk 'a': ")
    assert words in error.message


def test_user_networking_that_was_not_built() -> None:
    """User networking is refused on a QEMU without slirp."""
    poor = evolve(CAPABILITIES, schema_features=frozenset())
    assert "without user networking" in refusal(Unit(nics=(NicSection(id="lan"),)), capabilities=poor).message


@pytest.mark.parametrize(
    ("type_", "bus", "room"), [("q35", "sata", 6), ("pc", "ide", 4), ("pc", "virtio", 10), ("microvm", "virtio", 11)]
)
def test_more_disks_than_there_is_room(type_: str, bus: str, room: int) -> None:
    """As many disks as a bus has room for are planned; one more is refused with the number."""

    def unit(count: int) -> Unit:
        disks = tuple(DiskSection(id=f"d{n}", path=f"{n}.raw", bus=bus) for n in range(count))
        return Unit(machine=MachineSection(type=type_), disks=disks)

    assert len(build(unit(room)).disks) == room
    assert f"room for {room}" in refusal(unit(room + 1)).message


def test_old_features_are_left_out() -> None:
    """What a QEMU does not have and nobody insists on is left out, with a warning where it is missed."""
    poor = evolve(
        CAPABILITIES,
        options={name: CAPABILITIES.options[name] for name in CAPABILITIES.options if name != "sandbox"},
        devices=CAPABILITIES.devices - {"pvpanic"},
        schema_features=frozenset(),
        objects=frozenset(),
    )
    plan = build(Unit(), capabilities=poor)
    assert "-sandbox" not in plan.arguments
    assert not any("free-page-reporting" in str(argument) for argument in plan.arguments)
    assert any("seccomp" in warning for warning in plan.warnings)
    assert any("pvpanic" in warning for warning in plan.warnings)
