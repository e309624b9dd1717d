"""What holds for every plan, whatever the unit."""

from __future__ import annotations

import itertools
import json
import re

from attrs import evolve
from hypothesis import assume, given
from hypothesis import strategies as st

from qsup.plan.identity import NODE_NAME_LIMIT, derive_mac, node_name
from qsup.plan.spec import Identity, Plan
from qsup.unit.check import check
from qsup.unit.model import Unit
from qsup.unit.sections.devices import AgentSection, ConsoleSection, DeviceSection, DisplaySection, NicSection
from qsup.unit.sections.disks import BackingSection, DiskSection
from qsup.unit.sections.machine import MachineSection
from qsup.unit.sections.memory import MemorySection
from tests.plan import goldens
from tests.plan.building import build

#: A mark in every text that a user chooses freely: where it shows up in an argument, a user's text is.
MARK = "Zq"
# what would be syntax somewhere: commas, quotes, equal signs, JSON
TEXTS = st.sampled_from([",readonly=on", '"},{"', "=", " ", "'\\", "%s", "äé☃", "-", "", ",,"]).map(
    lambda text: f",{MARK}={text}"
)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,47}", fullmatch=True)
#: Ids that look alike, or like what plans call things themselves.
IDS = ("root", "0", "disk", "file-root", "serial", "usb", "a.b_c-d", "n" * 48, "n" * 47 + "m", "qmp", "firmware-code")
UUIDS = st.uuids().map(str)


@st.composite
def disks(draw: st.DrawFn, id_: str) -> DiskSection:
    """A disk without contradictions."""
    is_disk = draw(st.booleans())
    format_ = draw(st.sampled_from(["raw", "qcow2"]))
    below = st.builds(BackingSection, path=TEXTS, format=st.just("qcow2"))
    return DiskSection(
        id=id_,
        path=draw(TEXTS) + id_,
        format=format_,
        type="disk" if is_disk else "cdrom",
        bus=draw(st.sampled_from(["virtio", "scsi", "nvme", "usb"] if is_disk else ["scsi", "usb"])),
        cache=draw(st.sampled_from(["writeback", "none", "writethrough", "directsync", "unsafe"])),
        read_only=draw(st.booleans()),
        serial=draw(st.one_of(st.just(""), TEXTS)),
        backing=tuple(draw(st.lists(below, max_size=2, unique_by=lambda each: each.path)))
        if format_ == "qcow2"
        else (),
    )


#: One of each type that has a text of a user's, and of those that take a slot or none.
DEVICES = (
    DeviceSection(id="files", type="share", path=f"{MARK},b"),
    DeviceSection(id="channel", type="serial"),
    DeviceSection(id="dog", type="watchdog", action="pause"),
    DeviceSection(id="stick", type="usb", port="1-2"),
    DeviceSection(id="card", type="pci", address="0000:03:00.0"),
    DeviceSection(id="program", type="vhost-user", socket=f"/{MARK},b", model="net"),
)


@st.composite
def units(draw: st.DrawFn) -> Unit:
    """A unit that is free of contradictions."""
    ids = draw(st.lists(st.sampled_from(IDS), unique=True, max_size=8))
    number = draw(st.integers(0, len(ids)))
    return Unit(
        machine=MachineSection(
            type=draw(st.sampled_from(["q35", "pc", "pc-q35-7.0"])),
            firmware=draw(st.one_of(st.sampled_from(["bios", "uefi"]), TEXTS)),
            kernel=draw(TEXTS),
            initrd=draw(TEXTS),
            append=draw(TEXTS),
            hotplug_slots=draw(st.integers(0, 32)),
        ),
        memory=MemorySection(size=draw(st.integers(1 << 20, 1 << 32)), balloon=draw(st.booleans())),
        disks=tuple(draw(disks(each)) for each in ids[:number]),
        nics=tuple(
            NicSection(id=each, model=draw(st.sampled_from(["virtio", "e1000", "e1000e", "rtl8139"])))
            for each in ids[number:]
        ),
        devices=draw(st.sampled_from([(), (DeviceSection(id="entropy", type="rng"),), DEVICES])),
        console=ConsoleSection(type=draw(st.sampled_from(["serial", "virtio", "none"]))),
        agent=AgentSection(enabled=draw(st.booleans())),
        display=DisplaySection(type=draw(st.sampled_from(["none", "vnc"]))),
    )


def plan_of(unit: Unit) -> Plan:
    """The plan of a unit that is free of contradictions, and has room on its board."""
    found = check(unit)
    assume(not any("room for" in finding.message for finding in found))
    assert not found
    return build(unit)


