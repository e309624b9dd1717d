"""From the supervisor's values to the shapes on the wire.

Decides: which member of `qsup.api.wire` each field becomes, how times are written, and that an instance is rendered
once per change instead of once per request.
Must not: choose what a client may see (routes do), or ask anybody for more than the value it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, cast

from qsup.api import jsontext, wire
from qsup.api.message import problem
from qsup.errors import Diagnostic, QsupError
from qsup.host.limits import Devices, Effective
from qsup.instance.operation import Begun, Operation
from qsup.instance.view import EventRecord, HardwareView, InstanceView
from qsup.order.view import Relation, Relations
from qsup.plan.inventory import Slots
from qsup.unit.info import ReloadResult, UnitChanges, UnitInfo, UnitPreview
from qsup.unit.quantity import CPU_SHARE, format_cpu_set


def timestamp(seconds: float) -> str:
    """Wall clock seconds since the epoch as RFC 3339 in UTC with microseconds.

    >>> timestamp(0.25)
    '1970-01-01T00:00:00.250000Z'
    """
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def instance(view: InstanceView) -> wire.Instance:
    """One VM."""
    return {
        "name": view.name,
        "state": view.state.level.value,
        "substate": view.state.substate,
        "cause": None if view.cause is None else cast("wire.CauseWire", view.cause.values()),
        "pid": view.pid,
        "uid": view.uid,
        "since": timestamp(view.since),
        "restarts": view.restarts,
        "resets": view.resets,
        "uuid": view.uuid,
        "unit": {
            "name": view.name,
            "description": view.description,
            "files": list(view.files),
            "autostart": view.autostart,
            "stale": view.unit_stale,
            "needs_restart": view.needs_restart,
        },
        "machine": {
            "type": view.machine,
            "accel": view.accel,
            "cpu_model": view.cpu_model,
            "emulator": view.emulator,
            "firmware": view.firmware,
        },
        "cpus": {"vcpus": view.vcpus, "max_vcpus": view.max_vcpus, "threads": list(view.threads)},
        "memory": {
            "size": view.memory_size,
            "max": view.memory_max,
            "actual": view.memory_actual,
            "page": view.memory_page,
            "nodes": list(view.memory_nodes),
            "guest_nodes": [
                {
                    "id": node.id,
                    "size": node.size,
                    "vcpus": format_cpu_set(node.vcpus),
                    "nodes": list(node.nodes),
                }
                for node in view.guest_nodes
            ],
        },
        "limits": None if view.limited is None else _limits(view.limited),
        "disks": [
            {
                "id": disk.id,
                "state": _state(view, f"disk.{disk.id}"),
                "path": disk.path,
                "format": disk.format,
                "type": disk.type,
                "bus": disk.bus,
                "read_only": disk.read_only,
                "iothread": disk.iothread,
                "throttle": dict(view.limits.get(disk.id, {})),
                "tray": cast("Any", view.trays.get(disk.id, "")),
            }
            for disk in view.disks
        ],
        "nics": [
            {
                "id": nic.id,
                "state": _state(view, f"nic.{nic.id}"),
                "type": nic.type,
                "model": nic.model,
                "mac": nic.mac,
                "bridge": nic.bridge,
                "forward": list(nic.forward),
                "link": cast("Any", view.links.get(nic.id, "up")),
            }
            for nic in view.nics
        ],
        "devices": [
            {"id": each.id, "state": _state(view, f"device.{each.id}"), "type": each.type, "socket": each.socket}
            for each in view.devices
        ],
        "slots": None if view.slots is None else _slots(view.slots),
        "agent": {"enabled": view.agent_enabled, "connected": view.agent_connected},
        "console": {
            "type": view.console,
            "watchers": view.console_watchers,
            "has_writer": view.console_has_writer,
        },
        "display": {"type": view.display, "video": view.video},
        "operation": view.operation,
        "waits_for": view.waits_for,
        "warnings": list(view.warnings),
    }


def _state(view: InstanceView, entry: str) -> wire.PartState:
    return cast("wire.PartState", view.moving.get(entry, "there"))


def _slots(slots: Slots) -> wire.SlotsWire:
    return {"free": slots.free, "total": slots.total}


def _limits(limits: Effective) -> wire.LimitsWire:
    return {
        "cpu": _cpus(limits.cpu),
        "vcpu_cpu": _cpus(limits.vcpu_cpu),
        "emulator_cpu": _cpus(limits.emulator_cpu),
        "cpu_weight": limits.cpu_weight,
        "memory": limits.memory,
        "memory_high": limits.memory_high,
        "pids": limits.pids,
        "swap": limits.swap,
        "io_weight": limits.io_weight,
        "io_read_bps": _of_devices(limits.io_read_bps),
        "io_write_bps": _of_devices(limits.io_write_bps),
        "io_read_iops": _of_devices(limits.io_read_iops),
        "io_write_iops": _of_devices(limits.io_write_iops),
        "cpuset_cpus": None if limits.cpuset_cpus is None else format_cpu_set(limits.cpuset_cpus),
        "cpuset_mems": None if limits.cpuset_mems is None else format_cpu_set(limits.cpuset_mems),
        "oom_score_adjust": limits.oom_score_adjust,
        "nofile": limits.nofile,
    }


def _cpus(limit: int | None) -> float | None:
    return None if limit is None else limit / CPU_SHARE


def _of_devices(limit: Devices | None) -> dict[str, int] | None:
    return None if limit is None else dict(limit)


def devices(view: HardwareView) -> wire.PluggedList:
    """Every device of a VM, in the order in which they came."""
    return {
        "devices": [
            {
                "id": device.id,
                "driver": device.driver,
                "bus": device.bus,
                "address": device.address,
                "entry": part.entry,
                "state": cast("wire.PartState", part.state),
            }
            for part in view.parts
            for device in part.devices
        ],
        "slots": _slots(view.slots),
        "absent": list(view.absent),
    }


class InstanceCache:
    """Instances as JSON text, each rendered once for as long as its view lives.

    Views are frozen and replaced at each change, so a view's identity says whether its text is still right. A list of a
    hundred VMs is then a join of a hundred byte strings.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[InstanceView, bytes]] = {}

    def one(self, view: InstanceView) -> bytes:
        """The JSON text of one VM."""
        known = self._known.get(view.name)
        if known is not None and known[0] is view:
            return known[1]
        text = jsontext.dumps(instance(view))
        self._known[view.name] = (view, text)
        return text

    def many(self, views: Sequence[InstanceView], after: str | None) -> bytes:
        """The JSON text of a `wire.InstanceList`.

        Args:
            after: what ``next`` says.
        """
        rows = b",".join(map(self.one, views))
        return b'{"instances":[%b],"next":%b}' % (rows, jsontext.dumps(after))

    def names(self) -> set[str]:
        """Of the VMs whose text is kept."""
        return set(self._known)

    def forget_others(self, views: Sequence[InstanceView]) -> None:
        """Drop every VM that is not among ``views``, all there are."""
        if len(self._known) > len(views):
            names = {view.name for view in views}
            self._known = {name: known for name, known in self._known.items() if name in names}


