"""The power verbs.

Decides: how a verb becomes an operation over HTTP, and who waits for it.
Must not: judge whether a verb is allowed now; `qsup.instance.state` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import trio
from attrs import evolve

from qsup.api import render, wire
from qsup.api.backend import Backend
from qsup.api.http import Answer, Role, json_response
from qsup.api.protocol import NAMES_MAX, ORDERED_VERBS, POWER_VERBS, PREFIX, WAIT_MAX
from qsup.api.roles import decide
from qsup.api.routes.endpoint import Body, Call, Endpoint, Reply, instance_name
from qsup.api.routes.instances import INSTANCE
from qsup.api.routes.parameters import seconds
from qsup.errors import (
    BusyError,
    DeniedError,
    DependencyError,
    HostError,
    KeyReusedError,
    NoSpaceError,
    NoSuchInstance,
    PayloadTooLarge,
    QsupError,
    RequestError,
    UnitError,
)
from qsup.instance.operation import Begun, KeyUse, Operation
from qsup.instance.state import Request as Verb

#: Longest Idempotency-Key that is kept.
_KEY_MAX = 255


async def _power(verb: Verb, call: Call) -> Answer:
    begun = await call.backend.request(
        call.instance(),
        verb,
        uid=call.request.peer.uid,
        timeout=body_timeout(call.body.get("timeout")),
        idempotency_key=idempotency_key(call),
        arguments=_arguments(call),
    )
    return await answer(call, begun)


def _arguments(call: Call) -> dict[str, bool]:
    """What the operation has besides; `ForbiddenError` for what only administrators may ask for."""
    if not call.body.get("force"):
        return {}
    if denial := decide(Role.ADMIN, call.request.peer, call.api.policy):
        raise denial
    return {"force": True}


async def _power_all(verb: Verb, call: Call) -> Answer:
    names: list[str] = call.body["names"]
    if not 0 < len(set(names)) == len(names) <= NAMES_MAX:
        raise RequestError(f"'names' must name from 1 to {NAMES_MAX} VMs, each once")
    timeout, key, arguments = body_timeout(call.body.get("timeout")), idempotency_key(call), _arguments(call)
    refused: dict[str, QsupError] = {}
    for name in names:
        try:
            instance_name(name)
        except NoSuchInstance as error:
            refused[name] = error
    begun = Begun(operations=())
    if known := [name for name in names if name not in refused]:
        uid = call.request.peer.uid
        use = KeyUse(uid=uid, key=key, kind=verb.value, timeout=timeout, arguments=arguments)
        begun = await call.backend.request_all(known, use)
    begun = evolve(begun, refused=refused | dict(begun.refused))
    wait = call.query["wait"]
    if wait is not None:
        ended = await call.request.while_connected(_wait_all, call.backend, begun.operations, wait)
        begun = evolve(begun, operations=ended)
    goes_on = not all(operation.is_final for operation in begun.operations)
    status = 202 if goes_on or (wait is None and begun.operations) else 200
    return json_response(render.begun(begun, call.request.request_id), status)


async def _wait_all(backend: Backend, begun: Sequence[Operation], seconds: float) -> tuple[Operation, ...]:
    """Operations once all of them have ended, or as they are after a time."""
    deadline = trio.current_time() + seconds
    left = (max(0.0, deadline - trio.current_time()) for _ in begun)
    return tuple([await backend.wait_operation(operation.id, next(left)) for operation in begun])


async def _stop_all(call: Call) -> Answer:
    begun = await call.backend.stop_all(
        uid=call.request.peer.uid,
        timeout=body_timeout(call.body.get("timeout")),
        idempotency_key=idempotency_key(call),
    )
    return await answer(call, begun)


async def answer(call: Call, begun: Operation) -> Answer:
    """The operation as it is, or once it has ended where the client waits for that."""
    wait = call.query["wait"]
    if wait is not None and not begun.is_final:
        # leaving ends the wait, never the operation
        begun = await call.request.while_connected(call.backend.wait_operation, begun.id, wait)
    return json_response(
        render.operation(begun, call.request.request_id),
        200 if wait is not None and begun.is_final else 202,
        headers={"location": f"{PREFIX}/operations/{begun.id}"},
    )


def body_timeout(seconds: float | None) -> float | None:
    """A body's ``timeout`` as it may be; `RequestError` otherwise."""
    if seconds is not None and not 0 < seconds <= WAIT_MAX:
        raise RequestError(f"'timeout' must be more than 0 and at most {WAIT_MAX:.0f} seconds")
    return seconds


def idempotency_key(call: Call) -> str:
    """The client's key, ``""`` for none; `RequestError` for one that cannot be."""
    key = call.request.headers.get("idempotency-key", "")
    if len(key) > _KEY_MAX or not key.isascii() or not key.isprintable():
        raise RequestError(f"Idempotency-Key must be at most {_KEY_MAX} printable ASCII characters")
    return key


