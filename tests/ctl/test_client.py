"""The client against peers that are slow, wrong, or gone."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import pytest

from qsup.api.protocol import SOCKET_PATH_MAX
from qsup.ctl import connection
from qsup.ctl.client import Client, error_from
from qsup.ctl.connection import Address, Connection, Deadline, find_address
from qsup.errors import (
    DaemonProtocolError,
    DaemonUnreachable,
    ForbiddenError,
    GoneError,
    NoSuchInstance,
    QmpCommandError,
    QsupError,
    UnitError,
)
from qsup.host.rundir import Layout
from tests.ctl.peer import answer, peer
from tests.waiting import poll_until

OK = answer('{"a": 1}')


def test_one_connection_serves_many_requests(tmp_path: Path) -> None:
    """Requests share a connection while the daemon keeps it."""
    with peer(tmp_path, [OK, OK]) as daemon:
        client = daemon.client
        assert [client.get("/1"), client.get("/2")] == [{"a": 1}, {"a": 1}]
    assert [request.split()[1] for request in daemon.requests] == [b"/1", b"/2"]


def test_a_connection_that_the_daemon_closes_is_replaced(tmp_path: Path) -> None:
    """After `Connection: close`, and after a close while idle, the next request goes over a new connection."""
    closing = answer("{}", "200 OK", "Connection: close")
    with peer(tmp_path, [closing], [OK], [OK]) as daemon:
        client = daemon.client
        assert [client.get("/1"), client.get("/2"), client.get("/3")] == [{}, {"a": 1}, {"a": 1}]


def test_a_read_is_repeated_when_nobody_answered(tmp_path: Path) -> None:
    """A GET whose connection ends unanswered is sent again, once."""
    with peer(tmp_path, [b""], [OK]) as daemon:
        assert daemon.client.get("/1") == {"a": 1}
    with (
        peer(tmp_path, [b""], [b""], [OK]) as daemon,
        pytest.raises(DaemonUnreachable, match="without an answer"),
    ):
        daemon.client.get("/1")


def test_a_change_is_repeated_only_with_its_key(tmp_path: Path) -> None:
    """A POST is sent again, unchanged, only when an Idempotency-Key makes that safe."""
    with peer(tmp_path, [b""], [OK]) as daemon:
        assert daemon.client.post("/1", {"x": 2}, key="k") == {"a": 1}
    assert len(daemon.requests) == 2
    assert daemon.requests[0] == daemon.requests[1]
    assert b"Idempotency-Key: k\r\n" in daemon.requests[0]
    with peer(tmp_path, [b""], [OK]) as daemon, pytest.raises(DaemonUnreachable):
        daemon.client.post("/1")
    assert len(daemon.requests) == 1


def test_a_daemon_that_is_restarted_is_waited_for(tmp_path: Path) -> None:
    """What has a key, and what waits for an operation, goes to the next daemon; an ordinary read fails soon."""
    came_back = [OK, b""], [b""], [b""], [OK]
    with peer(tmp_path, *came_back) as daemon:
        assert daemon.client.get("/1") == daemon.client.get("/2", outlast=True) == {"a": 1}
    with peer(tmp_path, *came_back) as daemon:
        assert daemon.client.get("/1") == daemon.client.post("/2", key="k") == {"a": 1}
    with peer(tmp_path, [OK]) as daemon:
        client = daemon.client
        assert client.get("/1") == {"a": 1}
    for lost in (
        partial(client.get, "/2", outlast=True),
        partial(client.post, "/2", key="k"),
        partial(client.get, "/2"),
    ):
        with pytest.raises(DaemonUnreachable, match="no daemon listens"):
            lost()
    with peer(tmp_path, [OK]):
        assert client.get("/3", outlast=True) == {"a": 1}
    client.close()


def test_a_daemon_that_never_was_there_is_not_waited_for(tmp_path: Path) -> None:
    """And somebody who waits for one that was is told so."""
    told: list[str] = []
    client = Client(Address(str(tmp_path / "peer.sock"), ""), tell=told.append, returns=1e6)
    with pytest.raises(DaemonUnreachable, match="no daemon listens"):
        client.post("/1", key="k")
    with peer(tmp_path, [OK]):
        assert client.get("/1") == {"a": 1}
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.get, "/2", outlast=True)
        poll_until(lambda: bool(told), "it is told", seconds=20)
        with peer(tmp_path, [OK]):
            assert waiting.result(20) == {"a": 1}
    client.close()
    assert told == ["the daemon is gone; it is waited for, 1e+06 s at most"]


def test_lists_come_in_pages(tmp_path: Path) -> None:
    """A list is followed to its end, each page asked for behind the one before."""
    first, second = '{"units": [1, 2], "next": "b c"}', '{"units": [3], "next": null}'
    with peer(tmp_path, [answer(first), answer(second)]) as daemon:
        assert list(daemon.client.pages("/v1/units", "units")) == [1, 2, 3]
    assert daemon.requests[1].startswith(b"GET /v1/units?after=b%20c HTTP/1.1\r\n")


@pytest.mark.parametrize(
    "reply",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        answer("no json"),
        answer("[" * 100_000),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbroken header\r\n\r\n",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 304 Not Modified\r\n\r\n",
        b"\0" * 40_000,
        b"HTTP/1.1 200",
        b"\xff\xfe",
    ],
    ids="ssh no-json nested coding header no-problem list-problem not-modified endless half bytes".split(),
)
def test_what_is_not_the_api_is_one_error(tmp_path: Path, reply: bytes) -> None:
    """Any answer that is not this API's ends in a `DaemonProtocolError`, and nothing hangs."""
    with peer(tmp_path, [reply]) as daemon, pytest.raises(DaemonProtocolError):
        daemon.client.get("/1")


