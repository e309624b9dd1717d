"""Units: what should run, as files.

Decides: how a unit is addressed and changed over HTTP, and how its version is compared (RFC 9110, section 13).
Must not: read, write or understand a unit file; the supervisor does.
"""

from __future__ import annotations

import re

from qsup.api import render, wire
from qsup.api.http import Answer, Response, Role, json_response
from qsup.api.protocol import PREFIX, TOML
from qsup.api.routes.endpoint import Body, Call, Endpoint, Reply
from qsup.api.routes.paging import page_by_name
from qsup.api.routes.parameters import PAGING, text
from qsup.errors import (
    DeniedError,
    HostError,
    NoSpaceError,
    NoSuchUnit,
    PayloadTooLarge,
    PreconditionFailed,
    RequestError,
    UnitError,
    UnsupportedMediaType,
)
from qsup.unit.info import Precondition, UnitInfo
from qsup.unit.kinds import NAME_RULE, is_instance_name

_DROPIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\.toml")
_ETAG = re.compile(r'(W/)?"([\x21\x23-\x7e]*)"')
_ETAGS = re.compile(rf"(?:{_ETAG.pattern}(?:[ \t]*,[ \t,]*|$))+")


def is_unit_name(text: str) -> bool:
    """Whether ``text`` names a unit: an instance's name, or a template's, which ends in ``@``."""
    name = text.removesuffix("@")
    return is_instance_name(name) and not (text.endswith("@") and "@" in name)


def _name(call: Call) -> str:
    name = call.request.params["unit"]
    if not is_unit_name(name):
        raise NoSuchUnit(f"there is no unit {name[:100]!r}")
    return name


def _new_name(name: str) -> str:
    if not is_unit_name(name):
        raise RequestError(
            f"{name[:100]!r} is not a unit's name",
            hint=NAME_RULE,
        )
    return name


def _only_if(call: Call) -> Precondition:
    """The version that the client means to change.

    Raises:
        RequestError: a header that is no precondition; to ignore it would be to change what was not meant.
    """
    match, none_match = (call.request.headers.get(name) for name in ("if-match", "if-none-match"))
    if none_match is not None and none_match != "*":
        raise RequestError("If-None-Match must be *, which asks that there is no such unit yet")
    exists = None if none_match is None else False
    if match is None:
        return Precondition(exists=exists)
    if match == "*":
        return Precondition(exists=True, among=None if exists is None else frozenset())
    if not _ETAGS.fullmatch(match):
        raise RequestError("If-Match must be * or entity tags, such as the ETag of the unit's GET")
    # a weak tag equals none in the strong comparison that If-Match asks for
    return Precondition(among=frozenset(tag for weak, tag in _ETAG.findall(match) if not weak), exists=exists)


def _unit_response(info: UnitInfo, status: int = 200, **headers: str) -> Response:
    return json_response(render.unit(info, whole=True), status, headers={"etag": f'"{info.etag}"', **headers})


async def _list(call: Call) -> Answer:
    page, after = page_by_name(call.backend.units(), lambda info: info.name, call.query)
    units: wire.UnitList = {
        "units": [render.unit(info, whole=False) for info in page],
        "diagnostics": render.diagnostics(call.backend.unit_diagnostics()),
        "next": after,
    }
    return json_response(units)


async def _get(call: Call) -> Answer:
    return _unit_response(call.backend.unit(_name(call)))


async def _files(call: Call) -> Answer:
    found = call.backend.unit_sources(_name(call))
    files: wire.UnitFiles = {
        "name": found.name,
        "etag": found.etag,
        "own": found.own or None,
        "files": [{"file": file, "text": text} for file, text in found.sources],
    }
    return json_response(files, headers={"etag": f'"{found.etag}"'})


async def _put(call: Call) -> Answer:
    name = _new_name(call.request.params["unit"])
    if dropin := _dropin(call):
        return _unit_response(await call.backend.put_unit(name, call.body, only_if=_only_if(call), dropin=dropin))
    existed = any(info.name == name for info in call.backend.units())
    info = await call.backend.put_unit(name, call.body, only_if=_only_if(call))
    if existed:
        return _unit_response(info)
    return _unit_response(info, 201, location=call.request.path)


