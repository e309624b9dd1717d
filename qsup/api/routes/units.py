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
from qsup.api.routes.parameters import PAGING
from qsup.errors import (
    DeniedError,
    HostError,
    NoSpaceError,
    NoSuchUnit,
    PayloadTooLarge,
    PreconditionFailed,
    RequestError,
    UnitError,
)
from qsup.unit.info import UnitInfo
from qsup.unit.kinds import is_instance_name

_ETAG = re.compile(r'"([\x21\x23-\x7e]*)"')


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
            hint="use letters, digits, '_', '.' and '-', at most 48, starting with a letter or digit",
        )
    return name


def _if_match(call: Call, name: str) -> str | None:
    """The version that the client means to change, ``None`` when it does not say."""
    header = call.request.headers.get("if-match")
    if header is None:
        return None
    if header.strip() == "*":
        known = next((info.etag for info in call.backend.units() if info.name == name), None)
        if known is None:
            raise PreconditionFailed(f"there is no unit {name}, and If-Match: * asks for one")
        return known
    match = _ETAG.fullmatch(header.strip())
    if match is None:
        raise RequestError("If-Match must be one strong entity tag, such as the ETag of the unit's GET")
    return match[1]


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


async def _put(call: Call) -> Answer:
    name = _new_name(call.request.params["unit"])
    existed = any(info.name == name for info in call.backend.units())
    info = await call.backend.put_unit(name, call.body, if_match=_if_match(call, name))
    if existed:
        return _unit_response(info)
    return _unit_response(info, 201, location=call.request.path)


async def _delete(call: Call) -> Answer:
    name = _name(call)
    await call.backend.delete_unit(name, if_match=_if_match(call, name))
    return Response(status=204)


async def _validate(call: Call) -> Answer:
    body: wire.ValidateRequest = call.body
    found = await call.backend.validate(_new_name(body["name"]), body["text"])
    validation: wire.Validation = {"diagnostics": render.diagnostics(found)}
    return json_response(validation)


async def _reload(call: Call) -> Answer:
    return json_response(render.reload(await call.backend.reload()))


async def _enable(call: Call) -> Answer:
    return _unit_response(await call.backend.set_autostart(_name(call), True))


async def _disable(call: Call) -> Answer:
    return _unit_response(await call.backend.set_autostart(_name(call), False))


_UNIT = f"{PREFIX}/units/{{unit}}"
_IF_MATCH = {"If-Match": "Change only this version: the unit's `ETag`, or `*` for any."}
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
        id="putUnit",
        method="PUT",
        pattern=_UNIT,
        handler=_put,
        role=Role.ADMIN,
        summary="Write a unit's file",
        doc="A running VM is not changed by it; its `unit.stale` says so. What is not a valid unit is not written.",
        headers=_IF_MATCH,
        body=Body(shape=str, media=TOML),
        replies=(
            _WHOLE,
            Reply(status=201, shape=wire.UnitWire, doc="The unit is new.", headers=("ETag", "Location")),
        ),
        errors=(UnitError, PreconditionFailed, DeniedError, PayloadTooLarge, NoSpaceError, HostError),
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
        summary="Start the VM whenever the daemon starts",
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
