"""What QMP's queries answer, as frozen values.

Decides: which members of an answer qsup relies on.
Must not: do I/O, or rely on more than is used.

Each class is named after its QAPI type where there is one, and is made from JSON by its ``parse``, which raises
`UnexpectedTypeError` for what does not fit.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from qsup.qmp.wire import member


@attrs.frozen(kw_only=True)
class StatusInfo:
    """``query-status``: ``status`` is QAPI's RunState, such as ``running`` or ``io-error``."""

    status: str
    running: bool

    @classmethod
    def parse(cls, value: object) -> StatusInfo:
        """Read the answer."""
        return cls(status=member(value, "status", str), running=member(value, "running", bool))


@attrs.frozen(kw_only=True)
class KvmInfo:
    """``query-kvm``: whether KVM is used, and whether this QEMU knows it."""

    enabled: bool
    present: bool

    @classmethod
    def parse(cls, value: object) -> KvmInfo:
        """Read the answer."""
        return cls(enabled=member(value, "enabled", bool), present=member(value, "present", bool))


@attrs.frozen(kw_only=True)
class CpuInfoFast:
    """One vCPU of ``query-cpus-fast``: the host thread that runs it, and its place in the topology.

    Args:
        cpu_index: QEMU's number.
        thread_id: the host's tid; all share one under ``tcg,thread=single``.
        qom_path: its QOM object.
        props: QAPI's CpuInstanceProperties, to be given back verbatim in ``device_add``.
    """

    cpu_index: int
    thread_id: int
    qom_path: str
    props: Mapping[str, object]

    @classmethod
    def parse(cls, value: object) -> CpuInfoFast:
        """Read one element of the answer."""
        return cls(
            cpu_index=member(value, "cpu-index", int),
            thread_id=member(value, "thread-id", int),
            qom_path=member(value, "qom-path", str),
            props=member(value, "props", dict, {}),
        )


@attrs.frozen(kw_only=True)
class IothreadInfo:
    """One of ``query-iothreads``: its id, and the host's tid."""

    id: str
    thread_id: int

    @classmethod
    def parse(cls, value: object) -> IothreadInfo:
        """Read one element of the answer."""
        return cls(id=member(value, "id", str), thread_id=member(value, "thread-id", int))


#: Members of QAPI's BlockIOThrottle.
_LIMITS = tuple(
    f"{kind}{direction}{suffix}"
    for kind in ("iops", "bps")
    for direction in ("", "_rd", "_wr")
    for suffix in ("", "_max", "_max_length")
)


@attrs.frozen(kw_only=True)
class HotpluggableCpu:
    """One place for a vCPU of ``query-hotpluggable-cpus``.

    Args:
        type: QEMU's name of the device that goes there.
        props: QAPI's CpuInstanceProperties, to be given back verbatim in ``device_add``.
        qom_path: of the vCPU that is there, ``""`` for none.
    """

    type: str
    props: Mapping[str, object]
    qom_path: str

    @classmethod
    def parse(cls, value: object) -> HotpluggableCpu:
        """Read one element of the answer."""
        return cls(
            type=member(value, "type", str),
            props=member(value, "props", dict),
            qom_path=member(value, "qom-path", str, ""),
        )


@attrs.frozen(kw_only=True)
class MemoryDevice:
    """One memory device of ``query-memory-devices``.

    Args:
        kind: ``dimm``, ``virtio-mem``...
        id: of the device, ``""`` for one without.
        size: bytes that it gives the guest now.
        requested: bytes that the guest was asked to use of a ``virtio-mem``.
        block: of which those are multiples.
    """

    kind: str
    id: str
    size: int
    requested: int
    block: int

    @classmethod
    def parse(cls, value: object) -> MemoryDevice:
        """Read one element of the answer."""
        data = member(value, "data", dict)
        return cls(
            kind=member(value, "type", str),
            id=member(data, "id", str, ""),
            size=member(data, "size", int, 0),
            requested=member(data, "requested-size", int, 0),
            block=member(data, "block-size", int, 0),
        )


