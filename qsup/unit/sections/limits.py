"""``[limits]`` and ``[qemu]``: how much of the host QEMU may take, and what it is told beside all this.

Decides: their keys. Must not: know how a host enforces a limit.
"""

from __future__ import annotations

from attrs import frozen

from qsup.unit import kinds
from qsup.unit.keys import Applies, key

#: The weight of a cgroup that nobody has given one (cgroup-v2.rst).
DEFAULT_WEIGHT = 100


@frozen(kw_only=True)
class LimitsSection:
    """``[limits]``: how much of the host QEMU may take."""

    cpu: int = key(
        kinds.optional(kinds.CPU_QUOTA, 0),
        'CPU time at most, of all threads of its QEMU together: `"50%"` of one CPU, or `"2"` or `"1.5"` CPUs; in each '
        'tenth of a second it stands still once it has had that. By default, and with `""`, there is no limit.',
        default=0,
        qemu="cgroup cpu.max, cpu.cfs_quota_us",
        applies=Applies.LIVE,
    )
    vcpu_cpu: int = key(
        kinds.optional(kinds.CPU_QUOTA, 0),
        "The same of the threads that run its vCPUs alone, together: a guest that has had it does not hold up what "
        "QEMU does besides, such as to answer its monitor and to serve devices. No more than `cpu`.",
        default=0,
        qemu="cgroup cpu.max, cpu.cfs_quota_us of a group of threads",
        applies=Applies.LIVE,
    )
    emulator_cpu: int = key(
        kinds.optional(kinds.CPU_QUOTA, 0),
        "The same of all other threads of its QEMU, its iothreads among them, and of the programs that serve its "
        "devices. No more than `cpu`.",
        default=0,
        qemu="cgroup cpu.max, cpu.cfs_quota_us of a group of threads",
        applies=Applies.LIVE,
    )
    cpu_weight: int = key(
        kinds.integer(1, 10_000),
        "Its part of CPUs that others want, too, against the 100 of a VM that says nothing of it.",
        default=DEFAULT_WEIGHT,
        qemu="cgroup cpu.weight, cpu.shares",
        applies=Applies.LIVE,
    )
    cpuset_cpus: tuple[int, ...] = key(
        kinds.optional(kinds.CPU_SET, ()),
        'The CPUs of the host that it may run on at all, such as `"0-3"`: QEMU, all that it starts, what serves its '
        "devices; no `taskset` leads out of them. Where `pin` is `auto`, CPUs are chosen among these. By default, and "
        'with `""`, all that the daemon may use.',
        default=(),
        qemu="cgroup cpuset.cpus",
        applies=Applies.LIVE,
    )
    cpuset_mems: tuple[int, ...] = key(
        kinds.optional(kinds.NODE_SET, ()),
        'The NUMA nodes of the host that all of its memory must be on, that of QEMU itself among it, such as `"0"`. '
        "While it runs the kernel moves what is elsewhere. Nodes that are chosen are among these. By default, and with "
        '`""`, all.',
        default=(),
        qemu="cgroup cpuset.mems",
        applies=Applies.LIVE,
    )
    memory: int = key(
        kinds.size(0, 1 << 46),
        "The most memory of the host that QEMU may use; when it wants more, and what the kernel can take back of it "
        'is not enough, it is killed, with the cause `oom`. No less than its guest and QEMU itself need. `"0B"`: '
        "no limit.",
        default=0,
        qemu="cgroup memory.max, memory.limit_in_bytes",
        applies=Applies.LIVE,
    )
    memory_high: int = key(
        kinds.size(0, 1 << 46),
        "Beyond so much the kernel takes memory back from it, and slows it down; it is not killed for that. Cgroup "
        'version 1 cannot do it. `"0B"`: no limit.',
        default=0,
        qemu="cgroup memory.high",
        applies=Applies.LIVE,
    )
    pids: int = key(
        kinds.integer(0, 1 << 22),
        "Threads and processes at most, those of QEMU itself among them; 0: no limit.",
        default=0,
        qemu="cgroup pids.max",
        applies=Applies.LIVE,
    )
    swap: int | None = key(
        kinds.optional(kinds.size(0, 1 << 46), None),
        'Swap space at most (cgroup version 2): `"0B"` for none. By default, and with `""`, there is no limit.',
        default=None,
        qemu="cgroup memory.swap.max",
        applies=Applies.LIVE,
    )
    io_weight: int = key(
        kinds.integer(1, 10_000),
        "Its part of disks of the host that others want, too, against the 100 of a VM that says nothing of it. Only "
        "some of the kernel's schedulers of I/O know of it (BFQ, and `io.cost`).",
        default=DEFAULT_WEIGHT,
        qemu="cgroup io.weight, blkio.bfq.weight",
        applies=Applies.LIVE,
    )
    io_read_bps: tuple[kinds.DeviceLimit, ...] = key(
        kinds.list_of(kinds.device_limit(kinds.size(1)), maximum=64),
        'Bytes a second at most that QEMU may read from devices of the host, such as `["/dev/sda 50M"]`; a path that '
        "is no block device stands for the one that its file system is on, and a partition for its whole disk. A disk "
        "of the VM alone is limited by its `throttle`.",
        default=(),
        qemu="cgroup io.max rbps, blkio.throttle.read_bps_device",
        applies=Applies.LIVE,
    )
    io_write_bps: tuple[kinds.DeviceLimit, ...] = key(
        kinds.list_of(kinds.device_limit(kinds.size(1)), maximum=64),
        "The same of bytes that are written. In version 1 those that the host's page cache takes first do not count "
        "(`cache` of a disk).",
        default=(),
        qemu="cgroup io.max wbps, blkio.throttle.write_bps_device",
        applies=Applies.LIVE,
    )
    io_read_iops: tuple[kinds.DeviceLimit, ...] = key(
        kinds.list_of(kinds.device_limit(kinds.COUNT), maximum=64),
        'The same of reads a second, such as `["/dev/sda 500"]`.',
        default=(),
        qemu="cgroup io.max riops, blkio.throttle.read_iops_device",
        applies=Applies.LIVE,
    )
    io_write_iops: tuple[kinds.DeviceLimit, ...] = key(
        kinds.list_of(kinds.device_limit(kinds.COUNT), maximum=64),
        "The same of writes a second.",
        default=(),
        qemu="cgroup io.max wiops, blkio.throttle.write_iops_device",
        applies=Applies.LIVE,
    )
    oom_score_adjust: int = key(
        kinds.integer(-1000, 1000),
        "How readily the kernel kills QEMU when the host's memory runs out: 1000 before all others, -1000 never. Less "
        "than the daemon's own needs CAP_SYS_RESOURCE.",
        default=0,
        qemu="/proc/PID/oom_score_adj",
        applies=Applies.LIVE,
    )
    nofile: int = key(
        kinds.integer(0, 1 << 30),
        "Files that QEMU may have open at most, sockets and devices among them; what comes while it runs, and finds "
        "none left, is refused. 0: as many as the daemon may.",
        default=0,
        qemu="RLIMIT_NOFILE",
    )
    require: bool = key(
        kinds.BOOLEAN,
        "Refuse to start the VM where the host cannot hold it to one of these limits. By default it starts, and a "
        "warning of the VM names what is not enforced.",
        default=False,
        applies=Applies.LIVE,
    )


@frozen(kw_only=True)
class QemuSection:
    """``[qemu]``: the escape hatch."""

    extra_args: tuple[str, ...] = key(
        kinds.list_of(kinds.STRING),
        "Further arguments, appended as they are. What they name by path must be readable for the VM's own user.",
        default=(),
    )
