"""Raw QMP, the guest agent, the screen, and who may use them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from qsup.api.message import Request, Response
from qsup.api.peer import Peer
from qsup.api.roles import Policy, Role
from qsup.api.routes.endpoint import Api
from qsup.api.routes.guest import AGENT_ROLES
from qsup.api.routes.table import make_router
from qsup.api.wire import AgentRequest
from qsup.errors import ForbiddenError
from tests.api.calling import daemon
from tests.api.fake import PNG_MAGIC, FakeBackend

MEMBER = Peer(pid=1, uid=1000, gid=1000, groups=frozenset({77}))


class Sent:
    """A request's body that has arrived whole."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def read_body(self) -> bytes:
        """The body."""
        return self._body

    async def wait_peer_left(self) -> None:
        """Nobody leaves here."""
        raise NotImplementedError


async def call_as_member(backend: FakeBackend, method: str, path: tuple[str, ...], body: bytes = b"") -> Response:
    """Call a route's handler as somebody who may operate, and no more."""
    api = Api(backend, policy=Policy(daemon_uid=0, operate_gids=frozenset({77})), version="0.0.1")
    route = make_router(api).find(method, path)
    assert route.role <= Role.OPERATE
    params = {name: path[index] for name, index in route.params}
    answer = await route.handler(
        Request(
            method=method,
            path="/".join(path),
            query={},
            headers={},
            peer=MEMBER,
            request_id="r1",
            params=params,
            exchange=Sent(body),
        )
    )
    assert isinstance(answer, Response)
    return answer


async def test_raw_qmp_passes_commands_and_answers_as_they_are(tmp_path: Path) -> None:
    """The command, its arguments and its deadline reach QEMU; ``return`` comes back as ``result``."""
    async with daemon(tmp_path, "web") as qsupd:
        caller = await qsupd.connect()
        body = {"execute": "query-status", "arguments": {"deep": [1, {"x": None}]}, "timeout": 2.5}
        reply = await caller.post("/v1/instances/web/qmp", body)
        plain = await caller.post("/v1/instances/web/qmp", {"execute": "query-status"})
        assert qsupd.backend.calls == [
            ("web", "query-status", {"deep": [1, {"x": None}]}, 2.5),
            ("web", "query-status", None, 30.0),
        ]
    assert reply.json() == plain.json() == {"result": {"status": "running", "running": True}}


async def test_qemus_refusal_keeps_its_words(tmp_path: Path) -> None:
    """An error of QEMU's is 502 with its class and text beside the stable code."""
    async with daemon(tmp_path, "web") as qsupd:
        reply = await (await qsupd.connect()).post("/v1/instances/web/qmp", {"execute": "x"})
    assert (reply.status, reply.code) == (502, "qmp-error")
    assert reply.json()["qmp"] == {"class": "CommandNotFound", "desc": "The command x has not been found"}


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {"execute": ["query-status"]},
        {"execute": "query-status", "id": 1},
        {"execute": "query-status", "timeout": 0},
        {"execute": "query-status", "timeout": 1e9},
        b'{"execute": "query-status", "timeout": NaN}',
        b'{"execute": "\xff"}',
        b'{"execute": "a", "execute": "b"}',
        b"[" * 100_000,
    ],
)
async def test_malformed_qmp_requests_reach_nobody(tmp_path: Path, body: object) -> None:
    """What is not one command is 400, and QEMU never hears of it."""
    async with daemon(tmp_path, "web") as qsupd:
        reply = await (await qsupd.connect()).post("/v1/instances/web/qmp", body)
        assert not qsupd.backend.calls
    assert (reply.status, reply.code) == (400, "bad-request")


