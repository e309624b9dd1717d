"""Operations: changes under way, and how they ended.

Decides: how an operation is listed, waited for and cancelled over HTTP.
Must not: begin one; the route of what it does to does.
"""

from __future__ import annotations

from qsup.api import render, wire
from qsup.api.http import Answer, Role, json_response
from qsup.api.protocol import PREFIX
from qsup.api.routes.endpoint import Call, Endpoint, Reply
from qsup.api.routes.paging import page_by_key
from qsup.api.routes.parameters import PAGING, seconds
from qsup.errors import DeniedError, GoneError, NoSuchOperation, QmpCommandError

#: How long a wait lasts when the client does not say, in seconds.
_WAIT_DEFAULT = 30.0


def _id(call: Call) -> str:
    operation_id = call.request.params["operation"]
    if len(operation_id) != 32 or not operation_id.isascii() or not operation_id.isalnum():
        raise NoSuchOperation(f"there is no operation {operation_id[:100]!r}")
    return operation_id


async def _list(call: Call) -> Answer:
    page, after = page_by_key(call.backend.operations(), lambda operation: operation.id, call.query)
    operations: wire.OperationList = {
        "operations": [render.operation(operation, call.request.request_id) for operation in page],
        "next": after,
    }
    return json_response(operations)


async def _get(call: Call) -> Answer:
    return json_response(render.operation(call.backend.operation(_id(call)), call.request.request_id))


async def _wait(call: Call) -> Answer:
    operation = await call.request.while_connected(call.backend.wait_operation, _id(call), call.query["timeout"])
    return json_response(render.operation(operation, call.request.request_id))


async def _cancel(call: Call) -> Answer:
    return json_response(render.operation(await call.backend.cancel_operation(_id(call)), call.request.request_id))


_OPERATION = f"{PREFIX}/operations/{{operation}}"

ENDPOINTS = (
    Endpoint(
        id="listOperations",
        method="GET",
        pattern=f"{PREFIX}/operations",
        handler=_list,
        role=Role.READ,
        summary="All operations that are kept, newest first",
        query=PAGING,
        replies=(Reply(shape=wire.OperationList, doc="The operations."),),
        errors=(GoneError,),
    ),
    Endpoint(
        id="getOperation",
        method="GET",
        pattern=_OPERATION,
        handler=_get,
        role=Role.READ,
        summary="One operation",
        replies=(Reply(shape=wire.Operation, doc="The operation."),),
        errors=(NoSuchOperation,),
    ),
    Endpoint(
        id="cancelOperation",
        method="DELETE",
        pattern=_OPERATION,
        handler=_cancel,
        role=Role.OPERATE,
        summary="End an operation that is `cancellable`: a change that the guest works on",
        doc="What the guest has given or taken by then stays so. Of everything else, stop or kill the VM instead: both "
        "overtake what is under way.",
        replies=(Reply(shape=wire.Operation, doc="The operation as it is then."),),
        errors=(NoSuchOperation, DeniedError, QmpCommandError),
    ),
    Endpoint(
        id="waitOperation",
        method="GET",
        pattern=f"{_OPERATION}/wait",
        handler=_wait,
        role=Role.READ,
        summary="Wait for an operation to end",
        query=(seconds("timeout", "Answer after that many seconds even if it has not ended.", default=_WAIT_DEFAULT),),
        replies=(Reply(shape=wire.Operation, doc="The operation; `state` says whether it has ended."),),
        errors=(NoSuchOperation,),
    ),
)