def dependencies(found: Relations) -> wire.DependencyList:
    """The relations of all VMs."""
    return {
        "dependencies": [_relation(each) for each in found.vms],
        "cycles": [list(cycle) for cycle in found.cycles],
    }


def _relation(value: Relation) -> wire.Dependencies:
    return {
        "name": value.name,
        "state": value.state.level.value if value.state else None,
        "substate": value.state.substate if value.state else None,
        "after": list(value.unit.after),
        "before": list(value.unit.before),
        "requires": list(value.unit.requires),
        "wants": list(value.unit.wants),
        "conflicts": list(value.unit.conflicts),
    }


def operation(value: Operation, request_id: str) -> wire.Operation:
    """One operation.

    Args:
        request_id: of the request that asks; a problem document names it.
    """
    return {
        "id": value.id,
        "kind": value.kind,
        "target": value.target,
        "arguments": dict(value.arguments),
        "state": value.state.value,
        "progress": value.progress,
        "created": timestamp(value.created),
        "updated": timestamp(value.updated),
        "cancellable": value.cancellable,
        "result": None if value.result is None else dict(value.result),
        "error": None if value.error is None else failure(value.error, request_id),
    }


def begun(value: Begun, request_id: str) -> wire.BegunOperations:
    """What came of a request of several VMs."""
    return {
        "operations": [operation(each, request_id) for each in value.operations],
        "refused": {name: failure(error, request_id) for name, error in value.refused.items()},
    }


def failure(error: QsupError, request_id: str) -> wire.Problem:
    """An error inside another document, in the words it would have as an answer of its own."""
    return cast("wire.Problem", problem(error, request_id))


def unit(info: UnitInfo, *, whole: bool) -> wire.UnitWire:
    """One unit; with its text and effective values when it is asked for by itself (``whole``)."""
    shape: wire.UnitWire = {
        "name": info.name,
        "files": list(info.files),
        "template": info.template,
        "autostart": info.autostart,
        "description": info.description,
        "etag": info.etag,
    }
    if whole:
        shape["text"] = info.text
        if info.values is not None:
            shape["unit"] = dict(info.values)
    return shape


def diagnostics(found: Iterable[Diagnostic]) -> list[wire.DiagnosticWire]:
    """Errors of unit files."""
    return [cast("wire.DiagnosticWire", diagnostic.as_dict()) for diagnostic in found]


def reload(result: ReloadResult) -> wire.Reload:
    """What a reload found."""
    return {
        "added": list(result.added),
        "changed": list(result.changed),
        "removed": list(result.removed),
        "diagnostics": diagnostics(result.diagnostics),
        "running": [diff(found) for found in result.running],
    }


def diff(found: UnitChanges) -> wire.Diff:
    """A VM against its unit."""
    return {
        "instance": found.instance,
        "running": found.running,
        "changes": [
            {"key": change.key, "old": change.old, "new": change.new, "needs": change.needs.value}
            for change in found.changes
        ],
    }


def preview(found: UnitPreview) -> wire.Preview:
    """What would become of the keys of a unit."""
    keys = {key: cast("wire.KeyVerdict", dict(said)) for key, said in found.keys.items()}
    return {"name": found.name, "running": found.running, "keys": keys}


def event(record: EventRecord) -> wire.Event:
    """One event."""
    return {
        "seq": record.seq,
        "boot_id": record.boot_id,
        "time": timestamp(record.time),
        "type": record.type,
        "instance": record.instance,
        "data": dict(record.data),
    }
