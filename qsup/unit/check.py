"""The rules between keys: what each key alone allows, but a unit as a whole cannot mean.

Decides: which combinations are contradictions on every host and every QEMU.
Must not: look at the host, at QEMU's capabilities or at other units; what depends on those is `qsup.plan`'s to refuse.

Each rule is a function in `RULES` that yields one `Finding` per contradiction; its docstring is its line in the unit
reference. Long because it is the list of all rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from qsup.unit.effective import (
    channel_name,
    effective_bus,
    effective_max_vcpus,
    effective_resize,
    effective_video,
    huge_page,
    machine_family,
    mount_tag,
    shares_memory,
)
from qsup.unit.families import BUS_ROOM, FAMILIES, needs_slot, nic_kind, unplanned
from qsup.unit.fence import contradictions as fence_contradictions
from qsup.unit.guestnodes import contradictions as guest_node_contradictions
from qsup.unit.imagepath import PROTOCOL_REFUSAL, begins_outside, reads_as_protocol, same_file
from qsup.unit.keys import keys_of
from qsup.unit.kinds import AUTO
from qsup.unit.model import Unit
from qsup.unit.needs import FILES_NEEDED, threads_needed, too_little_memory
from qsup.unit.quantity import alternatives, did_you_mean, format_cpu_quota, format_duration, format_size, shown
from qsup.unit.sections.devices import AGENT_PORT, DEVICE_KEYS, DeviceSection, NicSection
from qsup.unit.sections.disks import DISK_BUSES, BackingSection, DiskSection
from qsup.unit.sections.machine import UEFI_FIRMWARE
from qsup.unit.sections.memory import MEMORY_BLOCK
from qsup.unit.throttle import contradictions
from qsup.unit.tree import Key

#: The longest serial number the guest can be shown whole, by bus (virtio-blk: VIRTIO_BLK_ID_BYTES, ATA and NVMe: 20).
MAX_SERIAL = {"virtio": 20, "nvme": 20, "sata": 20, "ide": 20, "scsi": 36, "usb": 36}
#: The longest tag of a share (struct virtio_fs_config in linux/virtio_fs.h).
MAX_TAG = 36
#: Of the 31 ports of a virtio-serial controller the first is kept for a console and one is the agent's
#: (VIRTIO_PCI_QUEUE_MAX / 2 - 1 in QEMU's source).
MAX_CHANNELS = 29
# a raw image can have any name; one named so is far more likely a forgotten format
_QCOW2_SUFFIXES = (".qcow2", ".qcow")


class Finding(NamedTuple):
    """One contradiction.

    Args:
        message: what is wrong, and what to do.
        keys: the keys it rests on. The first of them that the unit's files hold is blamed.
    """

    message: str
    keys: Sequence[Key]


def check(unit: Unit, name: str = "") -> list[Finding]:
    """Every contradiction in a unit.

    Args:
        unit: a unit whose values are each of their kind.
        name: the VM's name, against which ``after`` and its like are checked.
    """
    return [*(finding for rule in RULES for finding in rule(unit)), *relations(unit, name)]


def relations(unit: Unit, name: str) -> Iterator[Finding]:
    """A VM does not name itself, and names no other both `after` and `before`, or both in `conflicts` and wanted."""
    section = unit.unit
    named = {
        "after": section.after,
        "before": section.before,
        "requires": section.requires,
        "wants": section.wants,
        "conflicts": section.conflicts,
    }
    for relation, others in named.items():
        if name in others:
            yield Finding("names the VM itself", [("unit", relation)])
    for one, other in (("after", "before"), ("conflicts", "requires"), ("conflicts", "wants")):
        for both in sorted(set(named[one]) & set(named[other])):
            yield Finding(f"{both!r} is in both {one} and {other}", [("unit", one), ("unit", other)])


def _service(unit: Unit) -> Iterator[Finding]:
    """`restart-max-delay` is not shorter than `restart-delay`; `stop-methods` names at least one, and none twice."""
    service = unit.service
    if service.restart_max_delay < service.restart_delay:
        longest, first = format_duration(service.restart_max_delay), format_duration(service.restart_delay)
        message = f"restart-max-delay ({longest}) is shorter than restart-delay ({first})"
        yield Finding(message, [("service", "restart-max-delay"), ("service", "restart-delay")])
    if not service.stop_methods:
        yield Finding("must name at least one method", [("service", "stop-methods")])
    for method, count in Counter(service.stop_methods).items():
        if count > 1:
            yield Finding(f"{method!r} is there {count} times", [("service", "stop-methods")])


def _start_limit(unit: Unit) -> Iterator[Finding]:
    """`start-limit-burst` comes with a `start-limit-interval` that is not zero, unless it is 0."""
    service = unit.service
    if service.start_limit_burst and not service.start_limit_interval:
        burst = f"start-limit-burst ({service.start_limit_burst}) within a start-limit-interval of 0s limits nothing"
        message = f"{burst}; for no limit, say start-limit-burst = 0"
        yield Finding(message, [("service", "start-limit-burst"), ("service", "start-limit-interval")])


def _ready(unit: Unit) -> Iterator[Finding]:
    """`ready` waits only for what the VM has: an agent, a console, a TCP forward to that port."""
    ready, key = unit.service.ready, ("service", "ready")
    if ready.on == "agent" and not unit.agent.enabled:
        yield Finding("waits for the guest agent, but the agent is disabled", [key, ("agent", "enabled")])
    if ready.on == "serial" and unit.console.type == "none":
        yield Finding("waits for text on the console, but the console's type is none", [key, ("console", "type")])
    if ready.on == "port" and not any(
        forward.protocol == "tcp" and forward.guest_port == ready.port for nic in unit.nics for forward in nic.forward
    ):
        yield Finding(f"waits for TCP port {ready.port} of the guest, but no NIC forwards it", [key, ("nic",)])


def _machine(unit: Unit) -> Iterator[Finding]:
    """A machine's `type` is one of `q35`, `pc` or `microvm`, or a version of those; `microvm` has no UEFI."""
    machine, name = unit.machine, machine_family(unit.machine.type)
    if not name:
        message = f"{unplanned(machine.type)}{did_you_mean(machine.type, FAMILIES)}"
        yield Finding(message, [("machine", "type")])
    elif machine.firmware in UEFI_FIRMWARE and not FAMILIES[name].has_flash:
        message = f"{name} has no flash memory for UEFI; use bios or the path of a ROM file"
        yield Finding(message, [("machine", "firmware"), ("machine", "type")])


