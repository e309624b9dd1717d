"""The HTTP kernel's requests and answers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trio
import trio.testing

from qsup.api.http import Answer, Request, Response, Role, Router, json_response
from qsup.errors import BusyError, QsupError
from tests.api.serving import echo_body, request, routes, serving


async def test_answers_json_on_a_kept_connection(tmp_path: Path) -> None:
    """Requests follow one another on one connection, each with a whole JSON answer."""
    async with serving(tmp_path, routes()) as served:
        client = await served.connect()
        replies = [await client.get("/health") for _ in range(3)]
    assert [reply.json() for reply in replies] == [{"status": "ok"}] * 3
    assert replies[0].headers["content-type"] == "application/json"
    assert served.requests == [("GET", "/health", 200)] * 3


async def test_request_carries_what_the_client_said(tmp_path: Path) -> None:
    """A handler sees method, decoded path, query, joined headers, parameters, the peer and the client's own id."""
    seen: list[Request] = []

    async def handler(request: Request) -> Answer:
        seen.append(request)
        return Response(status=204)

    router = Router()
    router.add("GET", "/v1/vms/{vm}/disks/{disk}", handler, Role.READ)
    async with serving(tmp_path, router) as served:
        client = await served.connect()
        headers = ("X-Thing: a", "X-Thing: b", "X-Request-Id: job-17.a_b")
        reply = await client.get("/v1/vms/a%2Fb/disks/%C3%A4?since=3&type=a+b%26c&follow", *headers)
    assert reply.status == 204
    assert reply.body == b""
    assert (seen[0].method, seen[0].path) == ("GET", "/v1/vms/a/b/disks/ä")
    assert seen[0].params == {"vm": "a/b", "disk": "ä"}
    assert seen[0].query == {"since": "3", "type": "a b&c", "follow": ""}
    assert seen[0].headers["x-thing"] == "a, b"
    assert seen[0].request_id == "job-17.a_b"
    assert seen[0].peer.pid > 0


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "a/../b", "<script>"])
async def test_odd_request_ids_are_replaced(tmp_path: Path, given: str) -> None:
    """A request id that could do harm in a log or a page is replaced by one of the server's own."""
    async with serving(tmp_path, routes()) as served:
        reply = await (await served.connect()).get("/nowhere", f"X-Request-Id: {given}")
    assert re.fullmatch("[0-9a-f]{32}", str(reply.json()["request_id"]))


async def test_absolute_targets_are_understood(tmp_path: Path) -> None:
    """A target in absolute-form means its path (RFC 9112, section 3.2.2)."""
    async with serving(tmp_path, routes()) as served:
        reply = await (await served.connect()).get("http://localhost/health?x=1")
    assert reply.status == 200


async def test_unknown_path_is_404(tmp_path: Path) -> None:
    """A path without a route is a problem document with its code, and costs no connection."""
    async with serving(tmp_path, routes()) as served:
        client = await served.connect()
        replies = [
            await client.get(path) for path in ("/nowhere", "/health/", "//health", "/health/..", "/", "/%68ealt")
        ]
        assert (await client.get("/health")).status == 200
    assert {(reply.status, reply.code) for reply in replies} == {(404, "not-found")}
    assert served.requests[:-1] == [("", "", 404)] * 6


async def test_wrong_method_is_405_with_allow(tmp_path: Path) -> None:
    """A method that the path does not have is refused with those it has."""
    async with serving(tmp_path, routes(echo=echo_body)) as served:
        client = await served.connect()
        await client.send(request("DELETE /echo"))
        reply = await client.reply("DELETE")
        assert (reply.status, reply.code, reply.headers["allow"]) == (405, "method-not-allowed", "GET, HEAD, POST")
        await client.send(request("FROBNICATE /health"))
        reply = await client.reply("FROBNICATE")
    assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("target", ["/%", "/%4", "/%zz", "/%ff", "/health?a=1&a=2", "/health?a=%", "*", "health"])
async def test_undecodable_targets_are_refused(tmp_path: Path, target: str) -> None:
    """A target with broken percent-encoding, without UTF-8, with a parameter twice, or that is no path is a 400."""
    async with serving(tmp_path, routes()) as served:
        reply = await (await served.connect()).get(target)
    assert (reply.status, reply.code) == (400, "bad-request")


async def test_head_has_the_header_of_get_alone(tmp_path: Path) -> None:
    """HEAD reaches the handler of GET; its answer has the same length and no body."""
    async with serving(tmp_path, routes()) as served:
        client = await served.connect()
        await client.send(request("HEAD /health"))
        head = await client.reply("HEAD")
        assert (await client.get("/health")).headers["content-length"] == head.headers["content-length"] == "15"
    assert head.body == b""


async def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    """Requests sent without waiting for answers are answered one by one, bodies included."""
    async with serving(tmp_path, routes(echo=echo_body)) as served:
        client = await served.connect()
        bodies = [f"body {number}".encode() * (number * 100 + 1) for number in range(20)]
        await client.send(b"".join(request("POST /echo", body=body) for body in bodies))
        assert [(await client.reply("POST")).body for _ in bodies] == bodies


