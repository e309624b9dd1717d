"""What holds a guest's memory: at the start, and what comes later."""

from __future__ import annotations

import json
from typing import Any

from attrs import evolve

from qsup.plan.devices import module_part
from qsup.plan.spec import Plan
from qsup.unit.parse import unit_from_values
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
