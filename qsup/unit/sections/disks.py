"""``[[disk]]`` with its tables, and ``[[iothread]]``: what a guest stores on, and who does the work of it.

Decides: their keys. Must not: look into images.
"""

from __future__ import annotations

from typing import Any

from attrs import frozen

from qsup.unit import kinds
from qsup.unit.keys import Applies, key, present, section
from qsup.unit.kinds import Kind


@frozen(kw_only=True)
class BackingSection:
    """``[[disk.backing]]``: a file an overlay stands on; the chain from the overlay down to its base."""

    path: str = key(kinds.PATH, "The backing file.")
    format: str = key(kinds.choice("raw", "qcow2"), "Its format; never guessed.")


#: Most operations or bytes a second that QEMU can limit anything to (THROTTLE_VALUE_MAX).
THROTTLE_MAX = 10**15


def _rate(what: str, qemu: str, kind: Kind) -> Any:
    return key(kind, f"{what} a second on average; 0: no limit.", default=0, qemu=qemu, applies=Applies.LIVE)


def _burst(qemu: str, kind: Kind) -> Any:
    words = "As many a second while a burst lasts; 0: a tenth of a second's worth above the average at once."
    return key(kind, words, default=0, qemu=qemu, applies=Applies.LIVE)


def _length(qemu: str) -> Any:
    words = "How long a burst may last, in whole seconds."
    return key(kinds.duration(1.0, 1e6), words, default=1.0, qemu=qemu, applies=Applies.LIVE)


_OPERATIONS, _BYTES = kinds.integer(0, THROTTLE_MAX), kinds.size(0, THROTTLE_MAX)


@frozen(kw_only=True)
class ThrottleSection:
    """``[disk.throttle]``: how much the guest may do with a disk (QAPI ``BlockIOThrottle``)."""

    iops: int = _rate("Operations", "iops", _OPERATIONS)
    iops_max: int = _burst("iops_max", _OPERATIONS)
    iops_max_length: float = _length("iops_max_length")
    iops_read: int = _rate("Reads", "iops_rd", _OPERATIONS)
    iops_read_max: int = _burst("iops_rd_max", _OPERATIONS)
    iops_read_max_length: float = _length("iops_rd_max_length")
    iops_write: int = _rate("Writes", "iops_wr", _OPERATIONS)
    iops_write_max: int = _burst("iops_wr_max", _OPERATIONS)
    iops_write_max_length: float = _length("iops_wr_max_length")
    bps: int = _rate("Bytes", "bps", _BYTES)
    bps_max: int = _burst("bps_max", _BYTES)
    bps_max_length: float = _length("bps_max_length")
    bps_read: int = _rate("Bytes read", "bps_rd", _BYTES)
    bps_read_max: int = _burst("bps_rd_max", _BYTES)
    bps_read_max_length: float = _length("bps_rd_max_length")
    bps_write: int = _rate("Bytes written", "bps_wr", _BYTES)
    bps_write_max: int = _burst("bps_wr_max", _BYTES)
    bps_write_max_length: float = _length("bps_wr_max_length")


def _are_drives(before: Any, after: Any) -> bool:
    return bool(before.type == after.type == "cdrom")


#: Cache modes in which the guest sees no write cache; which of them it is fixes the device.
WRITE_THROUGH = ("writethrough", "directsync")


def _keep_the_device(before: Any, after: Any) -> bool:
    return bool((before.cache in WRITE_THROUGH) == (after.cache in WRITE_THROUGH))


def _medium_key(kind: Kind, doc: str, *, default: str, qemu: str = "") -> Any:
    live = Applies.LIVE
    return key(kind, doc, default=default, qemu=qemu, applies=live, only="of a `cdrom`", holds=_are_drives)


DISK_BUSES = ("virtio", "scsi", "nvme", "sata", "ide", "usb")


@frozen(kw_only=True)
class DiskSection:
    """``[[disk]]``: a disk or a CD drive."""

    id: str = key(kinds.NAME, "Its name within the VM.")
    present: bool = present()
    path: str = _medium_key(
        kinds.STRING,
        "The image or block device; relative to the first pool. A `cdrom` without one is an empty drive.",
        default="",
    )
    format: str = _medium_key(
        kinds.choice("raw", "qcow2"), "The image's format; never guessed.", default="raw", qemu="blockdev driver"
    )
    type: str = key(kinds.choice("disk", "cdrom"), "What the guest sees.", default="disk")
    bus: str = key(
        kinds.optional(kinds.choice(*DISK_BUSES)),
        "How it is attached; by default `virtio`. For a `cdrom`: `sata` on `q35`, `ide` on `pc`, `scsi` on others.",
        default="",
        qemu="virtio-blk, scsi-hd, nvme, ide-hd, usb-storage",
    )
    cache: str = key(
        kinds.choice("writeback", "none", "writethrough", "directsync", "unsafe"),
        "How the host caches the image.",
        default="writeback",
        qemu="cache.direct, cache.no-flush, write-cache",
        applies=Applies.LIVE,
        only="unless to or from `writethrough` or `directsync`",
        holds=_keep_the_device,
    )
    iothread: str = key(
        kinds.optional(kinds.NAME),
        "On `virtio`: the `[[iothread]]` that does its work; by default QEMU's main loop does, which is busy with much "
        "else.",
        default="",
        qemu="iothread",
    )
    aio: str = key(
        kinds.choice("threads", "native", "io_uring"),
        'How QEMU reads and writes it; `native` needs `cache = "none"` or `"directsync"`.',
        default="threads",
        qemu="aio",
    )
    discard: str = key(
        kinds.choice("ignore", "unmap"),
        "Whether the guest's discards free space.",
        default="unmap",
        qemu="discard",
        applies=Applies.LIVE,
    )
    detect_zeroes: str = key(
        kinds.choice("off", "on", "unmap"),
        "Whether writes of zeroes are made cheap.",
        default="off",
        qemu="detect-zeroes",
        applies=Applies.LIVE,
    )
    read_only: bool = key(kinds.BOOLEAN, "The guest cannot write to it.", default=False, qemu="read-only")
    shareable: bool = key(
        kinds.BOOLEAN,
        "Other VMs may use it at the same time; the guests must be made for that.",
        default=False,
        qemu="share-rw",
    )
    serial: str = key(kinds.STRING, "The serial number the guest sees.", default="", qemu="serial")
    bootindex: int = key(
        kinds.integer(-1, 1000),
        "Place in the boot order; -1: not in it.",
        default=-1,
        qemu="bootindex",
        applies=Applies.RESET,
    )
    throttle: ThrottleSection = section(
        ThrottleSection, "How much the guest may do with it; without limits by default."
    )
    backing: tuple[BackingSection, ...] = section(
        BackingSection,
        "The files the image stands on, nearest first. A backing file that is not declared is refused.",
        name="backing",
    )


@frozen(kw_only=True)
class IothreadSection:
    """``[[iothread]]``: a thread of QEMU's for the work of disks."""

    id: str = key(kinds.NAME, "Its name within the VM, which disks call it by.", qemu="-object iothread")
    present: bool = present("")
    pin: tuple[int, ...] = key(
        kinds.optional(kinds.CPU_SET, ()),
        "The CPUs of the host that it may run on. By default those of everything else that QEMU does: `[cpu] "
        "emulator-pin`, and what follows where that says nothing.",
        default=(),
        applies=Applies.LIVE,
    )
