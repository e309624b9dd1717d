"""Rules between keys, seen from the units that keep them; those that break them are in ``bad/``."""

from __future__ import annotations

import pytest

from qsup.unit.check import MAX_CHANNELS, MAX_SERIAL, RULES, check
from qsup.unit.effective import effective_bus, machine_family
from qsup.unit.load import read_text
from qsup.unit.model import Unit
from qsup.unit.sections.disks import DISK_BUSES, DiskSection
from qsup.unit.sections.machine import MachineSection
from qsup.unit.specifier import SpecifierContext


def errors(text: str, name: str = "web") -> list[str]:
    """What is wrong with a unit file of this text."""
    return [str(diagnostic) for diagnostic in read_text(name, text, SpecifierContext(name=name))[1]]


@pytest.mark.parametrize(
    "text",
    [
        "",
        '[service]\nrestart-delay = "1min"\nrestart-max-delay = "1min"\n',
        '[service]\nstart-limit-interval = "0s"\nstart-limit-burst = 0\n',
        "[cpu]\nvcpus = 2\nmax-vcpus = 2\n",
        '[cpu]\nvcpus = 2\npin = ["0", "1-2"]\nemulator-pin = "0"\n',
        '[cpu]\nvcpus = 2\nmax-vcpus = 8\npin = ["0-7"]\n',
        "[cpu]\nvcpus = 2\nmax-vcpus = 8\n[cpu.topology]\nsockets = 2\ncores = 2\nthreads = 2\n",
        "[cpu]\nvcpus = 8\n[cpu.topology]\ncores = 4\n",
        "[cpu]\nvcpus = 8\n[cpu.topology]\nsockets = 1\ndies = 2\ncores = 2\nthreads = 2\n",
        '[memory]\nsize = "1G"\nmax = "4G"\n',
        '[memory]\nsize = "1G"\nmax = "1G"\n',
        '[memory]\nsize = "1G"\nmax = "4G"\nslots = 4\nresize = "dimm"\n',
        '[memory]\nsize = "1001M"\nresize = "balloon"\n',
        '[memory]\nsize = "64M"\nmax = "1G"\n[limits]\nmemory = "97M"\npids = 81\nmemory-high = "96M"\n',
        '[limits]\nmemory = "0B"\nmemory-high = "1M"\ncpu = ""\npids = 0\nnofile = 64\n',
        '[limits]\ncpu = "12.5%"\nvcpu-cpu = "12.5%"\nemulator-cpu = "1%"\ncpu-weight = 10000\nrequire = true\n',
        '[limits]\nvcpu-cpu = "2"\nemulator-cpu = "10%"\n',
        '[limits]\npids = 89\n[[device]]\nid = "a"\ntype = "share"\npath = "b"\n',
        # what is in huge pages does not count
        '[memory]\nsize = "4G"\nhugepages = "2M"\nballoon = false\n[limits]\nmemory = "200M"\n',
        '[memory]\nhugepages = "1G"\nsize = "1G"\nmax = "2G"\nslots = 1\nresize = "dimm"\nballoon = false\n',
        '[memory]\nlock = true\nmax = "1G"\nslots = 1\nresize = "dimm"\nballoon = false\n',
        '[memory]\nhugepages = "2M"\nmax = "2G"\nballoon = false\nnodes = "0-1"\npolicy = "interleave"\n',
        '[cpu]\npin = "auto"\n[memory]\nnodes = "auto"\npolicy = "preferred"\n',
        '[machine]\ntype = "microvm"\n',
        '[machine]\nkernel = "k"\nfirmware = "uefi"\ninitrd = "i"\nappend = "a"\n',
        '[service]\nready = { port = 22 }\n[[nic]]\nid = "lan"\nforward = ["2222:22"]\n',
        '[service]\nready = { serial = "login" }\n[console]\ntype = "virtio"\n',
        '[[disk]]\nid = "cd"\ntype = "cdrom"\n',
        '[[disk]]\nid = "cd"\ntype = "cdrom"\nread-only = true\nbus = "sata"\npath = "a.iso"\n',
        '[[disk]]\nid = "d"\npath = "d"\naio = "native"\ncache = "directsync"\n',
        '[[disk]]\nid = "d"\npath = "d"\naio = "io_uring"\n',
        '[[disk]]\nid = "d"\npath = "d"\ndetect-zeroes = "unmap"\n',
        '[[disk]]\nid = "d"\npath = "d"\niothread = "d"\n[[iothread]]\nid = "d"\n[[iothread]]\nid = "e"\n',
        '[[disk]]\nid = "d"\npath = "d"\nread-only = true\n',
        '[[disk]]\nid = "d"\npath = "web.qcow2"\nformat = "qcow2"\n[[disk.backing]]\npath = "a.raw"\nformat = "raw"\n',
        '[[disk]]\nid = "d"\npath = "web.qcow2.raw"\n',
        '[[disk]]\nid = "d"\npath = "d"\nbus = "scsi"\nserial = "123456789012345678901234567890123456"\n',
        '[[disk]]\nid = "a"\npath = "d"\nshareable = true\n[[disk]]\nid = "b"\npath = "d"\nshareable = true\n',
        '[[disk]]\nid = "a"\npath = "d"\nread-only = true\n[[disk]]\nid = "b"\npath = "d"\ntype = "cdrom"\n',
        '[[nic]]\nid = "a"\ntype = "tap"\nbridge = "br0"\n[[nic]]\nid = "b"\ntype = "bridge"\nbridge = "br0"\n',
        '[[nic]]\nid = "a"\nforward = ["53:53", "53:53/udp", "127.0.0.2:53:53"]\n',
        '[[nic]]\nid = "a"\nmac = "00:00:00:00:00:02"\n[[nic]]\nid = "b"\nmac = ""\n[[nic]]\nid = "c"\nmac = ""\n',
        '[display]\ntype = "vnc"\n',
        '[machine]\ntype = "microvm"\n[[disk]]\nid = "cd"\ntype = "cdrom"\n[display]\nvideo = "none"\n',
        '[machine]\ntype = "ubuntu-q35"\nfirmware = "uefi"\n[display]\ntype = "vnc"\n',
        '[machine]\ntype = "pc-i440fx-jammy-hpb"\n[[disk]]\nid = "d"\npath = "d"\nbus = "ide"\n',
        '[[disk]]\nid = "a"\npath = "./a:b"\n[[disk]]\nid = "b"\npath = "a/../../b"\n',
        '[[disk]]\nid = "a"\ntype = "cdrom"\n[[disk]]\nid = "b"\npath = "."\n',
        '[unit]\nafter = ["db"]\nrequires = ["db"]\nconflicts = ["old"]\n',
        '[[device]]\nid = "a"\ntype = "rng"\nmax-bytes = "1K"\naction = "reset"\n',
        '[[device]]\nid = "a"\ntype = "serial"\nname = "x"\n[[device]]\nid = "x"\ntype = "serial"\nname = "a"\n',
        '[agent]\nenabled = false\n[[device]]\nid = "a"\ntype = "serial"\nname = "org.qemu.guest_agent.0"\n',
    ],
)
def test_units_without_contradictions(text: str) -> None:
    """What is possible is not refused."""
    assert errors(text) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[cpu]\nvcpus = 0\nmax-vcpus = 4096\n[cpu.topology]\ncores = 3\n", ["vcpus: must be"]),
        ('[service]\nready = "agent"\n[agent]\nenabled = 0\n', ["enabled: expected true"]),
        ('[service]\nready = { port = 22 }\n[[nic]]\nid = "lan"\nforward = ["x"]\n', ["forward: entry 1"]),
        ('[service]\nready = { port = 22 }\n[[nic]]\nforward = ["22:22"]\n', ["the key 'id' is missing"]),
        ('[[disk]]\nid = "d"\npath = ""\ntype = "cd-rom"\n', ["type: must be disk or cdrom"]),
        ('[[nic]]\nid = "lan"\ntype = "tap"\nbridge = "a/b"\n', ["bridge: 'a/b' is not"]),
    ],
)
def test_nothing_is_concluded_from_what_could_not_be_read(text: str, expected: list[str]) -> None:
    """A wrong value is reported once; no contradiction is seen in the default that stands in for it."""
    found = errors(text)
    assert len(found) == len(expected)
    assert all(part in message for part, message in zip(expected, found, strict=True))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[service]\nrestart-max-delay = "500ms"\n', 2),
        ('[service]\n\nrestart-delay = "2min"\n', 3),
        ('[service]\nstart-limit-interval = "0s"\n', 2),
        ('[service]\nstart-limit-interval = "0s"\nstart-limit-burst = 3\n', 3),
        ("[cpu]\nmax-vcpus = 1\nvcpus = 2\n", 2),
        ('\n[[disk]]\nid = "d"\n', 2),
        ('\n[[disk]]\nid = "d"\ntype = "disk"\n', 4),
        ('[machine]\ntype = "microvm"\n[[disk]]\nid = "d"\npath = "p"\nbus = "sata"\n', 6),
        ('[[disk]]\nid = "d"\npath = "p"\nbus = "ide"\n', 4),
    ],
)
def test_the_key_that_was_written_is_blamed(text: str, line: int) -> None:
    """A contradiction is placed at a key that the file holds, not at a default."""
    (message,) = errors(text)
    assert message.startswith(f"web.toml:{line}: ")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[[disk]]\nid = "d"\npath = "web.qcow2"\n', "3: disk.d.path"),
        ('[[disk]]\nid = "d"\nformat = "raw"\npath = "/images/WEB.QCOW"\n', "4: disk.d.path"),
        ('[[disk]]\nid = "d"\npath = "web.qcow2"\nread-only = true\n', "3: disk.d.path"),
        (
            '[[disk]]\nid = "d"\npath = "d"\nformat = "qcow2"\n[[disk.backing]]\npath = "base.qcow2"\nformat = "raw"\n',
            "6: disk.d.backing.1.path",
        ),
    ],
)
def test_a_forgotten_format_is_seen_by_the_name(text: str, line: str) -> None:
    """A guest that writes raw over a qcow2 image destroys it, so a name that says qcow2 is believed."""
    assert errors(text) == [f'web.toml:{line}: is named as qcow2 but would be used as raw; say format = "qcow2"']


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        ('size = "2G"\nmax = "1G"', "max (1G) is less than size (2G)"),
        ('size = "513M"\nmax = "1G"', "size (513M) is not a multiple of 2M"),
        ('max = "1025M"', "max (1025M) is not a multiple of 2M"),
        ('resize = "virtio-mem"', "virtio-mem needs max"),
        ('resize = "dimm"\nslots = 1', "dimm needs max"),
        ('resize = "dimm"\nmax = "1G"', "dimm needs slots"),
        ('slots = 1\nmax = "1G"', "slots are for memory modules (dimm) alone"),
        ('resize = "balloon"\nmax = "1G"\nsize = "2G"', "and a balloon gives it no more"),
        ('resize = "balloon"\nballoon = false', "and the VM has none"),
        ('max = "1G"\nmin = "255M"', "min (255M) is not a multiple of 2M"),
        ('min = "256M"', "min is for virtio-mem alone"),
        ('max = "1G"\n[machine]\ntype = "microvm"', "a microvm machine takes no memory while it runs"),
    ],
)
def test_memory_that_cannot_change_so(memory: str, words: str) -> None:
    """Each way has its needs, and nothing is named that means nothing."""
    (message,) = errors(f"[memory]\n{memory}\n")
    assert words in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[[disk]]\nid = "d"\npath = "d"\niothread = "fast"\n',
            "4: disk.d.iothread: there is no iothread 'fast'; add an [[iothread]] with that id",
        ),
        (
            '[[disk]]\nid = "d"\npath = "d"\niothread = "fats"\n[[iothread]]\nid = "fast"\n',
            "4: disk.d.iothread: there is no iothread 'fats'; did you mean 'fast'?",
        ),
        (
            '[[disk]]\nid = "d"\npath = "d"\niothread = "x"\n[[iothread]]\nid = "aa"\n[[iothread]]\nid = "bb"\n',
            "4: disk.d.iothread: there is no iothread 'x'; there is aa and bb",
        ),
        (
            '[[disk]]\nid = "d"\npath = "d"\niothread = "fast"\n[[iothread]]\nid = "fast"\npresent = false\n',
            "4: disk.d.iothread: there is no iothread 'fast'; add an [[iothread]] with that id",
        ),
        (
            '[[disk]]\nid = "d"\npath = "d"\nbus = "scsi"\niothread = "fast"\n[[iothread]]\nid = "fast"\n',
            "5: disk.d.iothread: an iothread does the work of a disk on virtio, not on scsi",
        ),
    ],
)
def test_a_disk_names_an_iothread_that_can_work_for_it(text: str, message: str) -> None:
    """One that the VM has, and on the bus where a disk has one of its own."""
    assert errors(text) == [f"web.toml:{message}"]