async def test_pipelining_client_lets_others_have_their_turn(tmp_path: Path) -> None:
    """Of two clients at once, one with a hundred requests in one piece, the other is not served last."""
    async with serving(tmp_path, routes(echo=echo_body)) as served:
        greedy, modest = await served.connect(), await served.connect()
        await greedy.send(request("GET /health") * 100)
        await modest.send(request("GET /echo"))
        await modest.reply()
        for _ in range(100):
            await greedy.reply()
    assert served.requests.index(("GET", "/echo", 200)) < 100


SMUGGLED = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (request("POST /echo", f"Content-Length: {5 + len(SMUGGLED)}", "Transfer-Encoding: chunked"), "has both"),
        (request("POST /echo", "Transfer-Encoding: chunked", "Content-Length: 5"), "has both"),
        (request("POST /echo", "Transfer-Encoding: chunked").replace(b"1.1", b"1.0"), "needs HTTP/1.1"),
        (request("POST /echo", "Transfer-Encoding: identity, chunked"), "Only Transfer-Encoding: chunked"),
        (request("POST /echo", "Content-Length: 5", "Content-Length: 6"), "conflicting Content-Length"),
        (request("POST /echo", "Content-Length: 5, 6"), "conflicting Content-Length"),
        (request("POST /echo", "Content-Length: 0x5"), "bad Content-Length"),
        (request("POST /echo", "Transfer-Encoding : chunked"), "illegal header line"),
        (request("POST /echo", "Content-Length: 5").replace(b"1.1", b"1.2"), "not HTTP/1.1"),
    ],
)
async def test_ambiguous_framing_ends_the_connection(tmp_path: Path, data: bytes, detail: str) -> None:
    """A request whose end could be seen in two places is refused, and nothing behind it is taken for a request."""
    async with serving(tmp_path, routes(echo=echo_body)) as served:
        client = await served.connect()
        await client.send(data + b"0\r\n\r\n" + SMUGGLED)
        reply = await client.reply("POST")
        assert await client.closed() == b""
    assert (reply.status, reply.headers["connection"]) == (400, "close")
    assert detail in str(reply.json()["detail"])
    assert served.requests == [("", "", 400)]


@pytest.mark.parametrize("chunk", [b"-1\r\n", b"4\r\nnullXX", b"g\r\n", b"f" * 21 + b"\r\n"])
async def test_broken_chunks_end_the_connection(tmp_path: Path, chunk: bytes) -> None:
    """A body whose chunks cannot be understood is a 400, and nothing behind it is taken for a request."""
    async with serving(tmp_path, routes(echo=echo_body)) as served:
        client = await served.connect()
        await client.send(request("POST /echo", "Transfer-Encoding: chunked") + chunk + b"0\r\n\r\n" + SMUGGLED)
        reply = await client.reply("POST")
        assert await client.closed() == b""
    assert (reply.status, reply.headers["connection"]) == (400, "close")
    assert served.requests == [("POST", "/echo", 400)]


async def test_chunked_bodies_are_read(tmp_path: Path) -> None:
    """A body in chunks arrives whole."""
    async with serving(tmp_path, routes(echo=echo_body)) as served:
        client = await served.connect()
        await client.send(request("POST /echo", "Transfer-Encoding: chunked") + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n")
        assert (await client.reply("POST")).body == b"abcde"
        assert (await client.get("/health")).status == 200


async def test_client_waits_for_100_continue(tmp_path: Path) -> None:
    """Expect: 100-continue is answered when the handler asks for the body, and not before."""
    async with serving(tmp_path, routes(echo=echo_body)) as served:
        client = await served.connect()
        await client.send(request("POST /echo", "Expect: 100-continue", "Content-Length: 4"))
        assert await client.stream.receive_some() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"body")
        assert (await client.reply("POST")).body == b"body"


async def test_unwanted_expected_body_is_not_asked_for(tmp_path: Path) -> None:
    """A request that is refused by its path gets its answer in place of 100 Continue, and nothing can follow it."""
    async with serving(tmp_path, routes()) as served:
        client = await served.connect()
        await client.send(request("POST /nowhere", "Expect: 100-continue", f"Content-Length: {len(SMUGGLED)}"))
        reply = await client.reply("POST")
        await client.send(SMUGGLED)
        assert await client.closed() == b""
    assert (reply.status, reply.headers["connection"]) == (404, "close")


async def test_bodies_nobody_reads_are_skipped(tmp_path: Path) -> None:
    """A handler may ignore the body: the next request on the connection is found behind it."""

    async def ignores(request: Request) -> Answer:
        return json_response({})

    async with serving(tmp_path, routes(ignores=ignores)) as served:
        client = await served.connect()
        await client.send(request("POST /ignores", "Content-Length: 100000"))
        assert (await client.reply("POST")).status == 200
        await client.send(b"x" * 100000 + request("GET /health"))
        assert (await client.reply()).json() == {"status": "ok"}