def _boot(unit: Unit) -> Iterator[Finding]:
    """`initrd` and `append` come with a `kernel`."""
    machine = unit.machine
    for name, value in (("initrd", machine.initrd), ("append", machine.append)):
        if value and not machine.kernel:
            yield Finding(f"{name} needs a kernel", [("machine", name), ("machine", "kernel")])


def _processors(unit: Unit) -> Iterator[Finding]:
    """`max-vcpus` is not less than `vcpus`; the topology makes up exactly that many."""
    cpu, topology = unit.cpu, unit.cpu.topology
    counts = [("cpu", "max-vcpus"), ("cpu", "vcpus")]
    if 0 < cpu.max_vcpus < cpu.vcpus:
        yield Finding(f"max-vcpus ({cpu.max_vcpus}) is less than vcpus ({cpu.vcpus})", counts)
        return
    levels = (topology.sockets, topology.dies, topology.cores, topology.threads)
    product, most = 1, effective_max_vcpus(unit)
    for level in levels:
        product *= level or 1
    # QEMU works out one level that is left open, dies apart, so that the product fits (hw/core/machine-smp.c)
    left_open = 0 in (topology.sockets, topology.cores, topology.threads)
    if most % product if left_open else most != product:
        rule = "do not divide" if left_open else "do not make up"
        message = f"sockets x dies x cores x threads = {product} {rule} {most} vCPUs (max-vcpus, else vcpus)"
        yield Finding(message, [("cpu", "topology"), *counts])