@pytest.mark.parametrize(
    ("memory", "key", "words"),
    [
        ("prealloc = true", "prealloc", "prealloc keeps memory that a balloon gives back"),
        ("lock = true", "lock", "lock keeps memory that a balloon gives back"),
        ('hugepages = "2M"', "hugepages", "say balloon = false"),
        ('lock = true\nmax = "1G"\nballoon = false', "lock", "by virtio-mem cannot be locked; dimm can"),
        ('hugepages = "1G"\nsize = "1G"\nmax = "2G"\nballoon = false', "hugepages", "less than a page of 1G"),
        ('hugepages = "2M"\nsize = "63M"\nballoon = false', "size", "size (63M) is not a multiple of 2M"),
        ('nodes = "auto"', "nodes", 'say [cpu] pin = "auto", or name the nodes'),
        ('nodes = "auto"\n[cpu]\npin = ["0"]', "nodes", "no CPUs are chosen"),
        ('nodes = "3-1"', "nodes", "the range 3-1 runs backwards"),
        ('nodes = "first"', "nodes", "'first' is not a node set"),
        ('policy = "default"', "policy", "must be bind, preferred or interleave"),
    ],
)
def test_memory_that_cannot_be_kept_so(memory: str, key: str, words: str) -> None:
    """Each is blamed on a key that is there."""
    (message,) = errors(f"[memory]\n{memory}\n")
    assert f": memory.{key}: " in message and words in message