async def test_handler_reads_the_body_once(tmp_path: Path) -> None:
    """The body can be asked for again."""

    async def twice(request: Request) -> Answer:
        return json_response([(await request.body()).decode(), await request.json()])

    async with serving(tmp_path, routes(twice=twice)) as served:
        client = await served.connect()
        await client.send(request("POST /twice", body=b"[1]"))
        assert (await client.reply("POST")).body == b'["[1]",[1]]'


async def test_errors_of_handlers_become_problems(tmp_path: Path) -> None:
    """A handler's error of the tree is answered with its status, code, hint and details, and nothing is logged."""

    async def busy(request: Request) -> Answer:
        raise BusyError("snapshot s1 runs", instance="web", hint="wait for it", operation="17", status=1, code="x")

    async with serving(tmp_path, routes(busy=busy)) as served:
        client = await served.connect()
        reply = await client.get("/busy", "X-Request-Id: r1")
        assert (await client.get("/health")).status == 200
    assert reply.status == 409
    assert reply.json() == {
        "type": "urn:qsup:problem:busy",
        "title": "Busy",
        "status": 409,
        "detail": "snapshot s1 runs",
        "code": "busy",
        "request_id": "r1",
        "instance": "web",
        "hint": "wait for it",
        "operation": "17",
    }
    assert served.bugs == []


async def test_error_inside_a_nursery_is_still_that_error(tmp_path: Path) -> None:
    """An error that a handler's nursery wrapped into a group is answered like the bare one."""

    async def fails() -> None:
        raise BusyError("held")

    async def handler(request: Request) -> Answer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails)
        raise AssertionError

    async with serving(tmp_path, routes(nested=handler)) as served:
        assert (await (await served.connect()).get("/nested")).code == "busy"
    assert served.bugs == []


async def answer_with_bad_header(request: Request) -> Answer:
    """Answer with a header that would split the response."""
    return Response(headers={"x-evil": "a\r\nSet-Cookie: b"})


async def answer_with_bad_status(request: Request) -> Answer:
    """Answer with a status that is none."""
    return Response(status=99)


async def answer_with_nan(request: Request) -> Answer:
    """Answer with what is not JSON."""
    return json_response(float("nan"))


async def fail(request: Request) -> Answer:
    """Fail as nobody foresaw."""
    raise ZeroDivisionError("secret detail")


async def fail_with_odd_details(request: Request) -> Answer:
    """Fail with details that are no JSON values."""
    raise QsupError("no", thing=object())


@pytest.mark.parametrize(
    "handler", [fail, fail_with_odd_details, answer_with_bad_header, answer_with_bad_status, answer_with_nan]
)
async def test_handlers_bug_ends_one_request_only(tmp_path: Path, handler: object) -> None:
    """A bug in a handler is a 500 with the request's id and no detail; the log hook gets it; the connection goes on."""
    assert callable(handler)
    async with serving(tmp_path, routes(bug=handler)) as served:
        client = await served.connect()
        reply = await client.get("/bug")
        assert (await client.get("/health")).status == 200
    assert (reply.status, reply.code) == (500, "internal")
    assert b"secret" not in reply.body
    assert b"Traceback" not in reply.body
    (bug,) = served.bugs
    assert (bug.request_id, bug.where) == (reply.json()["request_id"], "GET /bug")


async def test_half_closing_client_gets_its_answer(tmp_path: Path) -> None:
    """A client that shuts down its sending side right after the request is answered, then closed."""
    async with serving(tmp_path, routes()) as served:
        client = await served.connect()
        await client.send(request("GET /health"))
        await client.stream.send_eof()
        assert (await client.reply()).status == 200
        assert await client.closed() == b""


@pytest.mark.parametrize(
    ("head", "closes"),
    [("GET /health HTTP/1.0\r\n\r\n", True), ("GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", True)],
)
async def test_connection_closes_when_the_client_wants(tmp_path: Path, head: str, closes: bool) -> None:
    """HTTP/1.0 and Connection: close end the connection behind the answer."""
    async with serving(tmp_path, routes()) as served:
        client = await served.connect()
        await client.send(head.encode())
        reply = await client.reply()
        assert await client.closed() == b""
    assert reply.headers["connection"] == "close"


async def test_authorisation_comes_before_the_body(tmp_path: Path) -> None:
    """A caller without the role is refused while its body is still to come, and the handler never runs."""

    async def denied(request: Request) -> Answer:
        raise AssertionError

    async with serving(tmp_path, routes(denied=denied), forbid=True) as served:
        client = await served.connect()
        await client.send(request("POST /denied", "Content-Length: 50"))
        reply = await client.reply("POST")
    assert (reply.status, reply.code) == (403, "forbidden")
    assert served.requests == [("POST", "/denied", 403)]
