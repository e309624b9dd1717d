"""The daemon itself: where to begin, who is asking, how it is, what it measures, what it speaks.

Decides: what the daemon says of itself.
Must not: say anything of one VM that its own routes do not.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import trio

from qsup.api import jsontext, metrics, wire
from qsup.api.http import Answer, Response, Role, json_response
from qsup.api.protocol import JSON, PREFIX
from qsup.api.roles import role_of
from qsup.api.routes.endpoint import Call, Endpoint, Reply
from qsup.instance.state import Level

_LINKS = {
    "instances": f"{PREFIX}/instances",
    "units": f"{PREFIX}/units",
    "dependencies": f"{PREFIX}/dependencies",
    "operations": f"{PREFIX}/operations",
    "topology": f"{PREFIX}/topology",
    "events": f"{PREFIX}/events",
    "health": f"{PREFIX}/health",
    "whoami": f"{PREFIX}/whoami",
    "openapi": f"{PREFIX}/openapi.json",
    "unit_schema": f"{PREFIX}/schemas/unit.json",
    "metrics": "/metrics",
}


async def _root(call: Call) -> Answer:
    root: wire.Root = {"name": "qsup", "version": call.api.version, "links": _LINKS}
    return json_response(root)


async def _health(call: Call) -> Answer:
    found = call.backend.health()
    levels = Counter(view.state.level for view in call.backend.instances())
    health: wire.Health = {
        "status": "degraded" if found.problems else "ok",
        "version": call.api.version,
        "pid": os.getpid(),
        "uptime": found.uptime,
        "instances": {level.value: levels[level] for level in Level},
        "descriptors": {"used": found.descriptors.used, "limit": found.descriptors.limit},
        "memory": {"used": found.memory.used, "limit": found.memory.limit},
        "problems": list(found.problems),
    }
    return json_response(health)


async def _whoami(call: Call) -> Answer:
    peer, policy = call.request.peer, call.api.policy
    role = role_of(peer, daemon_uid=policy.daemon_uid, operate_gids=policy.operate_gids, read_gids=policy.read_gids)
    return json_response(
        {
            "uid": peer.uid,
            "gid": peer.gid,
            "pid": peer.pid,
            "groups": sorted(peer.groups),
            # a stranger does not come as far as here
            "role": (role or Role.READ).label,
        }
    )


async def _metrics(call: Call) -> Answer:
    snapshot = metrics.take_snapshot(call.backend, call.api.traffic, version=call.api.version)
    text, media = await trio.to_thread.run_sync(metrics.exposition, snapshot, call.request.headers.get("accept", ""))
    return Response(headers={"content-type": media}, body=text)


async def _openapi(call: Call) -> Answer:
    return await _document(call, "openapi", _make_openapi)


async def _unit_schema(call: Call) -> Answer:
    return await _document(call, "unit", _make_unit_schema)


async def _document(call: Call, name: str, make: Callable[[], bytes]) -> Answer:
    """A document that is made once, when it is first asked for; slowly, so that a worker thread does it."""
    documents = call.api.documents
    if name not in documents:
        documents[name] = await trio.to_thread.run_sync(make)
    return Response(headers={"content-type": JSON}, body=documents[name])


def _make_openapi() -> bytes:
    # made from the table that this module is part of
    from qsup.api.openapi import document

    return jsontext.dumps(document())


def _make_unit_schema() -> bytes:
    from qsup.unit.schema import unit_schema

    return jsontext.dumps(unit_schema())


ENDPOINTS = (
    Endpoint(
        id="getRoot",
        method="GET",
        pattern="/",
        handler=_root,
        role=Role.READ,
        summary="Where to begin",
        replies=(Reply(shape=wire.Root, doc="The daemon's name, its version, and links."),),
    ),
    Endpoint(
        id="getApiRoot",
        method="GET",
        pattern=PREFIX,
        handler=_root,
        role=Role.READ,
        summary="Where to begin with this version of the API",
        replies=(Reply(shape=wire.Root, doc="The same as `/`."),),
    ),
    Endpoint(
        id="getHealth",
        method="GET",
        pattern=f"{PREFIX}/health",
        handler=_health,
        role=Role.READ,
        summary="How the daemon is",
        doc="`degraded` names what is wrong with the daemon itself, such as a lack of descriptors or memory for "
        "which it turns clients out; a VM that failed does not degrade it.",
        replies=(Reply(shape=wire.Health, doc="Its state, and how many VMs are in each."),),
    ),
    Endpoint(
        id="getWhoami",
        method="GET",
        pattern=f"{PREFIX}/whoami",
        handler=_whoami,
        role=Role.READ,
        summary="Who the caller is to the daemon",
        replies=(Reply(shape=wire.Whoami, doc="The credentials the kernel gave, and the role they have."),),
    ),
    Endpoint(
        id="getOpenapi",
        method="GET",
        pattern=f"{PREFIX}/openapi.json",
        handler=_openapi,
        role=Role.READ,
        summary="This API's OpenAPI 3.1 document",
        replies=(Reply(shape=dict, doc="The document."),),
    ),
    Endpoint(
        id="getUnitSchema",
        method="GET",
        pattern=f"{PREFIX}/schemas/unit.json",
        handler=_unit_schema,
        role=Role.READ,
        summary="The JSON Schema of a unit file",
        replies=(Reply(shape=dict, doc="The schema, for editors that check TOML against one."),),
    ),
    Endpoint(
        id="getMetrics",
        method="GET",
        pattern="/metrics",
        handler=_metrics,
        role=Role.READ,
        summary="Metrics for Prometheus",
        doc="Prometheus' text format, or OpenMetrics where `Accept` asks for it.",
        replies=(Reply(shape=str, media="text/plain", doc="The metrics."),),
    ),
)