def _pins(unit: Unit) -> Iterator[Finding]:
    """`pin` has a CPU set for each vCPU up to `max-vcpus`, or one for all; `exclusive` needs it."""
    pin, most = unit.cpu.pin, effective_max_vcpus(unit)
    if unit.cpu.exclusive and not pin:
        yield Finding('exclusive needs pin, such as "auto"', [("cpu", "exclusive"), ("cpu", "pin")])
    pins = 1 if isinstance(pin, str) else len(pin)
    if pins not in (0, 1, most):
        message = f"pin has {pins} CPU sets for {most} vCPUs (max-vcpus, else vcpus); give one for each, or one for all"
        yield Finding(message, [("cpu", "pin"), ("cpu", "max-vcpus"), ("cpu", "vcpus")])


def _memory(unit: Unit) -> Iterator[Finding]:
    """`max` is not less than `size`, `resize` has what it needs; what comes does so by 2M, and to no `microvm`."""
    memory, way, most = unit.memory, effective_resize(unit), ("memory", "max")
    if memory.max and way != "balloon":
        family = machine_family(unit.machine.type)
        if family and not FAMILIES[family].has_memory_slots:
            yield Finding(f"a {family} machine takes no memory while it runs", [most, ("machine", "type")])
        for name, value in (("size", memory.size), ("max", memory.max), ("min", memory.min)):
            if value % MEMORY_BLOCK:
                message = f"{name} ({format_size(value)}) is not a multiple of {format_size(MEMORY_BLOCK)}"
                yield Finding(message, [("memory", name), most])
    if 0 < memory.max < memory.size:
        why = ", and a balloon gives it no more" if way == "balloon" else ""
        sizes = f"max ({format_size(memory.max)}) is less than size ({format_size(memory.size)}){why}"
        yield Finding(sizes, [most, ("memory", "size")])
    keys = [("memory", "resize"), most]
    if memory.min and way != "virtio-mem":
        yield Finding("min is for virtio-mem alone, which max gives a VM", [("memory", "min"), *keys])
    if way in ("virtio-mem", "dimm") and not memory.max:
        yield Finding(f"{way} needs max, the most memory it can have", keys)
    if way == "balloon" and not memory.balloon:
        yield Finding("resize is balloon, and the VM has none", [*keys, ("memory", "balloon")])
    if (way == "dimm") != bool(memory.slots):
        message = "dimm needs slots for its modules" if way == "dimm" else "slots are for memory modules (dimm) alone"
        yield Finding(message, [("memory", "slots"), *keys])


def _limits(unit: Unit) -> Iterator[Finding]:
    """`[limits]` leave QEMU the memory and threads it needs; no part of `cpu` or `memory` is more than the whole."""
    limits = unit.limits
    own = ("limits", "memory")
    if why := too_little_memory(unit, unit.machine.accel):
        yield Finding(why, [own, ("memory", "size"), ("memory", "max"), ("cpu", "max-vcpus"), ("cpu", "vcpus")])
    if 0 < limits.memory < limits.memory_high:
        message = f"memory-high ({format_size(limits.memory_high)}) is more than memory ({format_size(limits.memory)})"
        yield Finding(f"{message}, and would never be reached", [("limits", "memory-high"), own])
    for name, part in (("vcpu-cpu", limits.vcpu_cpu), ("emulator-cpu", limits.emulator_cpu)):
        if 0 < limits.cpu < part:
            message = f"{name} ({format_cpu_quota(part)}) is more than cpu ({format_cpu_quota(limits.cpu)}), the whole"
            yield Finding(message, [("limits", name), ("limits", "cpu")])
    threads = threads_needed(unit)
    if 0 < limits.pids < threads.total:
        need = f"the {threads.total} threads that QEMU may start: {threads.words}"
        keys = [("limits", "pids"), ("cpu", "max-vcpus"), ("cpu", "vcpus")]
        yield Finding(f"pids ({limits.pids}) is less than {need}", keys)
    if 0 < limits.nofile < FILES_NEEDED:
        message = f"nofile ({limits.nofile}) is less than the {FILES_NEEDED} files that any QEMU has open"
        yield Finding(message, [("limits", "nofile")])


