"""The devices of a VM, and changing them while it runs.

Decides: how an entry of a unit is named by a path, and what a change over HTTP may say.
Must not: judge what can be attached or detached; `qsup.instance.change` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from qsup.api import render, wire
from qsup.api.http import Answer, Role, json_response
from qsup.api.routes.endpoint import Body, Call, Endpoint, Reply
from qsup.api.routes.instances import INSTANCE
from qsup.api.routes.parameters import flag, seconds
from qsup.api.routes.power import KEY, REPLIES, WAIT, answer, idempotency_key
from qsup.errors import (
    BusyError,
    ChangeError,
    DeniedError,
    HostError,
    ImageError,
    KeyReusedError,
    NoSpaceError,
    NoSuchDevice,
    NoSuchInstance,
    PayloadTooLarge,
    QmpCommandError,
    RequestError,
    UnitError,
    UnsupportedError,
)
from qsup.instance.state import Request as Verb
from qsup.unit.assign import changes_of, entry_of
from qsup.unit.quantity import parse_size

#: The nouns of entries that can come and go, and their sections of a unit.
_NOUNS = {"disks": "disk", "nics": "nic", "devices": "device"}

_ERRORS = (
    NoSuchInstance,
    NoSuchDevice,
    DeniedError,
    BusyError,
    ChangeError,
    UnitError,
    UnsupportedError,
    ImageError,
    KeyReusedError,
    PayloadTooLarge,
    NoSpaceError,
    HostError,
    QmpCommandError,
)


_DRY_RUN = flag("dry-run", "Change nothing: only say what would become of each key.")
_PERSIST = flag(
    "persist",
    "Write it to the VM's unit, too, by a drop-in in the administrator's directory. Without it: if the unit's own file "
    "is in that directory.",
    default=None,
)

_FORCE_AFTER = seconds("force-after", "Reset the guest when it has not let go by then of what is detached.")


async def _devices(call: Call) -> Answer:
    return json_response(render.devices(call.backend.devices(call.instance())))


async def _disks(call: Call) -> Answer:
    found: wire.DiskList = {"disks": _instance(call)["disks"]}
    return json_response(found)


async def _nics(call: Call) -> Answer:
    found: wire.NicList = {"nics": _instance(call)["nics"]}
    return json_response(found)


async def _entry(noun: Literal["disks", "nics", "devices"], call: Call) -> Answer:
    id_, shown = call.request.params["id"], _instance(call)
    for entry in shown[noun]:
        if entry["id"] == id_:
            return json_response(entry)
    words = f"it has no {_NOUNS[noun]} {id_[:60]!r}"
    known = ", ".join(entry["id"] for entry in shown[noun]) or "none"
    raise NoSuchDevice(words, instance=shown["name"], hint=f"its {noun}: {known}")


def _instance(call: Call) -> wire.Instance:
    return render.instance(call.backend.instance(call.instance()))


async def _begin(call: Call, verb: Verb, arguments: Mapping[str, Any]) -> Answer:
    begun = await call.backend.request(
        call.instance(),
        verb,
        uid=call.request.peer.uid,
        idempotency_key=idempotency_key(call),
        arguments=arguments,
    )
    return await answer(call, begun)


async def _attach(section: str, call: Call) -> Answer:
    keys = call.body["keys"] if call.body.keys() == {"keys"} else None
    if keys is not None and not (isinstance(keys, dict) and all(isinstance(text, str) for text in keys.values())):
        raise RequestError("'keys' must be texts by the names of keys")
    said = call.body if keys is None else keys
    if not isinstance(said.get("id"), str):
        raise RequestError(f"the body lacks an 'id' for the {section}", hint="it is detached by that name again")
    entry = said if keys is None else entry_of(section, keys)
    return await _begin(call, Verb.ATTACH, {"changes": {section: [entry]}, "persist": call.query["persist"]})


async def _change(call: Call) -> Answer:
    if len(call.body) != 1:
        raise RequestError("the body must have either 'changes' or 'keys'")
    changes = call.body["changes"] if "changes" in call.body else changes_of(call.body["keys"])
    next_start, persist = call.query["next-start"], call.query["persist"]
    if next_start and persist is False:
        raise RequestError("what is to count at the next start must be written down", hint="leave persist=0 out")
    arguments = {
        "changes": changes,
        "persist": True if next_start else persist,
        "dry_run": call.query["dry-run"],
        "next_start": next_start,
    }
    return await _begin(call, Verb.SET, arguments)


async def _apply(call: Call) -> Answer:
    arguments = {
        "changes": None,
        "persist": True,
        "dry_run": call.query["dry-run"],
        "next_start": False,
        "force_after": call.query["force-after"],
    }
    return await _begin(call, Verb.SET, arguments)


async def _detach(section: str, call: Call) -> Answer:
    arguments = {
        "entry": f"{section}.{call.request.params['id']}",
        "force": call.query["force"],
        "force_after": call.query["force-after"],
        "persist": call.query["persist"],
    }
    return await _begin(call, Verb.DETACH, arguments)


async def _resize(call: Call) -> Answer:
    try:
        size = parse_size(call.body["size"])
    except ValueError as error:
        raise RequestError(f"'size': {error}") from error
    return await _begin(call, Verb.RESIZE, {"disk": call.request.params["id"], "size": size})


async def _insert(call: Call) -> Answer:
    medium = {"path": call.body["path"], "format": call.body.get("format", "raw")}
    if not medium["path"]:
        raise RequestError("'path' is empty", hint="eject leaves the drive empty")
    return await _change_medium(call, medium)


async def _eject(call: Call) -> Answer:
    return await _change_medium(call, {"path": ""})


async def _change_medium(call: Call, medium: Mapping[str, Any]) -> Answer:
    drive = call.request.params["id"]
    changes = {"disk": [{"id": drive, **medium}]}
    arguments = {
        "changes": changes,
        "drive": drive,
        "force": call.body.get("force", False),
        "persist": call.query["persist"],
        "dry_run": False,
        "next_start": False,
    }
    return await _begin(call, Verb.SET, arguments)


def _noun(noun: Literal["disks", "nics", "devices"], section: str, shape: type) -> tuple[Endpoint, ...]:
    name = section.capitalize()
    return (
        Endpoint(
            id=f"get{name}",
            method="GET",
            pattern=f"{INSTANCE}/{noun}/{{id}}",
            handler=partial(_entry, noun),
            role=Role.READ,
            summary=f"One {section} of a VM, as the VM itself shows it",
            replies=(Reply(shape=shape, doc=f"The {section}."),),
            errors=(NoSuchInstance, NoSuchDevice),
        ),
        Endpoint(
            id=f"attach{name}",
            method="POST",
            pattern=f"{INSTANCE}/{noun}",
            handler=partial(_attach, section),
            role=Role.ADMIN,
            summary=f"Attach a {section} to a VM that runs",
            doc=f"The body is a `[[{section}]]` of a unit as JSON, or has `keys` with texts by their names, which are "
            "read as those of a change are. The operation ends when QEMU has it, all of it.",
            query=(WAIT, _PERSIST),
            headers=KEY,
            body=Body(shape=dict[str, Any]),
            replies=REPLIES,
            errors=_ERRORS,
        ),
        Endpoint(
            id=f"detach{name}",
            method="DELETE",
            pattern=f"{INSTANCE}/{noun}/{{id}}",
            handler=partial(_detach, section),
            role=Role.ADMIN,
            summary=f"Detach a {section} from a VM that runs",
            doc="The operation ends when QEMU does not have it any more: the guest must let it go, or be reset. Until "
            "then it holds the VM no longer than QEMU takes to accept it, and `progress` says where it stands. What "
            "QEMU has not any more is only taken out of the unit.",
            query=(
                WAIT,
                flag("force", "Detach also what the VM boots from."),
                _FORCE_AFTER,
                _PERSIST,
            ),
            headers=KEY,
            replies=REPLIES,
            errors=_ERRORS,
        ),
    )


_MEDIUM = (
    "A change of the disk's `path` and `format`. A guest that has locked the tray is asked, and has five seconds. "
    "Of a VM that is down the unit alone is changed."
)

ENDPOINTS = (
    Endpoint(
        id="listDevices",
        method="GET",
        pattern=f"{INSTANCE}/devices",
        handler=_devices,
        role=Role.READ,
        summary="Every device that QEMU has, how much room is left for more, and what is missing",
        replies=(Reply(shape=wire.PluggedList, doc="The devices in the order in which they came."),),
        errors=(NoSuchInstance, DeniedError),
    ),
    Endpoint(
        id="listDisks",
        method="GET",
        pattern=f"{INSTANCE}/disks",
        handler=_disks,
        role=Role.READ,
        summary="The disks of a VM, as the VM itself shows them",
        replies=(Reply(shape=wire.DiskList, doc="The disks."),),
        errors=(NoSuchInstance,),
    ),
    Endpoint(
        id="listNics",
        method="GET",
        pattern=f"{INSTANCE}/nics",
        handler=_nics,
        role=Role.READ,
        summary="The network interfaces of a VM, as the VM itself shows them",
        replies=(Reply(shape=wire.NicList, doc="The network interfaces."),),
        errors=(NoSuchInstance,),
    ),
    Endpoint(
        id="changeInstance",
        method="PATCH",
        pattern=INSTANCE,
        handler=_change,
        role=Role.ADMIN,
        summary="Change keys of a VM, and of its unit",
        doc="All keys are checked first; when one of them is refused nothing is done, and the error's `keys` says of "
        "each what would have become of it. The result has `keys`, too: `old`, `new` and `applied`, which is `live`, "
        "`reset` (at the guest's next reset), `start` (at the VM's next start) or `daemon` (at once, by the daemon "
        "alone). A VM that is down is changed by its unit alone.",
        query=(
            WAIT,
            _PERSIST,
            _DRY_RUN,
            flag("next-start", "Leave the VM that runs as it is, and change its unit."),
        ),
        headers=KEY,
        body=Body(shape=wire.ChangeRequest),
        replies=REPLIES,
        errors=_ERRORS,
    ),
    Endpoint(
        id="applyUnit",
        method="POST",
        pattern=f"{INSTANCE}/apply",
        handler=_apply,
        role=Role.ADMIN,
        summary="Have a VM that runs be as its unit says, as far as that is possible",
        doc="As a change of the keys that `diff` shows; those that must wait for the VM's next start are `start`. "
        "Entries that the unit has no more are detached, and the operation ends once QEMU has none of them.",
        query=(WAIT, _DRY_RUN, _FORCE_AFTER),
        headers=KEY,
        replies=REPLIES,
        errors=_ERRORS,
    ),
    Endpoint(
        id="insertMedium",
        method="POST",
        pattern=f"{INSTANCE}/disks/{{id}}/insert",
        handler=_insert,
        role=Role.ADMIN,
        summary="Put a medium into a CD drive of a VM",
        doc=f"{_MEDIUM} One that is in the drive is taken out, and is put back where the new one does not go in.",
        query=(WAIT, _PERSIST),
        headers=KEY,
        body=Body(shape=wire.InsertRequest),
        replies=REPLIES,
        errors=_ERRORS,
    ),
    Endpoint(
        id="ejectMedium",
        method="POST",
        pattern=f"{INSTANCE}/disks/{{id}}/eject",
        handler=_eject,
        role=Role.ADMIN,
        summary="Take the medium out of a CD drive of a VM",
        doc=f"{_MEDIUM} The tray is left open.",
        query=(WAIT, _PERSIST),
        headers=KEY,
        body=Body(shape=wire.EjectRequest, optional=True),
        replies=REPLIES,
        errors=_ERRORS,
    ),
    Endpoint(
        id="resizeDisk",
        method="PATCH",
        pattern=f"{INSTANCE}/disks/{{id}}",
        handler=_resize,
        role=Role.ADMIN,
        summary="Make a disk of a VM that runs larger",
        doc="The guest is told. `result` has the `size` that QEMU says then, in bytes. A disk is never made smaller.",
        query=(WAIT,),
        headers=KEY,
        body=Body(shape=wire.DiskRequest),
        replies=REPLIES,
        errors=_ERRORS,
    ),
    *_noun("disks", "disk", wire.DiskWire),
    *_noun("nics", "nic", wire.NicWire),
    *_noun("devices", "device", wire.DeviceWire),
)