@pytest.mark.parametrize("machine", ["virt", "isapc", "none", "pc-q36", "microvm-x", "xenfv", "s390-ccw-virtio"])
def test_a_machine_that_is_never_planned_is_refused(machine: str) -> None:
    """Whatever QEMU has, a machine type of another family is an error of the unit."""
    (message,) = errors(f'[machine]\ntype = "{machine}"\n')
    assert message.startswith(f"web.toml:2: machine.type: qsup plans q35, pc and microvm machines, and '{machine}' is")


@pytest.mark.parametrize(
    "display", ['type = "vnc"', 'video = "std"', 'video = "virtio"', 'type = "vnc"\nvideo = "qxl"']
)
def test_a_microvm_has_no_graphics(display: str) -> None:
    """No card and no display, given or by default, can be planned for a microvm."""
    (message,) = errors(f'[machine]\ntype = "microvm"\n[display]\n{display}\n')
    assert "microvm has no graphics, so it cannot have" in message


@pytest.mark.parametrize(
    ("machine", "family", "cdrom_bus"),
    [
        ("q35", "q35", "sata"),
        ("pc-q35-7.2", "q35", "sata"),
        ("pc", "pc", "ide"),
        ("pc-i440fx-10.0", "pc", "ide"),
        ("microvm", "microvm", "scsi"),
        ("ubuntu-q35", "q35", "sata"),
        ("ubuntu", "pc", "ide"),
        ("virt", "", "scsi"),
        ("pc-q36", "", "scsi"),
    ],
)
def test_effective_bus(machine: str, family: str, cdrom_bus: str) -> None:
    """A disk is on virtio unless it says otherwise; a CD drive is on what the machine has for one."""
    unit = Unit(machine=MachineSection(type=machine))
    assert machine_family(machine) == family
    assert effective_bus(unit, DiskSection(id="d", type="cdrom")) == cdrom_bus
    assert effective_bus(unit, DiskSection(id="d")) == "virtio"
    assert effective_bus(unit, DiskSection(id="d", type="cdrom", bus="usb")) == "usb"