def _fence(unit: Unit) -> Iterator[Finding]:
    """CPUs that pins name are among `cpuset-cpus`, nodes among `cpuset-mems`."""
    for message, keys in fence_contradictions(unit):
        yield Finding(message, keys)


def _memory_placement(unit: Unit) -> Iterator[Finding]:
    """Memory taken at once has no `balloon`, what is locked no virtio-mem; it is whole pages; `auto` follows `pin`."""
    memory, way, page = unit.memory, effective_resize(unit), huge_page(unit)
    held = {"hugepages": memory.hugepages, "prealloc": memory.prealloc, "lock": memory.lock}
    for name in (name for name, value in held.items() if value and memory.balloon):
        message = f"{name} keeps memory that a balloon gives back, and takes anew when there may be none: say balloon"
        yield Finding(f"{message} = false", [("memory", name), ("memory", "balloon")])
    if memory.lock and way == "virtio-mem":
        message = "memory that is to come by virtio-mem cannot be locked; dimm can"
        yield Finding(message, [("memory", "lock"), ("memory", "resize"), ("memory", "max")])
    if page > MEMORY_BLOCK and way == "virtio-mem":
        message = f"virtio-mem gives {format_size(MEMORY_BLOCK)} at a time, less than a page of {memory.hugepages}"
        yield Finding(f"{message}; dimm can", [("memory", "hugepages"), ("memory", "resize"), ("memory", "max")])
    for name, value in (("size", memory.size), ("max", memory.max), ("min", memory.min)):
        if page and value % page:
            message = f"{name} ({format_size(value)}) is not a multiple of {memory.hugepages}, the size of its pages"
            yield Finding(message, [("memory", name), ("memory", "hugepages")])
    if memory.nodes == AUTO and unit.cpu.pin != AUTO:
        keys = [("memory", "nodes"), ("cpu", "pin")]
        yield Finding('nodes is "auto", and no CPUs are chosen: say [cpu] pin = "auto", or name the nodes', keys)


def _kept_pages(unit: Unit) -> Iterator[Finding]:
    """Only memory that no other program is given can `merge`; what is in `hugepages` of its own is in no other ones."""
    memory = unit.memory
    if memory.merge and shares_memory(unit):
        keys = [("memory", "merge"), ("memory", "hugepages"), ("memory", "shared"), ("device",)]
        yield Finding("merge is for memory that QEMU alone uses, in no huge pages: the kernel merges no other", keys)
    if memory.transparent_hugepages and memory.hugepages:
        words = f"transparent-hugepages is for memory in usual pages, and this is in those of {memory.hugepages}"
        yield Finding(words, [("memory", "transparent-hugepages"), ("memory", "hugepages")])
    if memory.prealloc_threads and not (memory.prealloc or memory.hugepages):
        keys = [("memory", "prealloc-threads"), ("memory", "prealloc")]
        yield Finding("prealloc-threads take memory at once, and nothing does: say prealloc = true", keys)


def _numa(unit: Unit) -> Iterator[Finding]:
    """Each vCPU, and each core, is in one `[[numa]]`; their sizes make up the memory; `microvm` has none of them."""
    for message, keys in guest_node_contradictions(unit):
        yield Finding(message, keys)


