"""Instances: what runs, as the supervisor knows it.

Decides: how VMs are listed and shown.
Must not: wait for a VM, or change one.
"""

from __future__ import annotations

import trio

from qsup.api import hostwire, measures, render, wire
from qsup.api.http import Answer, Response, Role, json_response
from qsup.api.protocol import JSON, PREFIX
from qsup.api.routes.endpoint import Call, Endpoint, Reply
from qsup.api.routes.paging import page_by_name
from qsup.api.routes.parameters import PAGING, word
from qsup.errors import DeniedError, HostError, NoSuchInstance, NoSuchUnit, UnitError
from qsup.instance.state import Level, State

INSTANCE = f"{PREFIX}/instances/{{instance}}"

_STATES = (*(level.value for level in Level), *(state.substate for state in State))
_JSON_HEADERS = {"content-type": JSON}


async def _list(call: Call) -> Answer:
    views = call.backend.instances()
    cache = call.api.instances
    cache.forget_others(views)
    if (wanted := call.query["state"]) is not None:
        views = [view for view in views if wanted in (view.state.level.value, view.state.substate)]
    page, after = page_by_name(views, lambda view: view.name, call.query)
    return Response(headers=_JSON_HEADERS, body=cache.many(page, after))


async def _get(call: Call) -> Answer:
    return Response(headers=_JSON_HEADERS, body=call.api.instances.one(call.backend.instance(call.instance())))


async def _dependencies(call: Call) -> Answer:
    return json_response(render.dependencies(await call.backend.relations()))


async def _stats(call: Call) -> Answer:
    return json_response(measures.stats(await trio.to_thread.run_sync(call.backend.counters(call.instance()))))


async def _memory(call: Call) -> Answer:
    found = await call.backend.node_memory(call.instance())
    return json_response(measures.node_memory(found, found.read_at))


async def _cpus(call: Call) -> Answer:
    return json_response(measures.cpus(await call.backend.cpus(call.instance())))


async def _cmdline(call: Call) -> Answer:
    argv, running = call.backend.command_line(call.instance())
    line: wire.CommandLine = {"argv": list(argv), "running": running}
    return json_response(line)


async def _diff(call: Call) -> Answer:
    return json_response(render.diff(await call.backend.diff(call.instance())))


ENDPOINTS = (
    Endpoint(
        id="listInstances",
        method="GET",
        pattern=f"{PREFIX}/instances",
        handler=_list,
        role=Role.READ,
        summary="All VMs, sorted by name",
        query=(*PAGING, word("state", "Only those in this state or substate.", *_STATES)),
        replies=(Reply(shape=wire.InstanceList, doc="The VMs."),),
    ),
    Endpoint(
        id="getInstance",
        method="GET",
        pattern=INSTANCE,
        handler=_get,
        role=Role.READ,
        summary="One VM",
        doc="Answered from what the supervisor knows, never by waiting for the VM.",
        replies=(Reply(shape=wire.Instance, doc="The VM."),),
        errors=(NoSuchInstance,),
    ),
    Endpoint(
        id="listDependencies",
        method="GET",
        pattern=f"{PREFIX}/dependencies",
        handler=_dependencies,
        role=Role.READ,
        summary="What the units of all VMs say of each other",
        doc="Instances of templates that are named and were never started are among them.",
        replies=(Reply(shape=wire.DependencyList, doc="The relations, with the VMs' states."),),
    ),
    Endpoint(
        id="getInstanceStats",
        method="GET",
        pattern=f"{INSTANCE}/stats",
        handler=_stats,
        role=Role.READ,
        summary="A VM's counters",
        doc="Those of its process as they are; those of disks, of what the guest says of its memory, and of where on "
        "the host that is, as last read: they are read while somebody asks, so the first answer may have none.",
        replies=(Reply(shape=hostwire.Stats, doc="The counters."),),
        errors=(NoSuchInstance, DeniedError),
    ),
    Endpoint(
        id="getInstanceMemory",
        method="GET",
        pattern=f"{INSTANCE}/memory",
        handler=_memory,
        role=Role.READ,
        summary="Where on the host a VM's memory is, by NUMA node",
        doc="Read at this moment (`/proc/PID/numa_maps`), which takes the kernel up to some seconds for a large VM. "
        "After ten it is an error. The counters have what was read last, and wait for nothing.",
        replies=(Reply(shape=hostwire.NodeMemoryWire, doc="The nodes that have any of it."),),
        errors=(NoSuchInstance, DeniedError, HostError),
    ),
    Endpoint(
        id="getInstanceCpus",
        method="GET",
        pattern=f"{INSTANCE}/cpus",
        handler=_cpus,
        role=Role.READ,
        summary="The threads of a VM's QEMU, and which CPUs they run on",
        doc="As the kernel has them now. What they are to run on is `cpu.pin` and `cpu.emulator-pin` of its unit.",
        replies=(Reply(shape=hostwire.Cpus, doc="The threads, the main one first."),),
        errors=(NoSuchInstance, DeniedError),
    ),
    Endpoint(
        id="getInstanceCommandLine",
        method="GET",
        pattern=f"{INSTANCE}/cmdline",
        handler=_cmdline,
        role=Role.READ,
        summary="QEMU's command line: the running one, or that of the last start",
        doc="A VM that was not started since the daemon was has none. It holds no secrets: those reach QEMU through "
        "descriptors and its monitor.",
        replies=(Reply(shape=wire.CommandLine, doc="The arguments, the emulator first."),),
        errors=(NoSuchInstance, DeniedError),
    ),
    Endpoint(
        id="diffInstance",
        method="GET",
        pattern=f"{INSTANCE}/diff",
        handler=_diff,
        role=Role.READ,
        summary="What differs between a running VM and its unit's files",
        doc="The files are read afresh, drop-ins included. Nothing is restarted; `needs` says what makes each value "
        "count.",
        replies=(Reply(shape=wire.Diff, doc="The keys that differ, none when the VM runs as its unit says."),),
        errors=(NoSuchInstance, DeniedError, NoSuchUnit, UnitError),
    ),
)
