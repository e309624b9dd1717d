"""Instances, the power verbs, operations and QEMU's log, over a real socket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve

from qsup.api.openapi import document
from qsup.errors import StartError, StopError
from qsup.instance.cause import Cause, CauseKind
from qsup.instance.state import State
from tests.api.calling import Daemon, check_value, daemon
from tests.api.fake import make_view
from tests.api.serving import PATIENCE, Reply
from tests.waiting import wait_until


def names(reply: Reply) -> list[str]:
    """The names in a list of instances."""
    return [instance["name"] for instance in json.loads(reply.body)["instances"]]


async def test_an_instance_is_shown_with_all_it_has(tmp_path: Path) -> None:
    """State, cause, machine, disks, NICs and the rest stand where the types say, times in RFC 3339."""
    async with daemon(tmp_path, "web") as qsupd:
        cause = Cause(kind=CauseKind.SIGNAL, signal="KILL", output=("qemu: oh",), console=("Kernel panic",))
        qsupd.backend.set_state("web", State.CRASHED, cause=cause, pid=None)
        shown: dict[str, Any] = (await (await qsupd.connect()).get("/v1/instances/web")).json()
    assert (shown["state"], shown["substate"], shown["pid"]) == ("failed", "crashed", None)
    assert shown["cause"] == {
        "kind": "signal",
        "text": "signal KILL",
        "detail": "",
        "exit_code": None,
        "signal": "KILL",
        "disk": "",
        "nospace": False,
        "output": ["qemu: oh"],
        "console": ["Kernel panic"],
    }
    assert shown["since"] == "2026-03-01T12:00:00.000000Z"
    assert shown["nics"][0]["forward"] == ["127.0.0.1:2222:22/tcp"]
    assert shown["nics"][0]["link"] == "up"
    assert shown["cpus"] == {"vcpus": 2, "max_vcpus": 4, "threads": [4243, 4244]}


async def test_what_it_has_is_found_by_its_id(tmp_path: Path) -> None:
    """Each disk, NIC and device, as the VM itself shows it; one that is not there is named with those that are."""
    async with daemon(tmp_path, "web") as qsupd:
        caller = await qsupd.connect()
        shown: dict[str, Any] = (await caller.get("/v1/instances/web")).json()
        for noun in ("disks", "nics", "devices"):
            (entry,) = shown[noun]
            assert (await caller.get(f"/v1/instances/web/{noun}/{entry['id']}")).json() == entry
            if noun != "devices":  # that lists what QEMU has
                assert (await caller.get(f"/v1/instances/web/{noun}")).json() == {noun: [entry]}
            gone = await caller.get(f"/v1/instances/web/{noun}/none")
            assert (gone.status, gone.code) == (404, "no-such-device")
            assert gone.json()["hint"] == f"its {noun}: {entry['id']}"


async def test_a_change_is_seen_at_once(tmp_path: Path) -> None:
    """Rendered text is kept for as long as the view is the same one, and no longer."""
    async with daemon(tmp_path, "web") as qsupd:
        caller = await qsupd.connect()
        before = await caller.get("/v1/instances/web")
        qsupd.backend.set_state("web", State.PAUSED)
        one, many = await caller.get("/v1/instances/web"), await caller.get("/v1/instances")
    assert before.json()["substate"] == "running"
    assert one.json()["substate"] == "paused"
    assert many.json()["instances"] == [one.json()]


async def test_instances_that_went_are_not_kept(tmp_path: Path) -> None:
    """The cache of rendered texts does not outgrow the VMs there are."""
    async with daemon(tmp_path, "a", "b", "c") as qsupd:
        caller = await qsupd.connect()
        await caller.get("/v1/instances")
        del qsupd.backend.views["b"]
        reply = await caller.get("/v1/instances")
        assert qsupd.api.instances.names() == {"a", "c"}
        gone = await caller.get("/v1/instances/b")
    assert names(reply) == ["a", "c"]
    assert gone.code == "no-such-instance"


async def test_lists_come_in_pages(tmp_path: Path) -> None:
    """``limit`` and ``after`` walk the list once, even when entries go in between."""
    async with daemon(tmp_path, "a", "b", "c", "d", "e") as qsupd:
        caller = await qsupd.connect()
        first = await caller.get("/v1/instances?limit=2")
        del qsupd.backend.views["b"]
        second = await caller.get(f"/v1/instances?limit=2&after={first.json()['next']}")
        third = await caller.get(f"/v1/instances?limit=2&after={second.json()['next']}")
        beyond = await caller.get("/v1/instances?after=zzz")
    assert [names(page) for page in (first, second, third, beyond)] == [["a", "b"], ["c", "d"], ["e"], []]
    assert [page.json()["next"] for page in (first, second, third, beyond)] == ["b", "d", None, None]


async def test_a_list_of_one_state(tmp_path: Path) -> None:
    """By state or substate, in pages, too; a word that can never match is refused with those that there are."""
    async with daemon(tmp_path, "a", "b", "c", "d") as qsupd:
        for name in "bcd":
            qsupd.backend.set_state(name, State.CRASHED)
        qsupd.backend.set_state("d", State.START_FAILED)
        caller = await qsupd.connect()
        failed = await caller.get("/v1/instances?state=failed&limit=2")
        rest = await caller.get(f"/v1/instances?state=failed&limit=2&after={failed.json()['next']}")
        crashed = await caller.get("/v1/instances?state=crashed")
        none = await caller.get("/v1/instances?state=paused")
        wrong = [await caller.get(f"/v1/instances?state={word}") for word in ("chrashed", "", "Failed", "x" * 500)]
    assert [names(page) for page in (failed, rest, crashed, none)] == [["b", "c"], ["d"], ["b", "c"], []]
    assert {(reply.status, reply.code) for reply in wrong} == {(400, "bad-request")}
    detail = str(wrong[0].json()["detail"])
    assert "query parameter 'state': 'chrashed' is none of active, activating, " in detail
    assert detail.endswith("quarantined; did you mean 'crashed'?")


async def test_file_names_that_are_not_utf8_are_shown_escaped(tmp_path: Path) -> None:
    """A disk's path with an undecodable byte does not make its VM unreadable."""
    async with daemon(tmp_path, "web") as qsupd:
        view = qsupd.backend.views["web"]
        qsupd.backend.views["web"] = evolve(view, files=("/etc/\udcff.toml",))
        reply = await (await qsupd.connect()).get("/v1/instances")
    assert b"/etc/\\udcff.toml" in reply.body


async def test_a_verb_answers_with_its_operation(tmp_path: Path) -> None:
    """A power verb is accepted with 202; Location leads to the operation, which goes on by itself."""
    async with daemon(tmp_path, "web") as qsupd:
        qsupd.backend.held.add("web")
        caller = await qsupd.connect()
        accepted = await caller.post("/v1/instances/web/stop", {"timeout": 7.5})
        operation = accepted.json()
        shown = await caller.get(accepted.headers["location"])
        holder = (await caller.get("/v1/instances/web")).json()["operation"]
        qsupd.backend.finish(str(operation["id"]))
        ended = await caller.get(accepted.headers["location"])
        assert qsupd.backend.timeouts == {operation["id"]: 7.5}
    assert accepted.status == 202
    assert (operation["kind"], operation["target"], operation["state"]) == ("stop", "web", "running")
    assert shown.json() == operation
    assert holder == operation["id"]
    assert ended.json()["state"] == "succeeded"


async def test_waiting_answers_with_the_end(tmp_path: Path) -> None:
    """``?wait=`` answers 200 when the operation ends, also when it failed; its problem is in ``error``."""
    async with daemon(tmp_path, "web") as qsupd:
        qsupd.backend.set_state("web", State.DEAD)
        qsupd.backend.held.add("web")
        caller = await qsupd.connect()

        async def fail() -> None:
            await wait_until(lambda: qsupd.backend.operations(), "the operation has begun")
            error = StartError("could not open disk image: Permission denied", instance="web", hint="see its mode")
            qsupd.backend.finish(qsupd.backend.operations()[0].id, error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            reply = await caller.post("/v1/instances/web/start?wait=60")
    operation: dict[str, Any] = reply.json()
    assert (reply.status, operation["state"]) == (200, "failed")
    assert operation["error"]["code"] == "start-failed"
    assert operation["error"]["detail"] == "could not open disk image: Permission denied"
    assert operation["error"]["hint"] == "see its mode"


async def test_waiting_has_an_end(tmp_path: Path) -> None:
    """When ``wait`` is over first, the answer is 202 with the operation as it is; both kinds of wait agree."""
    async with daemon(tmp_path, "web") as qsupd:
        qsupd.backend.held.add("web")
        caller = await qsupd.connect()
        reply = await caller.post("/v1/instances/web/stop?wait=0.01")
        operation_id = reply.json()["id"]
        waited = await caller.get(f"/v1/operations/{operation_id}/wait?timeout=0.01")
    assert reply.status == 202
    assert reply.json()["state"] == waited.json()["state"] == "running"


async def test_a_client_that_leaves_ends_its_wait_alone(tmp_path: Path) -> None:
    """The operation of a client that closed its connection goes on."""
    async with daemon(tmp_path, "web") as qsupd:
        qsupd.backend.held.add("web")
        caller = await qsupd.connect()
        await caller.client.send(
            b"POST /v1/instances/web/stop?wait=3600 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        )
        await wait_until(lambda: qsupd.backend.operations(), "the operation has begun")
        await caller.client.stream.aclose()
        await wait_until(lambda: not qsupd.backend.waiting, "nobody waits any more")
        operation = qsupd.backend.operations()[0]
        assert not operation.is_final
        reply = await (await qsupd.connect()).get(f"/v1/operations/{operation.id}")
    assert reply.json()["state"] == "running"


async def test_a_repeated_key_gets_the_same_operation(tmp_path: Path) -> None:
    """``Idempotency-Key`` makes a retry safe."""
    async with daemon(tmp_path, "web") as qsupd:
        caller = await qsupd.connect()
        header = "Idempotency-Key: 7f0c-1"
        first = await caller.post("/v1/instances/web/reset", None, header)
        again = await caller.post("/v1/instances/web/reset", None, header)
        other = await caller.post("/v1/instances/web/reset", None, "Idempotency-Key: 7f0c-2")
        long = await caller.post("/v1/instances/web/reset", None, f"Idempotency-Key: {'k' * 256}")
    assert first.json()["id"] == again.json()["id"] != other.json()["id"]
    assert long.status == 400


async def test_several_vms_are_begun_by_one_request(tmp_path: Path) -> None:
    """Each has its operation, in the order of the names; one that is refused says why, and keeps no other from it."""
    async with daemon(tmp_path, "db", "held", "web") as qsupd:
        qsupd.backend.held.add("held")
        caller = await qsupd.connect()
        body = {"names": ["web", "gone", "held", "-x", "tpl@", "db"], "timeout": 7.5}
        key = "Idempotency-Key: 7f0c"
        replies = [await caller.post("/v1/stop", body, key), await caller.post("/v1/stop?wait=0.01", body, key)]
        assert list(qsupd.backend.timeouts.values()) == [7.5] * 3
        held = qsupd.backend.views["held"].operation
        assert held is not None
        qsupd.backend.finish(held, StopError("the kernel keeps it"))
        replies.append(await caller.post("/v1/stop?wait=60", body, key))
    assert [reply.status for reply in replies] == [202, 202, 200]
    begun: list[dict[str, Any]] = [reply.json() for reply in replies]
    assert [(each["target"], each["kind"]) for each in begun[0]["operations"]] == [
        (name, "stop") for name in ("web", "held", "db")
    ]
    assert len({tuple(operation["id"] for operation in each["operations"]) for each in begun}) == 1
    refused = {(name, problem["code"]) for each in begun for name, problem in each["refused"].items()}
    assert refused == {(name, "no-such-instance") for name in ("gone", "-x", "tpl@")}
    assert [operation["state"] for operation in begun[2]["operations"]] == ["succeeded", "failed", "succeeded"]


async def test_what_excludes_each_other_is_refused_as_a_whole(tmp_path: Path) -> None:
    """With a problem, and nothing is begun."""
    async with daemon(tmp_path, "db", "test", "web") as qsupd:
        qsupd.backend.excluded = {"db", "test"}
        reply = await (await qsupd.connect()).post("/v1/start", {"names": ["db", "web", "test"]})
        assert qsupd.backend.operations() == ()
    assert (reply.status, reply.code) == (409, "dependency")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"names": []},
        {"names": ["web", "web"]},
        {"names": [f"vm{number}" for number in range(1001)]},
        {"names": "web"},
        {"names": ["web", 1]},
        {"names": ["web"], "timeout": 0},
        {"names": ["web"], "name": "db"},
        None,
    ],
    ids=lambda body: str(body)[:40],
)
async def test_names_that_are_none_are_refused(tmp_path: Path, body: object) -> None:
    """From 1 to 1000, each once; else nothing is begun."""
    async with daemon(tmp_path, "web") as qsupd:
        reply = await (await qsupd.connect()).post("/v1/stop", body)
        assert qsupd.backend.operations() == ()
    assert (reply.status, reply.code) == (400, "bad-request")


async def test_refusals_say_why_and_what_to_do(tmp_path: Path) -> None:
    """A verb that the state does not allow is 409 with a reason; a busy VM names its operation."""
    async with daemon(tmp_path, "down", "web") as qsupd:
        qsupd.backend.set_state("down", State.DEAD)
        qsupd.backend.held.add("web")
        caller = await qsupd.connect()
        denied = await caller.post("/v1/instances/down/pause")
        holder = await caller.post("/v1/instances/web/reset")
        busy = await caller.post("/v1/instances/web/pause")
    assert (denied.status, denied.code) == (409, "not-allowed")
    assert (denied.json()["instance"], denied.json()["hint"]) == ("down", "start it first")
    assert (busy.status, busy.code) == (409, "busy")
    assert busy.json()["operation"] == holder.json()["id"]


@pytest.mark.parametrize("timeout", [0, -1, 3601, True, "5", None])
async def test_odd_timeouts_are_refused(tmp_path: Path, timeout: object) -> None:
    """A timeout is a number of seconds within bounds, or the request is refused and nothing begins."""
    async with daemon(tmp_path, "web") as qsupd:
        reply = await (await qsupd.connect()).post("/v1/instances/web/stop", {"timeout": timeout})
        assert not qsupd.backend.operations()
    assert (reply.status, reply.code) == (400, "bad-request")


