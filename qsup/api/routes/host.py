"""The host that VMs run on.

Decides: what the daemon says of it.
Must not: say anything of a VM but where on the host it has been put.
"""

from __future__ import annotations

from qsup.api import render, wire
from qsup.api.http import Answer, Role, json_response
from qsup.api.protocol import PREFIX
from qsup.api.routes.endpoint import Call, Endpoint, Reply
from qsup.errors import HostError


async def _topology(call: Call) -> Answer:
    return json_response(render.topology(await call.backend.topology()))


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
        replies=(Reply(shape=wire.Topology, doc="The host."),),
        errors=(HostError,),
    ),
)