def _ids(unit: Unit) -> Iterator[Finding]:
    """The ids of disks, NICs and devices are all different."""
    tables = {
        "disk": [disk.id for disk in unit.disks],
        "nic": [nic.id for nic in unit.nics],
        "device": [device.id for device in unit.devices],
    }
    owners: dict[str, str] = {}
    for table, ids in tables.items():
        for id_ in ids:
            owner = owners.setdefault(id_, table)
            if owner != table:
                yield Finding(f"the id {id_!r} is taken by a {owner}", [(table, id_, "id")])


def _boot_order(unit: Unit) -> Iterator[Finding]:
    """A `bootindex` is given once."""
    owners: dict[int, str] = {}
    entries: Iterable[tuple[str, DiskSection | NicSection]] = [
        *(("disk", disk) for disk in unit.disks),
        *(("nic", nic) for nic in unit.nics),
    ]
    for table, entry in entries:
        if entry.bootindex < 0:
            continue
        owner = owners.setdefault(entry.bootindex, f"{table} {entry.id!r}")
        if owner != f"{table} {entry.id!r}":
            yield Finding(f"bootindex {entry.bootindex} is taken by {owner}", [(table, entry.id, "bootindex")])


def _disks(unit: Unit) -> Iterator[Finding]:
    """A disk has a `path` (an empty `cdrom` has none), and what it asks of its bus and its image is possible there."""
    for disk in unit.disks:
        key = ("disk", disk.id)
        yield from _image(disk, key)
        yield from _attachment(unit, disk, key)


def _image(disk: DiskSection, key: Key) -> Iterator[Finding]:
    if not disk.path and disk.type == "disk":
        yield Finding("a disk needs a path (only a cdrom may be empty)", [(*key, "path"), (*key, "type")])
    if disk.aio == "native" and disk.cache not in ("none", "directsync"):
        keys = [(*key, "aio"), (*key, "cache")]
        yield Finding(f'aio "native" needs cache "none" or "directsync", not "{disk.cache}"', keys)
    if disk.detect_zeroes == "unmap" and disk.discard != "unmap":
        keys = [(*key, "detect-zeroes"), (*key, "discard")]
        yield Finding('detect-zeroes "unmap" needs discard "unmap"', keys)
    if disk.backing and disk.format == "raw":
        yield Finding("a raw image has no backing file", [(*key, "backing"), (*key, "format")])
    for position, backing in enumerate(disk.backing[:-1], 1):
        if backing.format == "raw":
            inner = (*key, "backing", str(position), "format")
            yield Finding("only the last backing file can be raw: a raw image stands on none", [inner])


def _iothreads(unit: Unit) -> Iterator[Finding]:
    """A disk's `iothread` is one that the VM has, and the disk is on `virtio`."""
    known = [iothread.id for iothread in unit.iothreads]
    for disk in unit.disks:
        key, bus = ("disk", disk.id), effective_bus(unit, disk)
        if disk.iothread and disk.iothread not in known:
            there = f"; there is {alternatives(known, 'and')}" if known else "; add an [[iothread]] with that id"
            message = f"there is no iothread {disk.iothread!r}{did_you_mean(disk.iothread, known) or there}"
            yield Finding(message, [(*key, "iothread"), ("iothread", disk.iothread, "present")])
        if disk.iothread and bus != "virtio":
            keys = [(*key, "iothread"), (*key, "bus"), (*key, "type")]
            yield Finding(f"an iothread does the work of a disk on virtio, not on {bus}", keys)


#: What is counted together, and what to do where there is no room for more.
_COUNTED = {
    **{bus: (f"disks on {bus}", "" if bus == "scsi" else "; scsi has room for more") for bus in BUS_ROOM},
    "disk": ("disks on virtio and nvme", "; scsi has room for more"),
    "nic": ("NICs", ""),
    "legacy-nic": ("e1000 and rtl8139 NICs", "; virtio and e1000e have room for more"),
    "device": ("further devices", ""),
}


