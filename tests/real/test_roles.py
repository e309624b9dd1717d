"""Who may call what, with real other users over the whole route table: T14.

Decides: what each kind of caller must be told for each route that there is.
Must not: know single routes; a new one is walked as soon as it is in the table.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from qsup.api.roles import Role
from qsup.api.routes.endpoint import Endpoint
from qsup.api.routes.table import ENDPOINTS
from tests.guests import Emulator
from tests.real.daemons import Daemon, rom_unit

pytestmark = [pytest.mark.real, pytest.mark.fault, pytest.mark.root]

#: A group that every Debian has and no test's user is in.
GROUP, GID = "games", "60"
FORBIDDEN = 403
_NOBODY = ("setpriv", "--reuid", "nobody", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs")
STRANGER = (*_NOBODY, "--regid", "nogroup", "--clear-groups")
OPERATORS = {
    "by a supplementary group": (*_NOBODY, "--regid", "nogroup", "--groups", GID),
    "by the primary group": (*_NOBODY, "--regid", GID, "--clear-groups"),
}
#: Each request of standard input on a connection of its own; prints what each was answered.
WALK = """
import json, socket, sys
answers = {}
for name, method, path, body in json.load(sys.stdin):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(sys.argv[1])
        lines = f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", f"Content-Length: {len(body)}", "", body
        connection.sendall("\\r\\n".join(lines).encode())
        answers[name] = int(connection.makefile("rb").readline().split()[1])
json.dump(answers, sys.stdout)
"""


@pytest.fixture(autouse=True)
def operators(root_dir: Path) -> None:
    """The daemon's operators are a group."""
    (root_dir / "qsupd.toml").write_text(f'operate-group = "{GROUP}"\n')


def walk(daemon: Daemon, caller: tuple[str, ...], requests: list[tuple[str, str, str, str]]) -> dict[str, int]:
    """The status that a caller is answered for each request: name, method, path, body."""
    done = subprocess.run(
        [*caller, "/usr/bin/python3", "-c", WALK, daemon.address.path],
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, int] = json.loads(done.stdout)
    return answers


def request(endpoint: Endpoint) -> tuple[str, str, str, str]:
    """A request of a route, about the VM ``web``, that says nothing wrong if it is let through."""
    path = endpoint.pattern.replace("{instance}", "web").replace("{unit}", "web").replace("{operation}", "0")
    return endpoint.id, endpoint.method, path, "{}" if endpoint.method in ("POST", "PUT", "PATCH") else ""


def state(daemon: Daemon) -> tuple[Any, ...]:
    """What no stranger may have changed."""
    view = daemon.view("web")
    files = {path.name: path.read_bytes() for path in daemon.units.iterdir()}
    return view["pid"], view["substate"], view["since"], files, daemon.get("/v1/operations")


def test_t14_a_stranger_is_refused_everything(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """The kernel keeps it from the socket; where somebody opened that to all, each route of the table does."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    daemon.do("web", "start")
    before = state(daemon)
    with pytest.raises(AssertionError, match="PermissionError"):
        walk(daemon, STRANGER, [request(ENDPOINTS[0])])
    Path(daemon.address.path).chmod(0o666)
    answers = walk(daemon, STRANGER, [request(endpoint) for endpoint in ENDPOINTS])
    assert answers == {endpoint.id: FORBIDDEN for endpoint in ENDPOINTS}
    assert state(daemon) == before


@pytest.mark.parametrize("how", OPERATORS)
def test_t14_an_operator_reaches_no_administrators_route(
    daemon: Daemon, emulator: Emulator, rom_guest: Path, how: str
) -> None:
    """A member of the group operates, whichever way it is one; files, raw QMP and programs in guests stay closed."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    daemon.do("web", "start")
    before = state(daemon)
    closed = [endpoint for endpoint in ENDPOINTS if endpoint.role is Role.ADMIN]
    program = ("exec", "POST", "/v1/instances/web/agent", '{"command": "exec", "path": "/bin/true"}')
    answers = walk(daemon, OPERATORS[how], [*map(request, closed), program])
    assert answers == {name: FORBIDDEN for name in (*(endpoint.id for endpoint in closed), "exec")}
    assert state(daemon) == before
    others = [endpoint for endpoint in ENDPOINTS if endpoint.role is not Role.ADMIN]
    answers = walk(daemon, OPERATORS[how], list(map(request, others)))
    assert FORBIDDEN not in answers.values()
    assert [answers[name] for name in ("getWhoami", "listInstances", "startInstance")] == [200, 200, 202]
