"""Operations that a dead daemon left, in the company of what else may have happened: repeated, overtaken, without a VM.

Decides: what their ids answer.
Must not: repeat the deaths between single steps (`tests.real.test_operations`).
"""

from __future__ import annotations

import json
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from qsup.errors import KeyReusedError
from qsup.host.proc import uptime
from tests.guests import Emulator
from tests.real.daemons import DEADLINE, Daemon, elapsed, kill_process, rom_unit, signal_process
from tests.waiting import poll_until

pytestmark = [pytest.mark.real, pytest.mark.fault]


def final(daemon: Daemon, operation: dict[str, Any]) -> dict[str, Any]:
    """An operation once it has ended."""
    ended: dict[str, Any] = daemon.get(f"/v1/operations/{operation['id']}/wait?timeout={DEADLINE}")
    assert ended["state"] != "running", ended
    return ended


def test_an_idempotency_key_outlives_the_daemon(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """The same request is the same operation, ended or under way; the key with any other request is refused."""
    for name in ("web", "db"):
        daemon.unit(name, rom_unit(emulator, rom_guest))
    with daemon.client() as client:
        started = client.post("/v1/instances/web/start?wait=30", key="start web")
        assert started["state"] == "succeeded"
        client.post("/v1/instances/db/start?wait=30")
    pid = daemon.view("web")["pid"]
    daemon.type("db", "D")
    with daemon.client() as client:
        stopping = client.post("/v1/instances/db/stop", {"timeout": 60.0}, key="stop db")
        joined = client.post("/v1/instances/db/stop", key="stop db, too")
    assert joined["id"] == stopping["id"]
    daemon.wait("db", "stopping-guest")
    daemon.restart()
    with daemon.client() as client:
        assert client.post("/v1/instances/db/stop", key="stop db, too")["id"] == stopping["id"]
        assert client.post("/v1/instances/web/start?wait=30", key="start web") == started
        again = client.post("/v1/instances/db/stop", {"timeout": 60.0}, key="stop db")
        assert (again["id"], again["state"]) == (stopping["id"], "running")
        for path, body in (
            ("web/restart", None),
            ("db/start", None),
            ("web/start", {"timeout": 5.0}),
        ):
            with pytest.raises(KeyReusedError, match="was used for start of web") as refused:
                client.post(f"/v1/instances/{path}", body, key="start web")
            assert (refused.value.status, refused.value.details["operation"]) == (422, started["id"])
        with pytest.raises(KeyReusedError, match="was used for stop of db with a timeout of 1min"):
            client.post("/v1/instances/db/stop", key="stop db")
    assert daemon.view("web")["pid"] == pid
    daemon.do("db", "kill")


def test_a_stop_keeps_its_timeout(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """What its caller gave the guest does not become the unit's five minutes for a daemon's death."""
    daemon.unit("web", rom_unit(emulator, rom_guest, service='stop-timeout = "300s"'))
    daemon.do("web", "start")
    daemon.type("web", "D")
    operation = daemon.post("/v1/instances/web/stop", {"timeout": 2.0})
    daemon.wait("web", "stopping-guest")
    began = time.monotonic()
    daemon.restart()
    assert final(daemon, operation)["state"] == "succeeded"
    assert elapsed(began) < DEADLINE
    assert daemon.view("web")["substate"] == "dead"


@pytest.mark.parametrize("verb", ["pause", "reset"])
def test_a_command_waits_for_a_qemu_that_hangs(daemon: Daemon, emulator: Emulator, rom_guest: Path, verb: str) -> None:
    """It was sent, and nobody knows what of it has been read: it ends once QEMU says how it is, and truly."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    pid = daemon.do("web", "start")["pid"]
    signal_process(pid, signal.SIGSTOP)
    operation = daemon.post(f"/v1/instances/web/{verb}")
    poll_until(lambda: '"sent":true' in journal(daemon), "it is about to be sent", seconds=DEADLINE)
    daemon.restart()
    view = daemon.view("web")
    assert (view["substate"], view["operation"]) == ("unreachable", operation["id"])
    assert daemon.get(f"/v1/operations/{operation['id']}")["state"] == "running"
    signal_process(pid, signal.SIGCONT)
    ended = final(daemon, operation)
    if verb == "pause":
        assert (ended["state"], daemon.view("web")["substate"]) == ("succeeded", "paused")
    else:
        assert "whether it was carried out is not known" in ended["error"]["detail"]
        assert daemon.view("web")["substate"] == "running"
    assert daemon.view("web")["pid"] == pid


def journal(daemon: Daemon) -> str:
    """What is written of operations."""
    return (daemon.root / "state" / "operations.jsonl").read_text()


def test_what_was_overtaken_stays_so(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """A pause that a stop had overtaken before both their daemon died: each id says what became of it."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    daemon.do("web", "start")
    daemon.type("web", "D")
    signal_process(daemon.view("web")["pid"], signal.SIGSTOP)
    paused = daemon.post("/v1/instances/web/pause")
    stopped = daemon.post("/v1/instances/web/stop", {"timeout": 0.5})
    daemon.restart()
    assert final(daemon, paused)["error"]["detail"] == "overtaken by stop"
    assert final(daemon, stopped)["state"] == "succeeded"
    assert daemon.view("web")["substate"] == "dead"


def leave(daemon: Daemon, **changes: object) -> dict[str, Any]:
    """An operation under way in a dead daemon's journal: like the last one there, with changes."""
    last = json.loads(journal(daemon).splitlines()[-1])
    left = last | {"id": uuid.uuid4().hex, "state": "running", "result": None, "uptime": uptime()} | changes
    with (daemon.root / "state" / "operations.jsonl").open("a") as file:
        file.write(json.dumps(left) + "\n")
    return dict(left)


def test_what_was_asked_of_a_vm_that_is_no_more(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Its unit and its QEMU went while no daemon ran: it is stopped; all else has failed, and before a reboot, too."""
    daemon.unit("web", rom_unit(emulator, rom_guest))
    pid = daemon.do("web", "start")["pid"]
    poll_until(lambda: '"succeeded"' in journal(daemon), "there is an operation to copy", seconds=DEADLINE)
    daemon.signal(signal.SIGKILL)
    # the clock may have been wrong when they were asked for
    stop, kill = (leave(daemon, kind=kind, target=f"gone-{kind}", created=1.0) for kind in ("stop", "kill"))
    pause, start = (leave(daemon, kind=kind, target=f"gone-{kind}") for kind in ("pause", "start"))
    unheard = leave(daemon, kind="levitate", target="web")
    before = leave(daemon, kind="restart", target="web", boot_id="of another boot")
    daemon.start()
    assert final(daemon, stop)["state"] == final(daemon, kill)["state"] == "succeeded"
    assert final(daemon, pause)["error"]["code"] == final(daemon, start)["error"]["code"] == "no-such-instance"
    assert final(daemon, unheard)["state"] == final(daemon, before)["state"] == "failed"
    assert [view["name"] for view in daemon.get("/v1/instances")["instances"]] == ["web"]
    assert daemon.wait("web", "running")["pid"] == pid
    daemon.signal(
        signal.SIGTERM
    )  # which first writes down how the others have ended, and may replace the file for that
    late = leave(daemon, kind="kill", target="web", boot_id="of another boot")
    daemon.start()
    assert "the host was restarted during kill" in final(daemon, late)["error"]["detail"]
    assert daemon.wait("web", "running")["pid"] == pid


def test_a_command_ends_with_its_qemu(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Also where a policy starts the VM again: the pause of the former life does not hold the new one."""
    daemon.unit("web", rom_unit(emulator, rom_guest, service='restart = "always"\nrestart-delay = "20ms"'))
    pid = daemon.do("web", "start")["pid"]
    signal_process(pid, signal.SIGSTOP)
    operation = daemon.post("/v1/instances/web/pause")
    poll_until(lambda: '"sent":true' in journal(daemon), "the pause has been sent", seconds=DEADLINE)
    kill_process(pid)
    ended = final(daemon, operation)
    assert (ended["state"], "was overtaken" in ended["error"]["detail"]) == ("cancelled", True)
    poll_until(lambda: daemon.view("web")["pid"] not in (None, pid), "it is started again", seconds=DEADLINE)
    assert daemon.do("web", "pause")["substate"] == "paused"