def test_every_bus_has_a_bound_for_serials() -> None:
    """The table of serial numbers' lengths covers every bus that a disk can name."""
    assert MAX_SERIAL.keys() == set(DISK_BUSES)


def test_every_rule_has_its_sentence() -> None:
    """Each rule's docstring is one line of the reference; a unit that says nothing breaks none."""
    assert check(Unit(), "web") == []
    assert all(rule.__doc__ and rule.__doc__.endswith(".") and "\n" not in rule.__doc__ for rule in RULES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('id = "a"\ntype = "rng"\naction = "pause"\n', "web.toml:4: device.a.action: rng has no action"),
        ('id = "a"\ntype = "watchdog"\nname = "x"\n', "web.toml:4: device.a.name: watchdog has no name"),
        (
            'id = "a"\ntype = "watchdog"\n[[device]]\nid = "b"\ntype = "watchdog"\n',
            "web.toml:6: device.b.type: device 'a' is a watchdog already: a VM has one",
        ),
        (
            'id = "a"\ntype = "serial"\n[[device]]\nid = "b"\ntype = "serial"\nname = "a"\n',
            "web.toml:7: device.b.name: the name 'a' is that of device 'a'",
        ),
        ('id = "a"\ntype = "pci"\n', "web.toml:3: device.a.type: a pci device needs address"),
        ('id = "a"\ntype = "usb"\n', "web.toml:3: device.a.type: a usb device needs identity or port"),
        (
            'id = "a"\ntype = "pci"\naddress = "03:00.0"\n',
            "web.toml:4: device.a.address: '03:00.0' is not a valid PCI address: domain, bus, device and function, "
            "such as 0000:03:00.0",
        ),
        (
            'id = "a"\ntype = "usb"\nport = "1-2"\n[[device]]\nid = "b"\ntype = "usb"\nport = "1-2"\n',
            "web.toml:8: device.b.port: 1-2 is device 'a' already",
        ),
        (
            'id = "a"\ntype = "vhost-user"\nsocket = "x"\n',
            "web.toml:4: device.a.socket: a vhost-user device needs a socket, by its absolute path",
        ),
        ('id = "a"\ntype = "share"\n', "web.toml:3: device.a.type: a share needs a path"),
        ('id = "a"\ntype = "share"\npath = "../b"\n', "web.toml:4: device.a.path: leaves its pool by '..'"),
        (
            f'id = "a"\ntype = "share"\npath = "b"\ntag = "{37 * "t"}"\n',
            "web.toml:5: device.a.tag: a tag has at most 36 characters, not 37",
        ),
        (
            'id = "a"\ntype = "share"\npath = "b"\n[[device]]\nid = "b"\ntype = "share"\npath = "b"\ntag = "a"\n',
            "web.toml:9: device.b.tag: the tag 'a' is that of device 'a'",
        ),
        (
            'id = "a"\ntype = "serial"\nname = "org.qemu.guest_agent.0"\n',
            "web.toml:4: device.a.name: the name 'org.qemu.guest_agent.0' is that of the guest agent",
        ),
    ],
)
def test_devices_have_what_their_types_have(text: str, expected: str) -> None:
    """A key of another type, a second watchdog, and a channel that the guest could not tell from another."""
    assert errors(f"[[device]]\n{text}") == [expected]


