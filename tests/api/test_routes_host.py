"""Routes about the host."""

from __future__ import annotations

import json
from pathlib import Path

from attrs import evolve

from qsup.errors import HostError
from qsup.instance.view import TopologyView
from qsup.plan.topology import Node
from tests.api.calling import daemon
from tests.api.fake import HOST


async def test_topology(tmp_path: Path) -> None:
    """Nodes, CPUs and caches as they are, and who is pinned to each CPU."""
    async with daemon(tmp_path, "web") as qsupd:
        qsupd.backend.cpu_sets = {"web": ([0], [0, 1])}
        found = json.loads((await (await qsupd.connect()).get("/v1/topology")).body)
    pool = {"size": 2 << 20, "total": 512, "free": 128}
    node = {"number": 0, "memory": 8 << 30, "free": 5 << 30, "distances": {"0": 10}, "hugepages": [pool]}
    node["promised"] = {"own_cpus": 0, "vcpus": 0.0, "memory": 0}
    assert found["nodes"] == [node]
    assert found["caches"] == [{"level": 3, "type": "Unified", "size": 8 << 20, "cpus": [0, 1]}]
    assert [cpu["pinned"] for cpu in found["cpus"]] == [
        [{"instance": "web", "vcpu": 0}, {"instance": "web", "vcpu": 1}],
        [{"instance": "web", "vcpu": 1}],
    ]
    assert {name: value for name, value in found["cpus"][1].items() if name != "pinned"} == {
        "number": 1,
        "node": 0,
        "package": 0,
        "die": 0,
        "core": 0,
        "kind": "",
        "online": True,
        "isolated": True,
        "allowed": True,
        "owner": "",
    }


async def test_distances_that_nobody_told_are_the_usual_ones(tmp_path: Path) -> None:
    """A client need not know what a node at an unknown distance counts as."""
    async with daemon(tmp_path) as qsupd:
        qsupd.backend.host = evolve(HOST, nodes=(*HOST.nodes, Node(number=2, memory=0)))
        found = json.loads((await (await qsupd.connect()).get("/v1/topology")).body)
    assert [node["distances"] for node in found["nodes"]] == [{"0": 10, "2": 20}, {"0": 20, "2": 10}]


async def test_a_kernel_that_does_not_answer_is_told(tmp_path: Path) -> None:
    """As a failure of the host, in the daemon's words."""

    async def hanging() -> TopologyView:
        raise HostError("the kernel did not say within 5 s what the host is made of")

    async with daemon(tmp_path) as qsupd:
        qsupd.backend.topology = hanging  # type: ignore[method-assign]  # a kernel that hangs cannot be had
        reply = await (await qsupd.connect()).get("/v1/topology")
    assert (reply.status, reply.code) == (500, "host")


async def test_capacity(tmp_path: Path) -> None:
    """What there is, what of it may be promised, what is, and to whom; a promise too much is told as one."""
    mib, gib = 1 << 20, 1 << 30
    async with daemon(tmp_path, "web") as qsupd:
        found = json.loads((await (await qsupd.connect()).get("/v1/capacity")).body)
        qsupd.backend.host = evolve(HOST, nodes=tuple(evolve(node, memory=gib + 512 * mib) for node in HOST.nodes))
        small = json.loads((await (await qsupd.connect()).get("/v1/capacity")).body)
    pool = {"size": 2 * mib, "total": 512, "promised": 0, "left": 512, "free": 128}
    memory = {"total": 7 * gib, "reserved": gib, "overcommit": 2.0, "limit": 12 * gib, "promised": 641 * mib}
    assert found["memory"] == {**memory, "left": 12 * gib - 641 * mib, "used": 2 * gib, "free": 5 * gib}
    assert found["hugepages"] == [pool]
    cpus = {"total": 2, "exclusive": 0, "overcommit": 4.0, "limit": 8, "promised": 1, "left": 7}
    assert found["cpus"] == cpus
    (node,) = found["nodes"]
    assert (node["memory"]["promised"], node["memory"]["limit"], node["hugepages"]) == (512 * mib, 14 * gib, [pool])
    assert (node["cpus"], node["exclusive"]) == (2, 0)
    assert found["instances"] == [
        {"name": "web", "memory": 512 * mib, "own": 129 * mib, "page": 0, "nodes": [0], "vcpus": 1, "exclusive": False}
    ]
    assert (small["memory"]["limit"], small["memory"]["left"]) == (0, -641 * mib)
