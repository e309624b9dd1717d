"""What holds a guest's memory: at the start, and what comes later."""

from __future__ import annotations

import json
from typing import Any

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from qsup.plan.memory import module_part
from qsup.plan.spec import Plan
from qsup.unit.check import check
from qsup.unit.effective import huge_page, start_timeout
from qsup.unit.guestnodes import effective_sockets, node_sizes
from qsup.unit.model import Unit
from qsup.unit.parse import unit_from_values
from qsup.unit.sections.memory import MEMORY_BLOCK
from tests.plan import goldens
from tests.plan.building import build


def stores(plan: Plan) -> list[dict[str, Any]]:
    """The objects that hold it, as QEMU is given them."""
    objects = [str(each) for each in plan.arguments if str(each).startswith('{"qom-type"')]
    return [each for each in map(json.loads, objects) if each["qom-type"].startswith("memory-backend")]


def test_chosen_nodes_count_where_the_unit_asks_for_them() -> None:
    """Named ones are as they are; without the key nothing is bound, whatever was chosen for the CPUs."""
    for nodes, expected in (("auto", (2, 3)), ("1", (1,)), ("", ())):
        plan = build(unit_from_values({"cpu": {"pin": "auto"}, "memory": {"nodes": nodes}}), chosen_nodes=(2, 3))
        assert plan.summary().memory_nodes == expected
        assert [store["host-nodes"] for store in stores(plan)] == [list(expected)] * bool(expected)


def test_a_module_is_kept_as_the_rest_is() -> None:
    """On the nodes that were chosen at the start, in the same pages, and for others as long as the VM is."""
    memory = {"hugepages": "2M", "nodes": "auto", "policy": "preferred", "balloon": False}
    unit = unit_from_values({"cpu": {"pin": "auto", "vcpus": 4}, "memory": memory})
    plan = build(unit, chosen_nodes=(1,))
    (first,) = stores(plan)
    (module,) = module_part(0, 128 << 20, unit, plan.summary()).backends
    assert {**module.properties, "id": "ram", "size": first["size"]} == first
    assert (first["prealloc"], first["prealloc-threads"], first["share"]) == (True, 4, True)
    plain = unit_from_values({})
    shared = evolve(build(plain).summary(), shared_memory=True)
    (module,) = module_part(0, 128 << 20, plain, shared).backends
    assert module.properties == {"qom-type": "memory-backend-memfd", "id": "memory-0", "size": 128 << 20, "share": True}


def test_memory_that_grows_is_taken_when_it_comes() -> None:
    """By its device, bit by bit, and not with the object that could hold all of it."""
    unit = unit_from_values({"memory": {"max": "4G", "prealloc": True, "balloon": False}})
    plan = build(unit)
    first, growth = stores(plan)
    assert (first["prealloc"], growth["reserve"], growth.get("prealloc")) == (True, False, None)
    assert any('"driver":"virtio-mem-pci"' in str(each) and '"prealloc":true' in str(each) for each in plan.arguments)


def guest_of(**memory: Any) -> Unit:
    """One of three nodes, of which the last has memory alone and the others share what it leaves."""
    nodes = [{"id": "a", "vcpus": "0"}, {"id": "b", "vcpus": "1", "nodes": "auto"}, {"id": "c", "size": "64M"}]
    return unit_from_values({"cpu": {"vcpus": 2, "pin": "auto"}, "memory": {"size": "512M", **memory}, "numa": nodes})


def test_each_node_of_a_guest_has_an_object() -> None:
    """Of its size, on the nodes of the host that it names or that were chosen for it, else on those of all memory."""
    plan = build(guest_of(nodes="3", policy="preferred"), chosen_nodes=(0, 1), homes=(0, 1, 2))
    said = [(each["id"], each["size"] >> 20, each["host-nodes"], each["policy"]) for each in stores(plan)]
    assert said == [
        ("ram-0", 224, [3], "preferred"),
        ("ram-1", 224, [1], "preferred"),
        ("ram-2", 64, [3], "preferred"),
    ]
    assert plan.summary().memory_nodes == (1, 3)
    assert not any("memory-backend=" in str(argument) for argument in plan.arguments)
    everywhere = build(guest_of(nodes="auto"), chosen_nodes=(0, 1), homes=(0, 1, 0))
    assert [node.nodes for node in everywhere.summary().guest_nodes] == [(0,), (1,), (0,)]


def test_what_comes_is_where_its_node_is() -> None:
    """In the guest and on the host, by virtio-mem and as a module; by default in the first node."""
    unit = guest_of(max="1G", **{"growth-node": "b"})
    plan = build(unit, homes=(0, 1, 2))
    (growth,) = [json.loads(str(each)) for each in plan.arguments if "virtio-mem-pci" in str(each)]
    assert (growth["node"], stores(plan)[-1]["host-nodes"]) == (1, [1])
    for named, number in (("b", 1), ("", 0)):
        unit = guest_of(max="1G", slots=1, resize="dimm", **{"growth-node": named})
        part = module_part(0, 128 << 20, unit, build(unit, homes=(0, 1, 2)).summary())
        assert part.devices[0]["node"] == number
        assert part.backends[0].properties.get("host-nodes") == ([1] if number else None)


