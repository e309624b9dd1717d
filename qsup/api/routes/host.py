"""The host that VMs run on.

Decides: what the daemon says of it.
Must not: say anything of a VM but where on the host it has been put, and what it was promised.
"""

from __future__ import annotations

from qsup.api import hostwire, measures
from qsup.api.capacity import capacity
from qsup.api.http import Answer, Role, json_response
from qsup.api.protocol import PREFIX
from qsup.api.routes.endpoint import Call, Endpoint, Reply
from qsup.errors import HostError


async def _topology(call: Call) -> Answer:
    return json_response(measures.topology(await call.backend.topology()))


async def _capacity(call: Call) -> Answer:
    return json_response(capacity(await call.backend.capacity()))


ENDPOINTS = (
    Endpoint(
        id="getTopology",
        method="GET",
        pattern=f"{PREFIX}/topology",
        handler=_topology,
        role=Role.READ,
        summary="What the host is made of, and who is pinned where",
        doc="CPUs, caches, NUMA nodes and pools of huge pages, as the kernel says it at this moment. It waits for no "
        "VM, and seconds at most for the kernel.",
        replies=(Reply(shape=hostwire.Topology, doc="The host."),),
        errors=(HostError,),
    ),
    Endpoint(
        id="getCapacity",
        method="GET",
        pattern=f"{PREFIX}/capacity",
        handler=_capacity,
        role=Role.READ,
        summary="What of the host may be promised to VMs, what is, and to whom",
        doc="Memory, huge pages and CPUs, of the host and of each NUMA node. It waits for no VM, and seconds at most "
        "for the kernel.",
        replies=(Reply(shape=hostwire.Capacity, doc="The account."),),
        errors=(HostError,),
    ),
)