@given(units())
def test_no_text_of_a_user_becomes_an_option(unit: Unit) -> None:
    """A user's text stands whole in JSON or alone in an argument of its own; no comma of it separates anything."""
    plan = plan_of(unit)
    alone = {unit.machine.append}
    for argument in map(str, plan.command(goldens.numbers(plan), {file.name: "/staged" for file in plan.files})):
        if MARK in argument and argument not in alone:
            texts = set(strings(json.loads(argument)))
            assert {text for text in texts if MARK in text} <= {disk.serial for disk in unit.disks}


@given(st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20))
def test_name_is_escaped(name: str) -> None:
    """Whatever a VM's name is, QEMU reads it back as it was: commas are doubled."""
    plan = build(Unit(), identity=Identity(name=name, uuid=goldens.UUID))
    value = str(plan.arguments[plan.arguments.index("-name") + 1])
    guest, *others = split_options(value)
    assert guest == f"guest={name}"
    assert others == ["debug-threads=on"]


def split_options(text: str) -> list[str]:
    """A comma-separated option as QEMU reads it (``get_opt_value`` in util/qemu-option.c)."""
    return [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]


@given(units())
def test_names_and_places_are_unique(unit: Unit) -> None:
    """No two devices of a plan share an id or a place, no two nodes a name, and node names fit QEMU's bound."""
    plan = plan_of(unit)
    devices = [json.loads(str(value)) for value in values(plan, "-device")]
    nodes = [json.loads(str(value))["node-name"] for value in values(plan, "-blockdev")]
    places = [(device["bus"], device["addr"]) for device in devices if "addr" in device]
    ids = [device["id"] for device in devices]
    for found in (ids, nodes, places, [request.name for request in plan.fds]):
        assert len(set(found)) == len(found)
    assert all(len(node) <= NODE_NAME_LIMIT for node in nodes)
    chassis = [device["chassis"] for device in devices if "chassis" in device]
    assert len(set(chassis)) == len(chassis) and all(0 < number < 256 for number in chassis)


@given(units(), disks("another"))
def test_another_disk_moves_no_nic(unit: Unit, disk: DiskSection) -> None:
    """A disk added to a unit leaves every NIC where it was, with the MAC address it had."""
    before, after = plan_of(unit), plan_of(evolve(unit, disks=(*unit.disks, disk)))
    assert before.nics == after.nics
    assert nic_places(before) == nic_places(after)


def nic_places(plan: Plan) -> list[tuple[str, str]]:
    """Bus and address of each NIC and of the ports above them."""
    devices = [json.loads(str(value)) for value in values(plan, "-device")]
    return [(each["bus"], each.get("addr", "")) for each in devices if re.match("nic-|port-nic-", each["id"])]


@given(UUIDS, NAMES)
def test_derived_macs_are_stable_and_proper(uuid: str, nic: str) -> None:
    """A derived MAC address is the same each time, locally administered, and nobody's group address."""
    mac = derive_mac(uuid, nic)
    assert mac == derive_mac(uuid.upper(), nic)
    assert re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", mac)
    assert int(mac[:2], 16) & 0b11 == 0b10


@given(UUIDS, UUIDS, NAMES, NAMES)
def test_derived_macs_differ(uuid: str, other: str, nic: str, second: str) -> None:
    """NICs of one VM, and NICs of the same id of two VMs, have different MAC addresses."""
    assume(uuid != other and nic != second)
    assert len({derive_mac(uuid, nic), derive_mac(uuid, second), derive_mac(other, nic)}) == 3


def test_derived_mac_is_known() -> None:
    """The derivation never changes: guests know their networks by it."""
    assert derive_mac(goldens.UUID, "lan") == "52:45:d2:45:be:85"


@given(NAMES, NAMES, st.sampled_from(["disk", "file", "base1", "basefile12"]))
def test_node_names_are_bounded_and_distinct(one: str, other: str, kind: str) -> None:
    """Node names stay within QEMU's bound and differ where the disks do."""
    assert len(node_name(kind, one)) <= NODE_NAME_LIMIT
    assert re.fullmatch(r"[a-z][A-Za-z0-9_.-]*", node_name(kind, one))
    assert (node_name(kind, one) == node_name(kind, other)) == (one == other)
    assert node_name("file", one) != node_name("disk", other)


@given(units())
def test_planning_is_a_function(unit: Unit) -> None:
    """The same unit gives the same plan."""
    assert plan_of(unit) == plan_of(unit)


def values(plan: Plan, name: str) -> list[object]:
    """The values of an option."""
    return [value for option, value in itertools.pairwise(plan.arguments) if option == name]


def strings(value: object) -> list[str]:
    """Every string in a JSON value, keys included."""
    if isinstance(value, dict):
        return [*value, *(text for item in value.values() for text in strings(item))]
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []
