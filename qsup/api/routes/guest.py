"""Direct words to QEMU and to the guest: raw QMP, and the guest agent.

Decides: which commands pass, for whom, and how long an answer may take by default.
Must not: know what a QMP command means; what it changes comes back as events and queries.
"""

from __future__ import annotations

from collections.abc import Mapping

from qsup.api import wire
from qsup.api.http import Answer, Role, json_response
from qsup.api.roles import decide
from qsup.api.routes.endpoint import Body, Call, Endpoint, Reply
from qsup.api.routes.instances import INSTANCE
from qsup.api.routes.power import body_timeout
from qsup.errors import (
    AgentCommandError,
    AgentTimeout,
    AgentUnavailable,
    DeniedError,
    MonitorTimeout,
    NoSuchInstance,
    PayloadTooLarge,
    QmpCommandError,
    RequestError,
)

#: Seconds that an answer may take when the client does not say.
_TIMEOUT = 30.0
#: Who may give which agent command. What runs in the guest runs as its root, so `exec` is the administrator's.
AGENT_ROLES: Mapping[str, Role] = {
    "ping": Role.OPERATE,
    "info": Role.OPERATE,
    "addresses": Role.OPERATE,
    "exec": Role.ADMIN,
}
_EXEC_MEMBERS = ("path", "arguments", "input")


async def _qmp(call: Call) -> Answer:
    body: wire.QmpRequest = call.body
    timeout = body_timeout(body.get("timeout")) or _TIMEOUT
    result = await call.backend.qmp(call.instance(), body["execute"], body.get("arguments"), timeout)
    reply: wire.QmpReply = {"result": result}
    return json_response(reply)


async def _agent(call: Call) -> Answer:
    body: wire.AgentRequest = call.body
    command = body["command"]
    if denial := decide(AGENT_ROLES[command], call.request.peer, call.api.policy):
        raise denial
    arguments = {name: call.body[name] for name in _EXEC_MEMBERS if name in body}
    if command == "exec" and not arguments.get("path"):
        raise RequestError("'exec' needs 'path', the program in the guest")
    if command != "exec" and arguments:
        raise RequestError(f"{command!r} takes no {next(iter(arguments))!r}")
    timeout = body_timeout(body.get("timeout")) or _TIMEOUT
    reply: wire.AgentReply = {"result": await call.backend.agent(call.instance(), command, arguments, timeout)}
    return json_response(reply)


ENDPOINTS = (
    Endpoint(
        id="executeQmp",
        method="POST",
        pattern=f"{INSTANCE}/qmp",
        handler=_qmp,
        role=Role.ADMIN,
        summary="Run one raw QMP command",
        doc="It goes over the VM's one monitor, in turn with the daemon's own commands. Administrators only: QMP reads "
        "and writes files and secrets. After `qmp-timeout` the command may still be carried out.",
        body=Body(shape=wire.QmpRequest),
        replies=(Reply(shape=wire.QmpReply, doc="QEMU's `return`, as it came."),),
        errors=(NoSuchInstance, DeniedError, PayloadTooLarge, QmpCommandError, MonitorTimeout),
    ),
    Endpoint(
        id="callAgent",
        method="POST",
        pattern=f"{INSTANCE}/agent",
        handler=_agent,
        role=Role.OPERATE,
        summary="Ask the guest agent: `ping`, `info`, `addresses`, or `exec`",
        doc="`exec` needs the role `admin`: what it runs in the guest runs as the guest's root.",
        body=Body(shape=wire.AgentRequest),
        replies=(Reply(shape=wire.AgentReply, doc="The agent's answer; for `exec` an `ExecResult`."),),
        errors=(
            NoSuchInstance,
            DeniedError,
            PayloadTooLarge,
            AgentUnavailable,
            AgentCommandError,
            AgentTimeout,
        ),
    ),
)