def test_channels_are_counted() -> None:
    """A controller has only so many ports."""
    channels = "".join(f'[[device]]\nid = "c{number}"\ntype = "serial"\n' for number in range(MAX_CHANNELS))
    assert errors(channels) == []
    (found,) = errors(f'{channels}[[device]]\nid = "more"\ntype = "serial"\n')
    assert f"at most {MAX_CHANNELS} serial channels, not {MAX_CHANNELS + 1}" in found


ENTRIES = {
    "virtio": '[[disk]]\nid = "{id}"\npath = "{id}.img"\nbus = "virtio"\n',
    "nvme": '[[disk]]\nid = "{id}"\npath = "{id}.img"\nbus = "nvme"\n',
    "usb": '[[disk]]\nid = "{id}"\npath = "{id}.img"\nbus = "usb"\n',
    "e1000": '[[nic]]\nid = "{id}"\nmodel = "e1000"\n',
    "nic": '[[nic]]\nid = "{id}"\n',
    "rng": '[[device]]\nid = "{id}"\ntype = "rng"\n',
}


@pytest.mark.parametrize(
    ("machine", "entry", "room", "words"),
    [
        ("q35", "e1000", 4, "e1000 and rtl8139 NICs, not 5; virtio and e1000e have room for more"),
        ("q35", "usb", 14, "disks on usb, not 15; scsi has room for more"),
        ("q35", "nic", 32, "NICs, not 33"),
        ("pc", "e1000", 8, "NICs, not 9"),
        ("pc", "nvme", 10, "disks on virtio and nvme, not 11; scsi has room for more"),
        ("pc", "rng", 4, "further devices, not 5"),
        ("microvm", "virtio", 11, "disks on virtio and nvme, not 12; scsi has room for more"),
    ],
)
def test_there_is_no_more_than_a_machine_has_room_for(machine: str, entry: str, room: int, words: str) -> None:
    """The first that has no room is blamed, whatever else there is."""
    other = '[[device]]\nid = "port"\ntype = "serial"\n'
    fits = f'[machine]\ntype = "{machine}"\n{other}' + "".join(
        ENTRIES[entry].format(id=f"d{number}") for number in range(room)
    )
    assert errors(fits) == []
    (found,) = errors(fits + ENTRIES[entry].format(id="more"))
    assert ".more." in found
    assert f"a {machine} machine has room for {room} {words}" in found