_DOC = {
    Verb.START: (
        "Start a VM",
        "An active one is left as it is, and the operation succeeds. One that asks for more of the host than may be "
        "promised is refused (`capacity`), unless an administrator says `force`.",
    ),
    Verb.STOP: ("Stop a VM, the guest first", "By the unit's `stop-methods`; `timeout` is the guest's, in seconds."),
    Verb.RESTART: ("Stop a VM and start it again", "One that is down is started."),
    Verb.KILL: ("End a VM's QEMU at once, by SIGKILL", "The guest is not asked. A stop that takes too long gives way."),
    Verb.PAUSE: ("Stop a VM's vCPUs", "Memory and devices are kept."),
    Verb.RESUME: ("Let a VM's vCPUs run again", "Also after an I/O error, once its cause is mended."),
    Verb.RESET: ("Press a VM's reset button", "The guest is not asked; QEMU goes on with the same process."),
    Verb.POWERDOWN: ("Press a VM's power button", "What follows is the guest's choice, nothing if it ignores it."),
    Verb.NMI: ("Inject a non-maskable interrupt", "Many guests answer it with a dump of their state."),
    Verb.RESET_FAILED: (
        "Forget that a VM has failed",
        "It is `inactive` then, and its restarts count from 0. One that has not failed is left as it is.",
    ),
}
WAIT = seconds("wait", "Answer when the operation has ended, or after that many seconds, whichever comes first.")

KEY = {
    "Idempotency-Key": "A repetition of the request with the same key gets the operation that the first one began, for "
    "as long as that is kept. With another request the key is refused."
}
REPLIES = (
    Reply(
        shape=wire.Operation,
        doc="With `wait`: it has ended. One that failed says why in `error`.",
        headers=("Location",),
    ),
    Reply(status=202, shape=wire.Operation, doc="It has begun and goes on by itself.", headers=("Location",)),
)


_ALL_DOC = {
    Verb.START: ("Start VMs, in their order", "What each requires and wants is started along."),
    Verb.STOP: ("Stop VMs, in the reverse of their order", "Who requires one of them is stopped along."),
    Verb.RESTART: ("Restart VMs: stop them in the reverse of their order, and start them in it", "As with one VM."),
}


def operation_id(verb: str) -> str:
    """OpenAPI's operation id of a verb: ``reset-failed`` is ``resetFailedInstance``."""
    first, *more = verb.split("-")
    return f"{first}{''.join(map(str.capitalize, more))}Instance"


def _endpoint(verb: Verb) -> Endpoint:
    summary, doc = _DOC[verb]
    return Endpoint(
        id=operation_id(verb.value),
        method="POST",
        pattern=f"{INSTANCE}/{verb.value}",
        handler=partial(_power, verb),
        role=Role.OPERATE,
        summary=summary,
        doc=doc,
        query=(WAIT,),
        headers=KEY,
        body=Body(shape=wire.StartRequest if verb is Verb.START else wire.PowerRequest, optional=True),
        replies=REPLIES,
        errors=(
            NoSuchInstance,
            DeniedError,
            BusyError,
            DependencyError,
            UnitError,
            KeyReusedError,
            PayloadTooLarge,
            NoSpaceError,
            HostError,
        ),
    )


def _endpoint_of_all(verb: Verb) -> Endpoint:
    summary, doc = _ALL_DOC[verb]
    return Endpoint(
        id=f"{verb.value}Instances",
        method="POST",
        pattern=f"{PREFIX}/{verb.value}",
        handler=partial(_power_all, verb),
        role=Role.OPERATE,
        summary=summary,
        doc=f"{doc} All are one transaction: `after` and `before` count among them although nothing else is between "
        "them, and a daemon that dies has accepted all of it or nothing. A VM for which it cannot be begun is "
        "`refused` by name, and keeps no other from its turn. VMs that exclude each other are refused as a whole.",
        query=(WAIT,),
        headers=KEY,
        body=Body(shape=wire.StartNamesRequest if verb is Verb.START else wire.NamesRequest),
        replies=(
            Reply(shape=wire.BegunOperations, doc="With `wait`: all have ended; or all were refused."),
            Reply(status=202, shape=wire.BegunOperations, doc="They have begun and go on by themselves."),
        ),
        errors=(DependencyError, KeyReusedError, PayloadTooLarge, NoSpaceError, HostError),
    )


ENDPOINTS = (
    *(_endpoint(Verb(verb)) for verb in POWER_VERBS),
    *(_endpoint_of_all(Verb(verb)) for verb in ORDERED_VERBS),
    Endpoint(
        id="stopAll",
        method="POST",
        pattern=f"{PREFIX}/stop-all",
        handler=_stop_all,
        role=Role.OPERATE,
        summary="Stop every VM that runs, in the reverse of the order in which they start",
        doc="Each has the time of its unit; what is left after `timeout` seconds in all is killed. While it is under "
        "way, a repetition gets the same operation, and the shorter time counts. `killed` names who was cut short.",
        query=(WAIT,),
        headers=KEY,
        body=Body(shape=wire.StopAllRequest, optional=True),
        replies=REPLIES,
        errors=(PayloadTooLarge,),
    ),
)