async def test_an_unknown_verb_is_not_found(tmp_path: Path) -> None:
    """There are the verbs of the table and no others; GET is not one of their methods."""
    async with daemon(tmp_path, "web") as qsupd:
        caller = await qsupd.connect()
        unknown = await caller.post("/v1/instances/web/explode")
        wrong_method = await caller.get("/v1/instances/web/start")
    assert unknown.status == 404
    assert (wrong_method.status, wrong_method.headers["allow"]) == (405, "POST")


async def test_operations_are_listed_and_not_cancelled(tmp_path: Path) -> None:
    """Newest first, in pages; none can be deleted yet, and none says that it could."""
    async with daemon(tmp_path, "db", "web") as qsupd:
        qsupd.backend.held.add("web")
        caller = await qsupd.connect()
        first = (await caller.post("/v1/instances/db/reset")).json()["id"]
        second = (await caller.post("/v1/instances/web/stop")).json()["id"]
        newest: dict[str, Any] = (await caller.get("/v1/operations?limit=1")).json()
        older: dict[str, Any] = (await caller.get(f"/v1/operations?after={newest['next']}")).json()
        lost = await caller.get(f"/v1/operations?after={'0' * 32}")
        refused = await caller.call("DELETE", f"/v1/operations/{second}")
    assert [operation["id"] for operation in newest["operations"]] == [second]
    assert [operation["id"] for operation in older["operations"]] == [first]
    assert (lost.status, refused.status, newest["operations"][0]["cancellable"]) == (410, 409, False)