def _room(unit: Unit) -> Iterator[Finding]:
    """There are no more disks, NICs and other devices of a kind than the machine has room for."""
    name = machine_family(unit.machine.type)
    if not name:
        return  # a machine that is refused itself
    room = {**FAMILIES[name].room, **BUS_ROOM}
    counted: dict[str, list[Sequence[Key]]] = {}
    for disk in unit.disks:
        bus = effective_bus(unit, disk)
        key = ("disk", disk.id)
        counted.setdefault(bus if bus in BUS_ROOM else "disk", []).append([(*key, "bus"), (*key, "path")])
    for nic in unit.nics:
        counted.setdefault(nic_kind(nic, room), []).append([("nic", nic.id, "model"), ("nic", nic.id, "id")])
    for device in filter(needs_slot, unit.devices):
        counted.setdefault("device", []).append([("device", device.id, "type")])
    for kind, entries in counted.items():
        if len(entries) > room[kind]:
            words, instead = _COUNTED[kind]
            message = f"a {name} machine has room for {room[kind]} {words}, not {len(entries)}{instead}"
            yield Finding(message, entries[room[kind]])


def _throttles(unit: Unit) -> Iterator[Finding]:
    """A limit for reads and writes together excludes one for either; a burst is no slower than the average it is of."""
    for disk in unit.disks:
        for message, names in contradictions(disk.throttle):
            yield Finding(message, [("disk", disk.id, "throttle", name) for name in names])


def _images(unit: Unit) -> Iterator[tuple[Key, DiskSection | BackingSection]]:
    """Every image that is named, of each disk from the top of its chain."""
    for disk in unit.disks:
        yield ("disk", disk.id), disk
        for position, backing in enumerate(disk.backing, 1):
            yield ("disk", disk.id, "backing", str(position)), backing


def _paths(unit: Unit) -> Iterator[Finding]:
    """The path of an image is no protocol of QEMU's, and does not begin with `..`, which leaves every pool."""
    for key, image in _images(unit):
        if reads_as_protocol(image.path):
            yield Finding(PROTOCOL_REFUSAL, [(*key, "path")])
        if begins_outside(image.path):
            yield Finding("leaves its pool by '..'", [(*key, "path")])


def _chains(unit: Unit) -> Iterator[Finding]:
    """No image stands on itself: each is once in the chain of its backing files."""
    for disk in unit.disks:
        above: dict[PurePosixPath, Key] = {same_file(disk.path): ("disk", disk.id, "path")}
        for position, backing in enumerate(disk.backing, 1):
            here = ("disk", disk.id, "backing", str(position), "path")
            other = above.setdefault(same_file(backing.path), here)
            if other != here:
                yield Finding(f"{shown(backing.path)} is above in this chain: no image stands on itself", [here, other])


def _formats(unit: Unit) -> Iterator[Finding]:
    """An image named as qcow2 is not used as `raw`: the guest's first write would destroy it."""
    for key, image in _images(unit):
        if image.format == "raw" and image.path.lower().endswith(_QCOW2_SUFFIXES):
            message = 'is named as qcow2 but would be used as raw; say format = "qcow2"'
            yield Finding(message, [(*key, "path"), (*key, "format")])


def _attachment(unit: Unit, disk: DiskSection, key: Key) -> Iterator[Finding]:
    bus = effective_bus(unit, disk)
    keys = [(*key, "bus"), (*key, "type"), ("machine", "type")]
    name = machine_family(unit.machine.type)
    # of a machine that is refused itself, nothing more is said
    there = FAMILIES[name].disk_buses if name else DISK_BUSES
    possible = [each for each in there if disk.type == "disk" or each not in ("virtio", "nvme")]
    if bus not in there:
        yield Finding(f"{name} has no {bus} bus; use {alternatives(possible)}", keys)
    elif bus not in possible:
        yield Finding(f"a cdrom cannot be on {bus}; use {alternatives(possible)}", keys)
    if disk.type == "disk" and disk.read_only and bus in ("sata", "ide"):
        message = f"a disk on {bus} cannot be read-only; use virtio or scsi, or make it a cdrom"
        yield Finding(message, [(*key, "read-only"), *keys])
    if len(disk.serial) > MAX_SERIAL[bus]:
        message = f"on {bus} the guest sees at most {MAX_SERIAL[bus]} characters, not {len(disk.serial)}"
        yield Finding(message, [(*key, "serial"), *keys])


