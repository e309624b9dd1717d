"""``[memory]`` and ``[[numa]]``: how much memory a guest has, where the host keeps it, and in which nodes it is seen.

Decides: their keys. Must not: know what a host has.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from qsup.unit import kinds
from qsup.unit.keys import MIB, Applies, key, present

RESIZES = ("virtio-mem", "dimm", "balloon")
POLICIES = ("bind", "preferred", "interleave")


#: What virtio-mem gives and takes at a time: a huge page of x86-64. What a memory module is a multiple of: Linux adds
#: and removes memory in blocks of that size (memory-hotplug.rst).
MEMORY_BLOCK, MODULE_BLOCK = 2 * MIB, 128 * MIB


#: Bytes of a huge page, by what a unit calls it.
HUGE_PAGES: Mapping[str, int] = {"2M": 2 * MIB, "1G": 1 << 30}


@frozen(kw_only=True)
class MemorySection:
    """``[memory]``: the guest's memory."""

    size: int = key(
        kinds.size(1 * MIB, 1 << 46),
        "The guest's memory. What can be had of it while the VM runs hangs on `resize`.",
        default=512 * MIB,
        qemu="-m size=",
        applies=Applies.LIVE,
    )
    max: int = key(
        kinds.size(0, 1 << 46),
        'The most memory it can have while it runs; `"0B"`: no more than `size`. With `resize = "balloon"` the machine '
        "has so much from the start, and its guest is left `size` of it.",
        default=0,
        qemu="-m maxmem=, -m size= with a balloon",
    )
    min: int = key(
        kinds.size(0, 1 << 46),
        "How much of `size` the machine is started with, and keeps while it runs, with `virtio-mem`; its guest takes "
        'the rest as it boots, and can give that back. `"0B"`: all of it.',
        default=0,
        qemu="-m size=, virtio-mem requested-size=",
    )
    slots: int = key(kinds.integer(0, 256), "Memory modules that can be plugged (`dimm`).", default=0, qemu="-m slots=")
    resize: str = key(
        kinds.optional(kinds.choice(*RESIZES)),
        "How `size` changes while the VM runs. `virtio-mem`: between what it was started with (`min`) and `max`, in "
        "steps of 2M; its guest must know virtio-mem (Linux 5.8). `dimm`: by memory modules of multiples of 128M, one "
        "for each change, up to `max` and `slots`; one goes as a whole, and only if the guest uses it for what can be "
        "moved. `balloon`: up to `max`, by a guest that has a driver for it. By default `virtio-mem` where `max` is "
        "given, else `balloon` where there is one.",
        default="",
        qemu="virtio-mem, pc-dimm, balloon",
    )
    balloon: bool = key(kinds.BOOLEAN, "Give the guest a memory balloon.", default=True, qemu="virtio-balloon")
    shared: bool = key(
        kinds.BOOLEAN,
        "Keep the guest's memory so that other programs can be given it, for devices of the types `share` and "
        "`vhost-user` that come while it runs; a unit that has one from the start needs not say it.",
        default=False,
        qemu="memory-backend-memfd share=",
    )
    hugepages: str = key(
        kinds.optional(kinds.choice(*HUGE_PAGES)),
        "Keep the guest's memory in huge pages of this size, which the host must have free: they are all taken when it "
        "starts, as with `prealloc`, and free again when it has ended. By default in pages of the usual size.",
        default="",
        qemu="memory-backend-memfd hugetlb=, hugetlbsize=",
    )
    prealloc: bool = key(
        kinds.BOOLEAN,
        "Take all of its memory from the host before the guest runs, and what comes later when it comes, instead of "
        "page by page as the guest touches it. That takes seconds for many GiB, which the default `start-timeout` "
        "allows for.",
        default=False,
        qemu="memory-backend prealloc=, virtio-mem prealloc=",
    )
    prealloc_threads: int = key(
        kinds.integer(0, 256),
        "Threads that take memory of the host, with `prealloc` or `hugepages`, on the CPUs of the VM; QEMU has 16 at "
        "most, and no more than the host has CPUs. 0: as many as `vcpus`, in each `[[numa]]` as it has.",
        default=0,
        qemu="memory-backend prealloc-threads=, prealloc-context=",
    )
    merge: bool | None = key(
        kinds.SWITCH,
        "Whether the host may keep pages once that are the same here and in other VMs (KSM). That saves memory, costs "
        "time, and lets a guest find out what is in another's. By default it may, and does where its ksmd runs.",
        default=None,
        qemu="-machine mem-merge=",
    )
    transparent_hugepages: bool | None = key(
        kinds.SWITCH,
        "Whether the host may put its memory into huge pages as it goes, without a pool. `false`: none of QEMU's is. "
        "By default QEMU asks for it, and the host does it unless it is set to `never`.",
        default=None,
        qemu="PR_SET_THP_DISABLE, madvise MADV_HUGEPAGE",
    )
    lock: bool = key(
        kinds.BOOLEAN,
        "Keep all of QEMU in memory, so that nothing of it is ever swapped out.",
        default=False,
        qemu="-overcommit mem-lock=",
    )
    nodes: str | tuple[int, ...] = key(
        kinds.NODES,
        'The NUMA nodes of the host that its memory is on, such as `"0"` or `"0-1"`. `"auto"`: those that `pin = '
        '"auto"` has chosen at the start, which then looks for memory, too. By default memory is of the node whose '
        "CPU first touches it.",
        default=(),
        qemu="memory-backend host-nodes=",
    )
    policy: str = key(
        kinds.choice(*POLICIES),
        "What `nodes` means. `bind`: these alone. `preferred`: others, too, when the first of them has no more. "
        "`interleave`: page by page in turn, others when these have no more.",
        default="bind",
        qemu="memory-backend policy=",
    )
    growth_node: str = key(
        kinds.optional(kinds.NAME),
        "The `[[numa]]` of its guest that memory comes to while it runs, by `virtio-mem` or `dimm`; by default the "
        "first.",
        default="",
        qemu="virtio-mem node=, pc-dimm node=",
    )