def test_an_answer_that_is_cut_off_is_a_daemon_that_went(tmp_path: Path) -> None:
    """A daemon killed while it answers is no other failure than one that does not answer."""
    with peer(tmp_path, [b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"]) as daemon:
        with pytest.raises(DaemonUnreachable, match="in the middle"):
            daemon.client.get("/1")


def test_an_answer_beyond_its_bound_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A document that does not end is not read to the end."""
    monkeypatch.setattr(connection, "DOCUMENT_MAX", 1 << 20)
    with peer(tmp_path, [b"HTTP/1.1 200 OK\r\n\r\n" + bytes(2 << 20)]) as daemon:
        with pytest.raises(DaemonProtocolError, match="longer"):
            daemon.client.get("/1")


def test_informational_answers_are_passed_over(tmp_path: Path) -> None:
    """1xx heads before the answer are not the answer."""
    with peer(tmp_path, [b"HTTP/1.1 103 Early Hints\r\n\r\n" * 3 + OK]) as daemon:
        assert daemon.client.get("/1") == {"a": 1}


def test_a_daemon_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    """An answer that does not come within the time is an unreachable daemon, told as such."""
    # the peer awaits a second request's bytes only after the first; an empty reply keeps the connection open
    with peer(tmp_path, [b"", b""]) as daemon, pytest.raises(DaemonUnreachable, match=r"within 0\.05 s"):
        daemon.client.exchange("GET", "/1", timeout=0.05)


def test_problems_become_errors_of_the_tree(tmp_path: Path) -> None:
    """A problem document is raised as the class of its code, with its words, hint and details."""
    problem = (
        '{"type": "urn:qsup:problem:forbidden", "title": "Forbidden", "status": 403, "code": "forbidden", '
        '"detail": "no", "hint": "ask root", "request_id": "r1", "required": "admin"}'
    )
    with peer(tmp_path, [answer(problem, "403 Forbidden")]) as daemon, pytest.raises(ForbiddenError) as caught:
        daemon.client.get("/1")
    assert (str(caught.value), caught.value.hint) == ("no", "ask root")
    assert caught.value.details == {"request_id": "r1", "required": "admin"}


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("no-such-instance", NoSuchInstance),
        ("gone", GoneError),
        ("unit-invalid", UnitError),
        ("qmp-error", QmpCommandError),
        ("something-newer", QsupError),
        (None, QsupError),
    ],
)
def test_every_code_has_its_class(code: str | None, kind: type[QsupError]) -> None:
    """Classes that are made from parts, and codes this version does not know, can be raised as well."""
    error = error_from({"code": code, "detail": "d", "instance": "web", "self": 1, "message": 2, "extra": 3})
    assert type(error) is kind
    assert (str(error), error.details) == ("web: d", {"extra": 3})


def test_a_stream_gives_lines_as_they_come(tmp_path: Path) -> None:
    """Lines of a stream are whole however its chunks are cut, empty ones apart."""
    chunks = b"4\r\n{}\n{\r\n" + b"2\r\n}\n\r\n" + b"2\r\n\n\n\r\n" + b"0\r\n\r\n"
    with peer(tmp_path, [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks]) as daemon:
        with daemon.client.stream("/events") as stream:
            assert list(stream.lines(Deadline(5))) == [b"{}", b"{}"]


def test_a_stream_that_is_cut_off_has_ended(tmp_path: Path) -> None:
    """Without its last chunk or with it: the daemon went, and half a line is none."""
    with peer(tmp_path, [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", None]) as daemon:
        with daemon.client.stream("/events") as stream:
            # the peer closes once it reads the end of what we send
            stream._connection.socket.shutdown(1)
            assert list(stream.lines(Deadline(5))) == []


def test_a_line_without_end_is_given_up(tmp_path: Path) -> None:
    """A stream's line is bounded."""
    endless = b"HTTP/1.1 200 OK\r\n\r\n" + bytes(connection.LINE_MAX + 70_000)
    with peer(tmp_path, [endless]) as daemon, daemon.client.stream("/events") as stream:
        with pytest.raises(DaemonProtocolError, match="line"):
            list(stream.lines(Deadline(5)))


# finding the socket


def where(environ: Mapping[str, str], *, uid: int = 1000, **options: object) -> str:
    """The path chosen for these options."""
    given = {"socket_path": None, "root": None, "user": False} | options
    return find_address(environ=environ, uid=uid, **given).path  # type: ignore[arg-type]  # options of any type


HOME = {"HOME": "/home/u"}
RUNTIME = {**HOME, "XDG_RUNTIME_DIR": "/run/user/7"}


def test_options_win_over_the_environment() -> None:
    """``--socket``, then ``--root``, then ``--user``, then QSUP_SOCKET."""
    environ = {**RUNTIME, "QSUP_SOCKET": "/q"}
    assert where(environ, socket_path="/s", root="/r", user=True) == "/s"
    assert where(environ, root="/r", user=True) == "/r/run/api.sock"
    assert where(environ, user=True) == "/home/u/.local/state/qsup/run/api.sock"
    assert where(environ) == "/q"


def test_the_default_is_the_systems_daemon_where_it_may_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root and whoever may connect to it get the system's daemon, others their own."""
    system = tmp_path / "api.sock"
    monkeypatch.setattr(connection, "SYSTEM_SOCKET", str(system))
    assert where(RUNTIME, uid=0) == str(system)
    assert where(RUNTIME) == "/home/u/.local/state/qsup/run/api.sock"
    system.touch()
    assert where(RUNTIME) == str(system)


@pytest.mark.parametrize(
    "environ",
    [RUNTIME, HOME, {**HOME, "XDG_STATE_HOME": "/state"}, {**HOME, "XDG_RUNTIME_DIR": "relative"}],
    ids=["runtime", "home", "state", "relative"],
)
def test_both_sides_agree_on_the_users_socket(environ: dict[str, str]) -> None:
    """The user's own socket is where ``qsupd --user`` listens."""
    assert where(environ, user=True) == str(Layout.for_user(environ).socket)


@pytest.mark.parametrize("prepare", ["nothing", "stale", "file", "no-directory"])
def test_a_missing_daemon_is_told_with_what_to_do(tmp_path: Path, prepare: str) -> None:
    """No socket, a socket nobody listens on, no directory: the error names the path and how to start the daemon."""
    path = tmp_path / "run" / "api.sock"
    if prepare != "no-directory":
        path.parent.mkdir()
    if prepare == "file":
        path.touch()
    if prepare == "stale":
        import socket

        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path))
    address = find_address(socket_path=None, root=str(tmp_path), user=False, environ={}, uid=0)
    with pytest.raises(DaemonUnreachable, match="no daemon listens at") as caught:
        Client(address).get("/v1")
    assert caught.value.hint == f"is its daemon running? start it with: qsupd --root {tmp_path}"