async def test_the_log_is_cut_to_the_lines_asked_for(tmp_path: Path) -> None:
    """``lines`` counts from the end."""
    async with daemon(tmp_path, "web") as qsupd:
        caller = await qsupd.connect()
        two, none = await caller.get("/v1/instances/web/log?lines=2"), await caller.get("/v1/instances/web/log?lines=0")
    assert two.json() == {"lines": ["line 4", "line 5"]}
    assert none.json() == {"lines": []}


async def test_a_followed_log_goes_on(tmp_path: Path) -> None:
    """``follow`` shows the last lines, then each further one, as one JSON object a line."""
    async with daemon(tmp_path, "web") as qsupd:
        caller = await qsupd.connect()
        await caller.client.send(b"GET /v1/instances/web/log?lines=1&follow=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        chunks = await read_chunks(caller.client.stream, b"line 5")
        qsupd.backend.print_line("qemu: bad \u2028 \ud800 line")
        chunks += await read_chunks(caller.client.stream, b"bad")
    lines = [json.loads(line) for line in chunks.split(b"\r\n") if line.startswith(b"{")]
    for line in lines:
        check_value(line, {"$ref": "#/components/schemas/LogLine"})
    assert [line["line"] for line in lines] == ["line 5", "qemu: bad \u2028 \ud800 line"]


async def test_a_followed_log_is_given_up_with_its_client(tmp_path: Path) -> None:
    """A client that leaves is followed by nobody, wherever the stream stood."""
    async with daemon(tmp_path, "web") as qsupd:
        caller = await qsupd.connect()
        await caller.client.send(b"GET /v1/instances/web/log?lines=1&follow=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        await read_chunks(caller.client.stream, b"line 5")
        qsupd.backend.print_line("more")
        await read_chunks(caller.client.stream, b"more")
        await caller.client.stream.aclose()
        await wait_until(lambda: not qsupd.backend.log_followers, "nobody follows any more")


async def read_chunks(stream: trio.SocketStream, until: bytes) -> bytes:
    """Read from a socket until some text has come."""
    data = b""
    with trio.fail_after(PATIENCE):
        while until not in data or not data.endswith(b"\n"):
            received = await stream.receive_some(65536)
            assert received, "the stream ended"
            data += received
    return data


async def test_unknown_instances_are_refused_by_every_route(tmp_path: Path) -> None:
    """What needs a VM says so when there is none of that name, before anything else is done."""
    async with daemon(tmp_path) as qsupd:
        codes = await _codes_without_vm(qsupd)
    assert codes == {"no-such-instance"}


async def _codes_without_vm(qsupd: Daemon) -> set[object]:
    caller = await qsupd.connect()
    parts = ("", "/stats", "/log", "/log?follow=1", "/cmdline", "/screenshot")
    replies = [await caller.get(f"/v1/instances/nobody{part}") for part in parts]
    bodies = {"/start": None, "/kill": None, "/qmp": {"execute": "query-status"}, "/agent": {"command": "ping"}}
    replies += [await caller.post(f"/v1/instances/nobody{part}", body) for part, body in bodies.items()]
    return {reply.code for reply in replies}


async def test_the_command_line_is_that_of_a_start(tmp_path: Path) -> None:
    """A VM that was not started yet has none to show; the document promises no other."""
    async with daemon(tmp_path, "web") as qsupd:
        qsupd.backend.views["web"] = make_view("web", state=State.DEAD, pid=None)
        reply = await (await qsupd.connect()).get("/v1/instances/web/cmdline")
    assert (reply.status, reply.code) == (409, "not-allowed")
    summary = document()["paths"]["/v1/instances/{instance}/cmdline"]["get"]["summary"]
    assert summary == "QEMU's command line: the running one, or that of the last start"