async def test_the_agent_runs_a_program(tmp_path: Path) -> None:
    """``exec`` hands over path, arguments and input, and answers with an exit code and output."""
    async with daemon(tmp_path, "web") as qsupd:
        body = {"command": "exec", "path": "/bin/cat", "arguments": ["-"], "input": "hi", "timeout": 5}
        reply = await (await qsupd.connect()).post("/v1/instances/web/agent", body)
        assert qsupd.backend.calls == [("web", "exec", {"path": "/bin/cat", "arguments": ["-"], "input": "hi"}, 5.0)]
    result: Any = reply.json()["result"]
    assert (result["exit_code"], result["stdout"]) == (0, "hello\n")


@pytest.mark.parametrize(
    "body",
    [{"command": "exec"}, {"command": "exec", "path": ""}, {"command": "ping", "path": "/bin/ls"}, {"command": "halt"}],
)
async def test_agent_requests_that_make_no_sense_are_refused(tmp_path: Path, body: object) -> None:
    """Each command takes its own members and no others."""
    async with daemon(tmp_path, "web") as qsupd:
        reply = await (await qsupd.connect()).post("/v1/instances/web/agent", body)
        assert not qsupd.backend.calls
    assert (reply.status, reply.code) == (400, "bad-request")


async def test_an_absent_agent_is_a_conflict(tmp_path: Path) -> None:
    """Nobody listening in the guest is 409, which a client can tell from an agent that fails."""
    async with daemon(tmp_path, "web") as qsupd:
        qsupd.backend.set_state("web", qsupd.backend.views["web"].state, agent_connected=False)
        reply = await (await qsupd.connect()).post("/v1/instances/web/agent", {"command": "ping"})
    assert (reply.status, reply.code) == (409, "agent-unavailable")


async def test_exec_in_the_guest_is_for_administrators() -> None:
    """Who operates may ask the agent, and may not run programs as the guest's root."""
    backend = FakeBackend("web")
    path = ("v1", "instances", "web", "agent")
    assert (await call_as_member(backend, "POST", path, b'{"command": "ping"}')).status == 200
    with pytest.raises(ForbiddenError, match="needs the role admin"):
        await call_as_member(backend, "POST", path, b'{"command": "exec", "path": "/bin/sh"}')
    assert [call[1] for call in backend.calls] == ["ping"]


async def test_a_forced_start_is_for_administrators() -> None:
    """Who operates may start a VM that fits, one or several, and may not say `force`; `false` is not to say it."""
    backend = FakeBackend("web")
    for path, body in (
        (("v1", "instances", "web", "start"), b'{"force": %b}'),
        (("v1", "start"), b'{"names": ["web"], "force": %b}'),
    ):
        with pytest.raises(ForbiddenError, match="needs the role admin"):
            await call_as_member(backend, "POST", path, body % b"true")
        assert (await call_as_member(backend, "POST", path, body % b"false")).status == 202
    assert [operation.kind for operation in backend.operations()] == ["start", "start"]


async def test_whoami_tells_a_member_its_role() -> None:
    """The role of a member of the operating group is ``operate``."""
    answer = await call_as_member(FakeBackend(), "GET", ("v1", "whoami"))
    assert answer.body == b'{"uid":1000,"gid":1000,"pid":1,"groups":[77],"role":"operate"}'


def test_every_agent_command_has_a_role() -> None:
    """The commands of the wire and of the roles are the same."""
    assert set(AGENT_ROLES) == set(get_args(get_type_hints(AgentRequest)["command"]))


async def test_a_screenshot_is_a_picture(tmp_path: Path) -> None:
    """The screen comes as PNG; a VM without a graphics card has none."""
    async with daemon(tmp_path, "web") as qsupd:
        caller = await qsupd.connect()
        picture = await caller.get("/v1/instances/web/screenshot")
        qsupd.backend.set_state("web", qsupd.backend.views["web"].state, video=False)
        dark = await caller.get("/v1/instances/web/screenshot")
    assert (picture.headers["content-type"], picture.body) == ("image/png", PNG_MAGIC)
    assert (dark.status, dark.code) == (409, "not-allowed")