def _shared_paths(unit: Unit) -> Iterator[Finding]:
    """No two disks write to one image, unless both are `shareable`."""
    owners: dict[PurePosixPath, DiskSection] = {}
    for disk in unit.disks:
        other = owners.setdefault(same_file(disk.path), disk) if disk.path else disk
        if other is disk or (_reads_only(disk) and _reads_only(other)):
            continue
        if not (disk.shareable and other.shareable):
            keys = [
                ("disk", one.id, name) for one in (disk, other) for name in ("path", "type", "read-only", "shareable")
            ]
            yield Finding(f"{shown(disk.path)} is the path of disk {other.id!r} already", keys)


def _reads_only(disk: DiskSection) -> bool:
    return disk.read_only or disk.type == "cdrom"


def _nics(unit: Unit) -> Iterator[Finding]:
    """A `tap` or `bridge` NIC has a `bridge`, a `user` NIC has none; `forward` is for `user` NICs."""
    for nic in unit.nics:
        key = ("nic", nic.id)
        bridge = [(*key, "bridge"), (*key, "type")]
        if nic.type == "user" and nic.bridge:
            yield Finding("a user NIC joins no bridge; use type tap or bridge", bridge)
        if nic.type != "user" and not nic.bridge:
            yield Finding(f"a {nic.type} NIC needs a bridge", bridge)
        if nic.type != "user" and nic.forward:
            message = f"forward is for user NICs; the guest of a {nic.type} NIC has an address of its own"
            yield Finding(message, [(*key, "forward"), (*key, "type")])
        name = machine_family(unit.machine.type)
        if name and nic.model not in FAMILIES[name].nic_models:
            keys = [(*key, "model"), ("machine", "type")]
            yield Finding(f"{name} has no {nic.model}; use {alternatives(FAMILIES[name].nic_models)}", keys)


def _macs(unit: Unit) -> Iterator[Finding]:
    """A `mac` is given to one NIC."""
    owners: dict[str, str] = {}
    for nic in unit.nics:
        owner = owners.setdefault(nic.mac, nic.id) if nic.mac else nic.id
        if owner != nic.id:
            keys = [("nic", nic.id, "mac"), ("nic", owner, "mac")]
            yield Finding(f"{nic.mac} is the mac of nic {owner!r} already", keys)


def _forwards(unit: Unit) -> Iterator[Finding]:
    """A port of the host is forwarded once."""
    taken: dict[tuple[str, int], dict[str, str]] = {}
    for nic in unit.nics:
        for forward in nic.forward:
            owners = taken.setdefault((forward.protocol, forward.host_port), {})
            owner = _holder(owners, forward.host_address)
            if owner:
                place = f"{forward.host_address}:{forward.host_port}/{forward.protocol}"
                keys = [("nic", nic.id, "forward"), ("nic", owner, "forward")]
                yield Finding(f"{place} is taken by another forward of nic {owner!r}", keys)
            owners.setdefault(forward.host_address, nic.id)


def _holder(owners: dict[str, str], address: str) -> str:
    """Whose forward listens on an address already, ``0.0.0.0`` being all of them; ``""`` for nobody's."""
    if address == "0.0.0.0":
        return next(iter(owners.values()), "")
    return owners.get(address) or owners.get("0.0.0.0", "")