def test_a_full_backlog_is_waited_for(tmp_path: Path) -> None:
    """A daemon that has yet to accept others is not one that cannot be reached; the deadline counts all the same."""
    address = Address(str(tmp_path / "api.sock"), "")
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as opened, ThreadPoolExecutor(1) as pool:
        listener.bind(address.path)
        listener.listen(0)
        opened.enter_context(closing(Connection(address, Deadline(5))))
        with pytest.raises(DaemonUnreachable, match=r"did not answer within 0\.05 s"):
            Connection(address, Deadline(0.05))
        waiting = pool.submit(Connection, address, Deadline(20))
        opened.enter_context(listener.accept()[0])
        opened.enter_context(closing(waiting.result(20)))


def test_a_path_too_long_for_a_socket_is_told(tmp_path: Path) -> None:
    """The kernel's limit is named instead of its errno."""
    with pytest.raises(DaemonUnreachable, match=f"longer than {SOCKET_PATH_MAX} bytes"):
        Client(Address("/" + "x" * SOCKET_PATH_MAX, "")).get("/v1")


@pytest.mark.root
@pytest.mark.parametrize(
    ("mode", "group", "hint"),
    [(0o660, "games", "usermod -aG games USER"), (0o600, "root", "no group may")],
)
def test_a_forbidden_socket_names_its_group(open_path: Path, mode: int, group: str, hint: str) -> None:
    """Whoever may not connect learns which group may, and is never told to join root's."""
    import socket

    path = open_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        shutil.chown(path, group=group)
        path.chmod(mode)
        os.seteuid(65534)
        try:
            with pytest.raises(DaemonUnreachable, match="permission denied") as caught:
                Client(Address(str(path), "")).get("/v1")
        finally:
            os.seteuid(0)
    assert hint in caught.value.hint