@given(st.integers(1, 1 << 12), st.lists(st.integers(0, 64), min_size=1, max_size=5), st.sampled_from(["", "2M", "1G"]))
def test_sizes_add_up(total: int, sizes: list[int], page: str) -> None:
    """Where a unit is possible its nodes make up all of the machine's memory, in whole pages."""
    block = max(huge_page(unit_from_values({"memory": {"hugepages": page}})), MEMORY_BLOCK)
    nodes = [{"id": f"n{number}", "size": f"{size * block}B"} for number, size in enumerate(sizes)]
    nodes[0]["vcpus"] = "0"
    memory = {"size": f"{total * block}B", "hugepages": page, "balloon": False}
    unit = unit_from_values({"memory": memory, "numa": nodes})
    if not check(unit):
        got = node_sizes(unit)
        assert sum(got) == total * block
        assert all(size and size % block == 0 for size in got)
        assert all(size in (0, had // block) for size, had in zip(sizes, got, strict=True))
    else:
        assert sum(sizes) + sizes.count(0) > total if 0 in sizes else sum(sizes) != total


def test_equal_nodes_in_order_are_sockets() -> None:
    """Unless the unit says how vCPUs are arranged, and where nodes are not alike: then they are as it says."""
    for sets, topology, expected in (
        (("0-1", "2-3", ""), {}, 2),
        (("0-1", "2-3"), {"cores": 4}, 0),
        (("0,2", "1,3"), {}, 0),
        (("0", "1-3"), {}, 0),
        ((), {"sockets": 2}, 2),
    ):
        nodes = [{"id": f"n{number}", "vcpus": vcpus} for number, vcpus in enumerate(sets)]
        unit = unit_from_values({"cpu": {"vcpus": 2, "max-vcpus": 4, "topology": topology}, "numa": nodes})
        assert effective_sockets(unit) == expected


def test_memory_is_taken_by_threads_near_it() -> None:
    """For each node of a guest whose vCPUs are pinned, by as many as it has vCPUs; else by as many as the VM has."""
    unit = guest_of(prealloc=True, balloon=False)
    plan = build(unit, homes=(0, 1, 0), node_cpus=((4, 5), (), ()))
    contexts = [json.loads(str(each)) for each in plan.arguments if "thread-context" in str(each)]
    assert contexts == [{"qom-type": "thread-context", "id": "prealloc-0", "cpu-affinity": [4, 5]}]
    threads = [(each["id"], each["prealloc-threads"], each.get("prealloc-context")) for each in stores(plan)]
    assert threads == [("ram-0", 1, "prealloc-0"), ("ram-1", 1, None), ("ram-2", 2, None)]
    older = evolve(goldens.capabilities(), objects=frozenset())
    plan = build(
        guest_of(prealloc=True, balloon=False, **{"prealloc-threads": 8}), node_cpus=((4,),), capabilities=older
    )
    assert [(each["prealloc-threads"], each.get("prealloc-context")) for each in stores(plan)] == [(8, None)] * 3
    assert "thread-context" not in str(build(guest_of(), node_cpus=((4,), (5,), (6,))).arguments)


def test_what_a_host_does_not_do_is_told() -> None:
    """Only to whoever asks for it in so many words, and by the file that counts for this memory."""
    asked = {"merge": True, "transparent-hugepages": True}
    never = evolve(goldens.HOSTS[""], merges_pages=True, hugepages={"enabled": "never", "shmem_enabled": "advise"})
    for memory, host, expected in (
        (asked, goldens.HOSTS[""], ["merge: this host merges no pages, as its ksmd does not run"]),
        (asked, never, ["gives none, as /sys/kernel/mm/transparent_hugepage/enabled is never"]),
        ({"transparent-hugepages": True, "shared": True}, never, []),
        ({"merge": False, "transparent-hugepages": False}, never, []),
        ({}, goldens.HOSTS[""], []),
    ):
        warnings = [
            words for words in build(unit_from_values({"memory": memory}), host=host).warnings if "[memory]" in words
        ]
        assert len(warnings) == len(expected)
        assert all(part in words for part, words in zip(expected, warnings, strict=True))


def test_a_start_has_time_to_take_memory() -> None:
    """Some seconds more for each GiB that is taken at once, unless the unit says how long it may last."""
    for memory, service, expected in (
        ({"size": "64G"}, {}, 90),
        ({"size": "64G", "prealloc": True}, {}, 90 + 3 * 64),
        ({"size": "512M", "hugepages": "2M"}, {}, 93),
        ({"size": "64G", "lock": True}, {"start-timeout": "5s"}, 5),
    ):
        assert start_timeout(unit_from_values({"memory": memory, "service": service})) == expected
