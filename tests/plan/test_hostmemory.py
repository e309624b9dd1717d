"""Memory that a VM wants where and as its unit says, on a host of two nodes with it and one without."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve

from qsup.errors import PlacementError
from qsup.plan.hostmemory import check_nodes, check_room, demand, shortage
from qsup.plan.topology import HostPool, HugePages, Node, Topology
from qsup.unit.parse import unit_from_values

MIB, GIB = 1 << 20, 1 << 30
HOST = Topology(
    cpus=(),
    nodes=(
        Node(number=0, memory=8 * GIB, free=3 * GIB, hugepages=(HugePages(size=2 * MIB, total=512, free=100),)),
        Node(number=1, memory=8 * GIB, free=5 * GIB, hugepages=(HugePages(size=2 * MIB, total=512, free=400),)),
        Node(number=2, memory=0),
    ),
    pools=(HostPool(size=2 * MIB, reserved=50),),
)


def wanted(on: tuple[int, ...] = (), **memory: Any) -> Any:
    """The demand of a unit with these keys of `[memory]`."""
    return demand("web", unit_from_values({"memory": {"balloon": False, **memory}}), on)


@pytest.mark.parametrize(
    ("memory", "on", "words"),
    [
        ({"size": "900M", "hugepages": "2M"}, (), ""),
        ({"size": "902M", "hugepages": "2M"}, (), "451 huge pages of 2M for 902M of memory, and 450 are free: 1 are"),
        ({"size": "200M", "hugepages": "2M"}, (0,), ""),
        ({"size": "1G", "hugepages": "2M"}, (0,), "512 huge pages of 2M on node 0 for 1G of memory, and 100 are free"),
        ({"size": "1G", "hugepages": "2M", "policy": "preferred"}, (0,), "of 2M for 1G of memory, and 450 are free"),
        ({"size": "400M", "hugepages": "2M", "policy": "interleave"}, (0,), ""),
        ({"size": "1G", "hugepages": "1G"}, (), "wants huge pages of 1G, and this host has those of 2M"),
        ({"size": "512M", "min": "64M", "max": "2G", "hugepages": "2M"}, (), ""),
        ({"size": "8G", "prealloc": True}, (), ""),
        ({"size": "9G", "prealloc": True}, (), "wants 9G of memory at once, and 8G can be had: 1G are missing"),
        ({"size": "4G", "lock": True}, (0,), "wants 4G of memory on node 0 at once, and 3G can be had: 1G are missing"),
        ({"size": "4G", "prealloc": True, "policy": "preferred"}, (0,), ""),
        ({"size": "8G"}, (0,), ""),
        ({"size": "9G"}, (0,), "wants 9G of memory on node 0, and there are 8G in all"),
        ({"size": "17G"}, (0, 1), "wants 17G of memory on nodes 0 and 1, and there are 16G in all"),
        ({"size": "17G"}, (), ""),
    ],
)
def test_what_is_refused(memory: dict[str, Any], on: tuple[int, ...], words: str) -> None:
    """What cannot be had at once, or never on those nodes; with the arithmetic, and what to do."""
    if not words:
        return check_room(wanted(on, **memory), HOST)
    with pytest.raises(PlacementError, match=words) as caught:
        check_room(wanted(on, **memory), HOST)
    assert caught.value.hint
    return None


def test_a_host_without_huge_pages() -> None:
    """It says so."""
    nodes = tuple(evolve(node, hugepages=()) for node in HOST.nodes)
    with pytest.raises(PlacementError, match="this host has none at all"):
        check_room(wanted(hugepages="2M"), evolve(HOST, nodes=nodes, pools=()))


@pytest.mark.parametrize(
    ("on", "words"), [((0, 1), ""), ((1, 2), "on node 2, which has no memory"), ((9,), "on node 9, which is not there")]
)
def test_nodes_that_cannot_be_named(on: tuple[int, ...], words: str) -> None:
    """Those without memory, and those that are not there; the others are told."""
    if words:
        with pytest.raises(PlacementError, match=f"{words}: this host has memory on nodes 0 and 1"):
            check_nodes("web", on, HOST)
    else:
        check_nodes("web", on, HOST)


def test_a_host_that_does_not_say_what_it_has() -> None:
    """Nothing is refused for that but huge pages: QEMU may find the rest."""
    silent = Topology(cpus=(), nodes=(Node(number=0, memory=0),))
    check_nodes("web", (0,), silent)
    check_room(wanted((0,), size="1G", prealloc=True), silent)
    with pytest.raises(PlacementError, match="none at all"):
        check_room(wanted((0,), size="1G", hugepages="2M"), silent)


def test_what_others_take_counts_where_it_is_the_same() -> None:
    """The same pages, on a node of both; nothing of who takes it bit by bit."""
    mine = wanted((1,), size="600M", hugepages="2M")
    assert not shortage(mine, HOST)
    for other, missing in (
        (wanted((1,), size="300M", hugepages="2M"), "50 are missing"),
        (wanted((), size="202M", hugepages="2M"), "1 are missing"),
        (wanted((0,), size="600M", hugepages="2M"), ""),
        (wanted((1,), size="8G", prealloc=True), ""),
    ):
        assert shortage(mine, HOST, [other]).endswith(missing)
        assert bool(shortage(mine, HOST, [other])) is bool(missing)
    assert not shortage(wanted(size="8G", prealloc=True), HOST, [wanted(size="8G")])