def _devices(unit: Unit) -> Iterator[Finding]:
    """A device has only keys of its type; there is one `watchdog`; each `serial` and each `share` can be told apart."""
    owners: dict[str, str] = {AGENT_PORT: "the guest agent"} if unit.agent.enabled else {}
    tags: dict[str, str] = {}
    watchdog = ""
    for device in unit.devices:
        key = ("device", device.id)
        for name, (attribute, _) in keys_of(DeviceSection).items():
            strange = name not in ("id", "type", *DEVICE_KEYS[device.type])
            if strange and getattr(device, attribute.name) != attribute.default:
                yield Finding(f"{device.type} has no {name}", [(*key, name), (*key, "type")])
        if device.type == "watchdog":
            if watchdog:
                yield Finding(f"device {watchdog!r} is a watchdog already: a VM has one", [(*key, "type")])
            watchdog = watchdog or device.id
        if device.type == "serial":
            owner = owners.setdefault(channel_name(device), f"device {device.id!r}")
            if owner != f"device {device.id!r}":
                message = f"the name {channel_name(device)!r} is that of {owner}"
                yield Finding(message, [(*key, "name"), (*key, "id")])
        if device.type == "share":
            yield from _share(device, key, tags)
        if device.type == "vhost-user" and not device.socket.startswith("/"):
            yield Finding(
                "a vhost-user device needs a socket, by its absolute path", [(*key, "socket"), (*key, "type")]
            )
        if device.type in ("usb", "pci"):
            yield from _of_host(device, key, owners)
    channels = sum(device.type == "serial" for device in unit.devices)
    if channels > MAX_CHANNELS:
        yield Finding(f"a VM has at most {MAX_CHANNELS} serial channels, not {channels}", [("device",)])


def _of_host(device: DeviceSection, key: Key, owners: dict[str, str]) -> Iterator[Finding]:
    names = ("address",) if device.type == "pci" else ("identity", "port")
    which = " at ".join(filter(None, (getattr(device, name) for name in names)))
    if not which:
        keys = [*((*key, name) for name in names), (*key, "type")]
        yield Finding(f"a {device.type} device needs {alternatives(names)}", keys)
    elif (owner := owners.setdefault(f"{device.type} {which}", f"device {device.id!r}")) != f"device {device.id!r}":
        yield Finding(f"{which} is {owner} already", [(*key, name) for name in names])


def _share(device: DeviceSection, key: Key, tags: dict[str, str]) -> Iterator[Finding]:
    tag = mount_tag(device)
    if not device.path:
        yield Finding("a share needs a path", [(*key, "path"), (*key, "type")])
    if begins_outside(device.path):
        yield Finding("leaves its pool by '..'", [(*key, "path")])
    if len(tag) > MAX_TAG:
        yield Finding(f"a tag has at most {MAX_TAG} characters, not {len(tag)}", [(*key, "tag"), (*key, "id")])
    owner = tags.setdefault(tag, device.id)
    if owner != device.id:
        yield Finding(f"the tag {tag!r} is that of device {owner!r}", [(*key, "tag"), (*key, "id")])


def _screen(unit: Unit) -> Iterator[Finding]:
    """A display has a graphics card to show; `microvm` has neither."""
    type_, video, name = unit.display.type, effective_video(unit), machine_family(unit.machine.type)
    keys = [("display", "video"), ("display", "type")]
    if name and not FAMILIES[name].has_graphics and (type_, video) != ("none", "none"):
        wanted = f"a {video} graphics card" if video != "none" else f"a {type_} display"
        yield Finding(f"{name} has no graphics, so it cannot have {wanted}", [*keys, ("machine", "type")])
    elif type_ != "none" and video == "none":
        yield Finding(f"a {type_} display needs a graphics card", keys)


RULES: tuple[Callable[[Unit], Iterator[Finding]], ...] = (
    _service,
    _start_limit,
    _ready,
    _machine,
    _boot,
    _processors,
    _pins,
    _memory,
    _limits,
    _fence,
    _memory_placement,
    _kept_pages,
    _numa,
    _ids,
    _boot_order,
    _disks,
    _iothreads,
    _room,
    _throttles,
    _paths,
    _chains,
    _formats,
    _shared_paths,
    _nics,
    _macs,
    _forwards,
    _devices,
    _screen,
)