async def _preview(call: Call) -> Answer:
    name, dropin = _new_name(call.request.params["unit"]), _dropin(call)
    found = await call.backend.preview_unit(name, call.body, only_if=_only_if(call), dropin=dropin)
    return json_response(render.preview(found))


def _dropin(call: Call) -> str:
    """The drop-in that is meant, ``""`` for the unit's own file."""
    dropin: str | None = call.query["drop-in"]
    if dropin is not None and not _DROPIN.fullmatch(dropin):
        raise RequestError(f"{dropin[:60]!r} is no name of a drop-in", hint="such as 50-local.toml")
    return dropin or ""


async def _delete(call: Call) -> Answer:
    name = _name(call)
    await call.backend.delete_unit(name, only_if=_only_if(call))
    return Response(status=204)


async def _validate(call: Call) -> Answer:
    body: wire.ValidateRequest = call.body
    found = await call.backend.validate(_new_name(body["name"]), body["text"])
    validation: wire.Validation = {"diagnostics": render.diagnostics(found)}
    return json_response(validation)


async def _validate_host(call: Call) -> Answer:
    body: wire.HostCheckRequest = call.body
    units = {_new_name(unit["name"]): unit["values"] for unit in body["units"]}
    if len(units) != len(body["units"]):
        raise RequestError("each unit is to be named once")
    found = await call.backend.validate_host(units)
    check: wire.HostCheck = {
        "findings": [
            {"unit": each.unit, "keys": [list(map(str, key)) for key in each.keys], "message": each.message}
            for each in found
        ]
    }
    return json_response(check)


async def _reload(call: Call) -> Answer:
    return json_response(render.reload(await call.backend.reload()))


async def _enable(call: Call) -> Answer:
    return _unit_response(await call.backend.set_autostart(_name(call), True))


async def _disable(call: Call) -> Answer:
    return _unit_response(await call.backend.set_autostart(_name(call), False))


_UNIT = f"{PREFIX}/units/{{unit}}"
_IF_MATCH = {"If-Match": "Change only one of these versions: `ETag`s of the unit, or `*` for any. A weak one is none."}
_IF_NONE_MATCH = {"If-None-Match": "`*`: write it only if there is no such unit yet."}
_WHOLE = Reply(shape=wire.UnitWire, doc="The unit.", headers=("ETag",))