@attrs.frozen(kw_only=True)
class BlockInfo:
    """One drive of ``query-block``.

    Args:
        qdev: the QOM path or id of the device, or ``""``.
        io_status: ``ok``, ``failed``, ``nospace``, or ``""`` for a device that does not tell.
        node_name: the node inserted, or ``""`` for an empty drive.
        driver: that node's block driver.
        read_only: whether it is.
        virtual_size: what the guest sees, in bytes.
        actual_size: what the image takes on the host, in bytes; -1 where QEMU does not know.
        limits: what the guest may do with it, by the names of QAPI's BlockIOThrottle; those that are set.
        tray: ``open``, ``closed``, or ``locked`` where the guest keeps it closed; ``""`` of a disk.
    """

    qdev: str
    io_status: str
    node_name: str
    driver: str
    read_only: bool
    virtual_size: int
    actual_size: int
    limits: Mapping[str, int] = attrs.field(factory=dict)
    tray: str = ""

    @classmethod
    def parse(cls, value: object) -> BlockInfo:
        """Read one element of the answer."""
        inserted = member(value, "inserted", dict, {})
        image = member(inserted, "image", dict, {})
        return cls(
            qdev=member(value, "qdev", str, ""),
            io_status=member(value, "io-status", str, ""),
            node_name=member(inserted, "node-name", str, ""),
            driver=member(inserted, "drv", str, ""),
            read_only=member(inserted, "ro", bool, False),
            virtual_size=member(image, "virtual-size", int, 0),
            actual_size=member(image, "actual-size", int, -1),
            limits={name: limit for name in _LIMITS if (limit := member(inserted, name, int, 0))},
            tray=_tray(value),
        )

    def is_of(self, device: str) -> bool:
        """Whether it is that of a device, which the drive may be a part of.

        Args:
            device: its id.
        """
        return self.qdev == device or self.qdev.startswith(f"/machine/peripheral/{device}/")


def _tray(value: object) -> str:
    if not isinstance(value, dict) or "tray_open" not in value:
        return ""
    if member(value, "tray_open", bool):
        return "open"
    return "locked" if member(value, "locked", bool, False) else "closed"


#: Members of QAPI's BlockDeviceStats: bytes, operations and nanoseconds since QEMU's start.
_BLOCK_COUNTERS = (
    *("rd_bytes", "rd_operations", "rd_total_time_ns", "failed_rd_operations"),
    *("wr_bytes", "wr_operations", "wr_total_time_ns", "failed_wr_operations"),
    *("flush_operations", "flush_total_time_ns"),
)


@attrs.frozen(kw_only=True)
class BlockStats:
    """One drive of ``query-blockstats``, its counters by QAPI's own names."""

    qdev: str
    node_name: str
    counters: Mapping[str, int]

    @classmethod
    def parse(cls, value: object) -> BlockStats:
        """Read one element of the answer."""
        stats = member(value, "stats", dict)
        return cls(
            qdev=member(value, "qdev", str, ""),
            node_name=member(value, "node-name", str, ""),
            counters={name: member(stats, name, int) for name in _BLOCK_COUNTERS},
        )


@attrs.frozen(kw_only=True)
class ChardevInfo:
    """One character device of ``query-chardev``; ``frontend_open``: whether the guest's side of it is open."""

    label: str
    filename: str
    frontend_open: bool

    @classmethod
    def parse(cls, value: object) -> ChardevInfo:
        """Read one element of the answer."""
        return cls(
            label=member(value, "label", str),
            filename=member(value, "filename", str),
            frontend_open=member(value, "frontend-open", bool),
        )


@attrs.frozen(kw_only=True)
class JobInfo:
    """One job of ``query-jobs``; only here does a failed job tell its ``error``, else ``""``."""

    id: str
    type: str
    status: str
    current_progress: int
    total_progress: int
    error: str

    @classmethod
    def parse(cls, value: object) -> JobInfo:
        """Read one element of the answer."""
        return cls(
            id=member(value, "id", str),
            type=member(value, "type", str),
            status=member(value, "status", str),
            current_progress=member(value, "current-progress", int),
            total_progress=member(value, "total-progress", int),
            error=member(value, "error", str, ""),
        )


@attrs.frozen(kw_only=True)
class AddfdInfo:
    """``add-fd``: the set the descriptor is in, and QEMU's own number for it."""

    fdset_id: int
    fd: int

    @classmethod
    def parse(cls, value: object) -> AddfdInfo:
        """Read the answer."""
        return cls(fdset_id=member(value, "fdset-id", int), fd=member(value, "fd", int))
