"""Who is at the other end, and what that allows."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from qsup.api.http import Answer, Request, json_response
from qsup.api.peer import Peer, peer_of
from qsup.api.roles import Policy, Role, decide, role_of
from tests.api.serving import Served, routes, serving


async def whoami(request: Request) -> Answer:
    """Answer with the peer."""
    peer = request.peer
    return json_response({"pid": peer.pid, "uid": peer.uid, "gid": peer.gid, "groups": sorted(peer.groups)})


def test_own_credentials_are_read() -> None:
    """A socket's peer is this process with its user and all its groups."""
    left, right = socket.socketpair()
    with left, right:
        peer = peer_of(left)
    assert (peer.pid, peer.uid, peer.gid) == (os.getpid(), os.geteuid(), os.getegid())
    assert peer.groups == set(os.getgroups())


def test_other_sockets_have_no_peer() -> None:
    """A socket that is no Unix socket is an error, not somebody."""
    with socket.socket() as sock, pytest.raises(OSError):
        peer_of(sock)


CALLER = """
import json, os, socket, sys
path, uid, gid, groups = sys.argv[1], *map(json.loads, sys.argv[2:])
os.setgroups(groups); os.setgid(gid); os.setuid(uid)
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(path)
    sock.sendall(b"GET /whoami HTTP/1.0\\r\\n\\r\\n")
    reply = b""
    while data := sock.recv(65536):
        reply += data
print(os.getpid(), reply.partition(b"\\r\\n\\r\\n")[2].decode())
"""


async def ask_as(served: Served, uid: int, gid: int, groups: list[int]) -> tuple[int, dict[str, object]]:
    """Ask ``/whoami`` from a process of other credentials: its pid, and the answer."""
    os.chmod(served.path, 0o666)
    argv = [sys.executable, "-I", "-S", "-c", CALLER, served.path, *map(json.dumps, (uid, gid, groups))]
    with trio.fail_after(30):
        done = await trio.run_process(argv, capture_stdout=True, stderr=subprocess.STDOUT)
    pid, _, reply = done.stdout.decode().partition(" ")
    return int(pid), json.loads(reply)


@pytest.mark.root
@pytest.mark.parametrize("count", [0, 3, 256, 257, 5000])
async def test_other_users_are_known_with_all_their_groups(open_path: Path, count: int) -> None:
    """A caller's uid, gid and every supplementary group are what it has, however many these are."""
    groups = list(range(70000, 70000 + count))
    async with serving(open_path, routes(whoami=whoami)) as served:
        pid, reply = await ask_as(served, 65501, 65502, groups)
    assert reply == {"pid": pid, "uid": 65501, "gid": 65502, "groups": groups}


ids = st.integers(min_value=0, max_value=6)
groups = st.frozensets(ids)
peers = st.builds(Peer, pid=st.just(1), uid=ids, gid=ids, groups=groups)
policies = st.builds(Policy, daemon_uid=ids, operate_gids=groups, read_gids=groups)
roles = st.sampled_from(Role)


@given(peer=peers, policy=policies, needed=roles)
def test_decision_is_what_the_role_allows(peer: Peer, policy: Policy, needed: Role) -> None:
    """A caller may exactly what its role includes; administrators are root and the daemon's user, others by group."""
    own = peer.groups | {peer.gid}
    expected = 0
    if own & policy.read_gids:
        expected = 1
    if own & policy.operate_gids:
        expected = 2
    if peer.uid == 0 or peer.uid == policy.daemon_uid:
        expected = 3
    denial = decide(needed, peer, policy)
    assert (denial is None) == (expected >= needed)
    if denial is not None:
        assert (denial.status, denial.details["required"]) == (403, needed.name.lower())


@given(peer=peers, policy=policies, low=roles, high=roles)
def test_roles_include_those_below(peer: Peer, policy: Policy, low: Role, high: Role) -> None:
    """Whoever may do more may do less."""
    if low <= high and decide(high, peer, policy) is None:
        assert decide(low, peer, policy) is None


@given(peer=peers)
def test_strangers_have_no_role(peer: Peer) -> None:
    """Without a rule that names it, a caller has no role at all, root excepted."""
    assert role_of(peer, daemon_uid=99, operate_gids=frozenset()) is (Role.ADMIN if peer.uid == 0 else None)
