"""What QEMU needs of the host at least, so that a limit below it can be refused. Pure.

Decides: how much memory and how many threads a unit's QEMU takes, as a sum that a message can show.
Must not: say what it takes at most: that hangs on its guest.
"""

from __future__ import annotations

from attrs import frozen

from qsup.unit.effective import effective_max_vcpus, effective_video, machine_memory
from qsup.unit.keys import MIB
from qsup.unit.model import Unit
from qsup.unit.quantity import format_size

#: Bytes of an idle QEMU without its guest's memory, rounded down, and for each vCPU.
_PROGRAM, _VCPU = 32 * MIB, 1 * MIB
#: The same of the code that TCG translates by the time at which a Linux has booted (96 MiB of QEMU 7.2 and 10.0 with
#: that; it may become much more).
_TCG = 96 * MIB
#: The frame buffer of a graphics card (VGA's vgamem_mb).
_VIDEO = 16 * MIB
#: Main loop, RCU, workers of I/O (THREAD_POOL_MAX_THREADS_DEFAULT) and of the display.
_THREADS = 80
#: Those of a virtiofsd, which is in the same cgroup: its two processes, and a thread for each queue.
_SERVER_THREADS = 8
#: Files that a QEMU with next to nothing has open.
FILES_NEEDED = 64


@frozen
class Sum:
    """An amount and what it is made up of, in words."""

    total: int
    words: str


def own_memory(unit: Unit, accel: str) -> int:
    """Bytes that QEMU takes besides its guest's memory; ``accel``: as for `memory_needed`."""
    video = 0 if effective_video(unit) == "none" else _VIDEO
    return _PROGRAM + effective_max_vcpus(unit) * _VCPU + video + (_TCG if accel == "tcg" else 0)


def memory_needed(unit: Unit, accel: str) -> Sum:
    """Bytes that QEMU is charged with once its guest has touched all of its memory; huge pages it is not charged with
    (hugetlb has a controller of its own).

    Args:
        accel: the accelerator; of what is not ``tcg`` it is the least that it may be.
    """
    guest = 0 if unit.memory.hugepages else max(unit.memory.size, machine_memory(unit))
    own = own_memory(unit, "")
    parts = [f"{format_size(guest)} for the guest", f"{format_size(own)} for QEMU itself"]
    if accel != "tcg":
        return Sum(guest + own, " and ".join(parts))
    return Sum(guest + own + _TCG, f"{', '.join(parts)} and {format_size(_TCG)} for the code that TCG translates")


def too_little_memory(unit: Unit, accel: str) -> str:
    """Why the memory that a unit lets QEMU have is too little, in a sentence; ``""`` where it is not.

    Args:
        accel: as for `memory_needed`.
    """
    limit, need = unit.limits.memory, memory_needed(unit, accel)
    if not 0 < limit < need.total:
        return ""
    return f"memory ({format_size(limit)}) is less than QEMU needs {format_size(need.total)}: {need.words}"


def threads_needed(unit: Unit) -> Sum:
    """Threads that QEMU, and what serves its devices, may start; QEMU ends without them."""
    vcpus, iothreads = effective_max_vcpus(unit), len(unit.iothreads)
    servers = _SERVER_THREADS * sum(device.type == "share" for device in unit.devices)
    parts = [f"{vcpus} for vCPUs", *([f"{iothreads} for iothreads"] if iothreads else [])]
    parts += [f"{servers} for the file servers of its shares"] if servers else []
    return Sum(vcpus + iothreads + servers + _THREADS, f"{', '.join(parts)} and {_THREADS} for QEMU itself")