ENDPOINTS = (
    Endpoint(
        id="listUnits",
        method="GET",
        pattern=f"{PREFIX}/units",
        handler=_list,
        role=Role.READ,
        summary="All units and templates, sorted by name",
        doc="`diagnostics` holds every error of every unit file; a unit with errors is not among `units`.",
        query=PAGING,
        replies=(Reply(shape=wire.UnitList, doc="The units, without their text."),),
    ),
    Endpoint(
        id="getUnit",
        method="GET",
        pattern=_UNIT,
        handler=_get,
        role=Role.READ,
        summary="One unit with its text and its effective values",
        replies=(_WHOLE,),
        errors=(NoSuchUnit, UnitError),
    ),
    Endpoint(
        id="getUnitFiles",
        method="GET",
        pattern=f"{_UNIT}/files",
        handler=_files,
        role=Role.READ,
        summary="The files of one unit as they are, with or without errors",
        replies=(Reply(shape=wire.UnitFiles, doc="The files.", headers=("ETag",)),),
        errors=(NoSuchUnit,),
    ),
    Endpoint(
        id="putUnit",
        method="PUT",
        pattern=_UNIT,
        handler=_put,
        role=Role.ADMIN,
        summary="Write a unit's file",
        doc="A running VM is not changed by it; its `unit.stale` says so. What is not a valid unit is not written.",
        query=(text("drop-in", "Write that drop-in in the unit's place, such as `50-local.toml`; an empty one goes."),),
        headers=_IF_MATCH | _IF_NONE_MATCH,
        body=Body(shape=str, media=TOML),
        replies=(
            _WHOLE,
            Reply(status=201, shape=wire.UnitWire, doc="The unit is new.", headers=("ETag", "Location")),
        ),
        errors=(
            NoSuchUnit,
            UnitError,
            PreconditionFailed,
            DeniedError,
            PayloadTooLarge,
            UnsupportedMediaType,
            NoSpaceError,
            HostError,
        ),
    ),
    Endpoint(
        id="previewUnit",
        method="POST",
        pattern=f"{_UNIT}/preview",
        handler=_preview,
        role=Role.ADMIN,
        summary="What would become of each key if a unit's file were written",
        doc="As `putUnit` followed by `applyUnit`, with the same errors, and nothing is done. Of a VM that is down the "
        "unit as it is now is compared, and all counts at its next start.",
        query=(text("drop-in", "As for `putUnit`."),),
        headers=_IF_MATCH | _IF_NONE_MATCH,
        body=Body(shape=str, media=TOML),
        replies=(Reply(shape=wire.Preview, doc="Every key that differs."),),
        errors=(NoSuchUnit, UnitError, PreconditionFailed, PayloadTooLarge, UnsupportedMediaType, HostError),
    ),
    Endpoint(
        id="deleteUnit",
        method="DELETE",
        pattern=_UNIT,
        handler=_delete,
        role=Role.ADMIN,
        summary="Remove a unit's file",
        doc="Refused while its VM, or one of a template's, is active.",
        headers=_IF_MATCH,
        replies=(Reply(status=204, doc="It is gone."),),
        errors=(NoSuchUnit, PreconditionFailed, DeniedError, HostError),
    ),
    Endpoint(
        id="validateUnit",
        method="POST",
        pattern=f"{PREFIX}/units/validate",
        handler=_validate,
        role=Role.READ,
        summary="Check a text as a unit's file, changing nothing",
        body=Body(shape=wire.ValidateRequest),
        replies=(Reply(shape=wire.Validation, doc="Every error found, none for a valid unit."),),
        errors=(PayloadTooLarge,),
    ),
    Endpoint(
        id="validateHost",
        method="POST",
        pattern=f"{PREFIX}/units/validate-host",
        handler=_validate_host,
        role=Role.ADMIN,
        summary="Check whether units could start on this host, changing nothing",
        doc="CPUs, nodes, huge pages and memory that there are not, CPUs that are named for one VM alone and for "
        "another, the emulator, and images that cannot be opened. What others use just now does not count. It is for "
        "administrators, because it runs the emulators that are named, and opens the files.",
        body=Body(shape=wire.HostCheckRequest),
        replies=(Reply(shape=wire.HostCheck, doc="All that was found, nothing for units that could start."),),
        errors=(UnitError, PayloadTooLarge, HostError),
    ),
    Endpoint(
        id="reloadUnits",
        method="POST",
        pattern=f"{PREFIX}/reload",
        handler=_reload,
        role=Role.OPERATE,
        summary="Read all unit files again",
        replies=(Reply(shape=wire.Reload, doc="What is new, changed, gone and wrong."),),
        errors=(HostError,),
    ),
    Endpoint(
        id="enableUnit",
        method="POST",
        pattern=f"{_UNIT}/enable",
        handler=_enable,
        role=Role.ADMIN,
        summary="Start the VM with the first daemon after each boot of the host",
        doc="By a drop-in of its own. A template is refused: it is its instances that start.",
        replies=(_WHOLE,),
        errors=(NoSuchUnit, UnitError, DeniedError, NoSpaceError, HostError),
    ),
    Endpoint(
        id="disableUnit",
        method="POST",
        pattern=f"{_UNIT}/disable",
        handler=_disable,
        role=Role.ADMIN,
        summary="Do not start the VM when the daemon starts",
        doc="By taking back the drop-in of `enable`, or by one of its own where the unit's files say otherwise.",
        replies=(_WHOLE,),
        errors=(NoSuchUnit, UnitError, DeniedError, NoSpaceError, HostError),
    ),
)