#: NUMA nodes that a guest can have (MAX_NODES in QEMU's source), and the distances that two of them can have: what is
#: nearer is the node itself, what is farther counts as out of reach (NUMA_DISTANCE_MIN, NUMA_DISTANCE_MAX).
MAX_GUEST_NODES, LOCAL_DISTANCE, FARTHEST = 128, 10, 254


@frozen(kw_only=True)
class NumaSection:
    """``[[numa]]``: a NUMA node that the guest sees."""

    id: str = key(
        kinds.NAME, "Its name within the VM. The guest numbers its nodes from 0, in the order of the entries."
    )
    present: bool = present("")
    vcpus: tuple[int, ...] = key(
        kinds.optional(kinds.CPU_SET, ()),
        'The vCPUs that are in it, counted from 0 up to `max-vcpus`, such as `"0-3"`; each is in one node. By default '
        "it has memory alone. Where nodes have equal numbers of vCPUs, in order, and `[cpu.topology]` says nothing, "
        "each is a socket.",
        default=(),
        qemu="-numa node,cpus=",
    )
    size: int = key(
        kinds.size(0, 1 << 46),
        'Its part of the memory that the machine is started with. `"0B"`: what the others leave, shared evenly by '
        "those that say so.",
        default=0,
        qemu="-numa node,memdev=",
    )
    nodes: str | tuple[int, ...] = key(
        kinds.NODES,
        'The NUMA nodes of the host that this memory is on. `"auto"`: the one that `pin = "auto"` has chosen for its '
        "vCPUs. By default what `[memory] nodes` says.",
        default=(),
        qemu="memory-backend host-nodes=",
    )
    policy: str = key(
        kinds.optional(kinds.choice(*POLICIES)),
        "What `nodes` means; by default what `[memory] policy` says.",
        default="",
        qemu="memory-backend policy=",
    )
    distances: tuple[int, ...] = key(
        kinds.list_of(kinds.integer(LOCAL_DISTANCE, FARTHEST), maximum=MAX_GUEST_NODES),
        "How far each node is from it, in the order of the entries, such as `[10, 21]`; its own is 10. A node that "
        "does not say it is as far from each other one as that is from it. By default all are 20 apart for it.",
        default=(),
        qemu="-numa dist",
    )
