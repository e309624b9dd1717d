"""A real daemon whose own files are wrecked.

Decides: that one VM's wrecked file costs that VM alone, and that nothing unread is deleted or signalled.
Must not: know more of the files' content than their names and their JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.guests import Emulator
from tests.real.beside import MEBIBYTE, refusal, words
from tests.real.daemons import DEADLINE, Daemon, kill_process, rom_unit, signal_process
from tests.real.wrecking import (
    TARGET,
    found,
    is_alive,
    put_directory,
    put_fifo,
    put_link,
    record,
    remove,
    start,
    target_of,
)
from tests.waiting import poll_until

pytestmark = [pytest.mark.real, pytest.mark.fault]


def _sparse(path: Path) -> None:
    os.truncate(path, 100 * MEBIBYTE)


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _edit_state(path: Path, **changes: object) -> None:
    _edit(path, state=json.loads(path.read_text())["state"] | changes)


WRECKS: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:500]),
    "random": lambda path: path.write_bytes(os.urandom(4096)),
    "large": _sparse,
    "nested": lambda path: path.write_bytes(b"[" * 10_000 + b"]" * 10_000),
    "link": put_link,
    "fifo": put_fifo,
    "directory": put_directory,
    "missing": lambda path: path.unlink(),
    "null": lambda path: path.write_bytes(b"null"),
    "stranger": lambda path: _edit(path, name="somebody-else"),
    "newer": lambda path: _edit(path, schema=99),
    "later": lambda path: _edit_state(path, schema=99),
    "extra": lambda path: _edit(path, surprise=1),
    "pid": lambda path: _edit(path, pid=-1),
    "huge": lambda path: _edit(path, pid=1 << 70),
    "time": lambda path: _edit_state(path, since=1e300),
    "ending": lambda path: _edit_state(path, ending={"kind": "boredom"}),
    "unit": lambda path: _edit_state(path, unit={"cpu": {"vcpus": -1}}),
}


@pytest.mark.user
def test_t6_a_wrecked_record_quarantines_its_vm_alone(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """The daemon starts, each VM names its file, nothing is deleted or signalled, and repaired records are believed."""
    pids = start(daemon, emulator, rom_guest, ("good", *WRECKS))
    daemon.signal(signal.SIGKILL)
    kept = {name: record(daemon, name).read_bytes() for name in WRECKS}
    for name, wreck in WRECKS.items():
        wreck(record(daemon, name))
    for name in ("truncated", "nested"):
        (daemon.units / f"{name}.toml").unlink()
    (daemon.units / "null.toml").write_text("[broken")
    left = {name: found(record(daemon, name)) for name in WRECKS}
    memory = 64 * MEBIBYTE
    daemon.start()
    assert daemon.wait("good", "running")["pid"] == pids["good"]
    listed = {view["name"]: view for view in daemon.get("/v1/instances")["instances"]}
    assert {name: view["substate"] for name, view in listed.items() if name != "good"} == dict.fromkeys(
        WRECKS, "quarantined"
    )
    health = " ".join(daemon.get("/v1/health")["problems"])
    for name in WRECKS:
        assert str(record(daemon, name)) in listed[name]["cause"]["detail"], name
        assert str(record(daemon, name)) in health, name
        assert "a record of it cannot be read" in words(refusal(daemon, name)), name
        assert is_alive(pids[name]), name
        assert (record(daemon, name).parent / "qmp").exists(), name
    for name in ("newer", "later"):
        assert (
            f"{record(daemon, name)} was written by a newer qsupd: its schema is 99" in listed[name]["cause"]["detail"]
        )
    assert daemon.memory() < memory
    daemon.restart(signal.SIGTERM)  # which would write what it has still to write
    assert daemon.wait("good", "running")["pid"] == pids["good"]
    for name in WRECKS:
        assert daemon.wait(name, "quarantined")["pid"] is None
        assert found(record(daemon, name)) == left[name], f"{name} stays byte for byte as it was"
    assert target_of(record(daemon, "link")).read_bytes() == TARGET
    for name in WRECKS:
        remove(record(daemon, name))
        record(daemon, name).write_bytes(kept[name])
    daemon.post("/v1/reload")
    for name in WRECKS:
        assert daemon.wait(name, "running")["pid"] == pids[name]
    assert daemon.do("link", "pause")["substate"] == "paused"
    assert "driver failed" not in daemon.log()


def test_t6_what_is_no_run_directory_costs_nothing(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """A file or a link where a run directory should be quarantines that VM until it is gone."""
    pids = start(daemon, emulator, rom_guest, ("good", "file", "link"))
    daemon.do("file", "kill")
    daemon.do("link", "kill")
    daemon.signal(signal.SIGKILL)
    instances = daemon.run / "instances"
    (instances / "file").write_text("in the way")
    (instances / "link").symlink_to("/tmp")
    (instances / ".hidden").mkdir()
    (instances / "a b").mkdir()
    (instances / "empty").mkdir()
    daemon.start()
    assert daemon.wait("good", "running")["pid"] == pids["good"]
    views = {view["name"]: view["substate"] for view in daemon.get("/v1/instances")["instances"]}
    assert views == {"good": "running", "file": "quarantined", "link": "quarantined"}
    assert (instances / "file").read_text() == "in the way"
    (instances / "file").unlink()
    (instances / "link").unlink()
    daemon.post("/v1/reload")
    assert daemon.do("file", "start")["substate"] == "running"
    assert daemon.do("link", "start")["substate"] == "running"
    assert "driver failed" not in daemon.log()


def remove_cgroup(cgroup: Path) -> None:
    """Remove a cgroup as soon as whoever is in it has been reaped."""

    def removed() -> bool:
        with suppress(OSError):
            cgroup.rmdir()
        return not cgroup.exists()

    poll_until(removed, f"{cgroup} is empty", seconds=DEADLINE)


def stranger(daemon: Daemon, name: str) -> subprocess.Popen[bytes]:
    """A process that is no VM, but of a VM's user, and of "held" it holds the output, which keeps its run directory."""
    uid = json.loads(record(daemon, name).read_text())["uid"]
    whose = {"user": uid, "group": uid, "extra_groups": []} if os.geteuid() == 0 else {}
    with (record(daemon, name).parent / "output").open("r+b", buffering=0) as output:
        stdout = output if name == "held" else None
        return subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=stdout, **whose)


def test_t4_a_record_that_names_a_living_stranger_is_not_believed(
    daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """Another start time, or another boot, and the VM's own user: it is down, and the stranger never signalled."""
    pids = start(daemon, emulator, rom_guest, ("time", "boot", "held", "good"))
    strangers = {name: stranger(daemon, name) for name in ("time", "boot", "held")}
    try:
        daemon.signal(signal.SIGKILL)
        for name, process in strangers.items():
            kill_process(pids[name])
            _edit(record(daemon, name), pid=process.pid)
        for name in ("boot", "held"):
            began = int(Path(f"/proc/{strangers[name].pid}/stat").read_text().rpartition(") ")[2].split()[19])
            _edit(record(daemon, name), start_time=began, boot_id="of another boot")
            for cgroup in json.loads(record(daemon, name).read_text())["cgroups"]:
                remove_cgroup(Path(cgroup))  # which no boot leaves to the next
        daemon.start()
        view = daemon.wait("time", "crashed")
        assert (view["pid"], view["cause"]["text"]) == (None, "exit-unknown")
        assert daemon.wait("boot", "dead")["pid"] is None
        view = daemon.wait("held", "dead")
        assert (view["pid"], view["cause"]["kind"]) == (None, "host-reboot")
        assert daemon.view("good")["pid"] == pids["good"]
        assert daemon.do("time", "kill")["substate"] == "crashed"
        assert daemon.do("held", "kill")["substate"] == "dead"
        assert {name: process.poll() for name, process in strangers.items()} == dict.fromkeys(strangers)
        assert daemon.do("time", "start")["substate"] == "running"
        assert daemon.remains() == ["good", "time"]
    finally:
        for process in strangers.values():
            process.kill()
            process.wait()


def test_a_wrecked_identity_costs_its_vm_alone(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """A VM whose identity cannot be read gets no other one: its start fails and names the file."""
    identity = daemon.state / "instances" / "web.json"
    pids = start(daemon, emulator, rom_guest, ("good", "web"))
    daemon.do("web", "kill")
    kept = identity.read_bytes()
    for wreck in (b"", b"{", b"\xff", b"[" * 10_000):
        identity.write_bytes(wreck)
        assert str(identity) in words(refusal(daemon, "web"))
        assert identity.read_bytes() == wreck
    identity.write_bytes(kept)
    assert daemon.do("web", "start")["substate"] == "running"
    assert daemon.view("good")["pid"] == pids["good"]


@pytest.mark.user
def test_a_wrecked_file_of_a_vm_that_is_down_quarantines_it_alone(
    daemon: Daemon, emulator: Emulator, rom_guest: Path
) -> None:
    """Its identity, or the record of how it ended: named, left as it is, and believed again once it is repaired."""
    wrecks: dict[str, Callable[[Path], object]] = {
        "damaged": lambda path: path.write_bytes(b"{"),
        "newer": lambda path: _edit(path, schema=2),
        "linked": put_link,
    }
    kinds = {"id": "state/instances", "end": "run/ended"}
    files = {
        f"{kind}-{how}": daemon.root / where / f"{kind}-{how}.json" for kind, where in kinds.items() for how in wrecks
    }
    pids = start(daemon, emulator, rom_guest, ("good", *files))
    for name in files:
        kill_process(pids[name])
        daemon.wait(name, "crashed")
    daemon.signal(signal.SIGKILL)
    kept = {name: path.read_bytes() for name, path in files.items()}
    for name, path in files.items():
        wrecks[name.partition("-")[2]](path)
    left = {name: path.read_bytes() for name, path in files.items()}
    daemon.start()
    assert daemon.wait("good", "running")["pid"] == pids["good"]
    health = " ".join(daemon.get("/v1/health")["problems"])
    for name, path in files.items():
        detail = daemon.wait(name, "quarantined")["cause"]["detail"]
        assert str(path) in detail
        assert str(path) in health
        assert ("was written by a newer qsupd" in detail) is name.endswith("newer")
        assert "a record of it cannot be read" in words(refusal(daemon, name))
        assert path.read_bytes() == left[name]
    daemon.post("/v1/reload")
    for name, path in files.items():
        daemon.wait(name, "quarantined")
        remove(path)
        path.write_bytes(kept[name])
    daemon.post("/v1/reload")
    for name in files:
        assert daemon.wait(name, "crashed")["cause"]["text"] == "signal KILL"
        assert daemon.do(name, "start")["substate"] == "running"
    assert "driver failed" not in daemon.log()


JOURNALS = {
    "empty": b"",
    "torn": b'{"journal": 1}\n{"id": "1", "kind"',
    "random": os.urandom(4096),
    "nested": b'{"journal": 1}\n' + b"[" * 100_000 + b"\n",
    "newer": b'{"journal": 2}\n{"schema": 1, "what": "ever"}\n',
    "later": b'{"journal": 1}\n{"schema": 2, "id": "1", "what": "ever"}\n{"schema": 9, "id": "2", "target": {}}\n',
    "foreign": b'{"journal": 1}\n{"id": "1"}\n{"id": 7, "kind": [], "target": null}\n',
}


def test_a_wrecked_journal_of_operations_stops_nobody(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """The daemon starts with what can be read, keeps the rest aside, and goes on writing."""
    pids = start(daemon, emulator, rom_guest, ("web",))
    journal = daemon.state / "operations.jsonl"
    for name, wreck in JOURNALS.items():
        daemon.signal(signal.SIGKILL)
        journal.write_bytes(wreck)
        daemon.start()
        assert daemon.wait("web", "running")["pid"] == pids["web"], name
        told = " ".join(daemon.get("/v1/health")["problems"])
        assert ("operations.jsonl" in told) is (name not in ("empty", "torn")), name
        if name == "later":
            assert f"{journal}: left out, and kept as they are: 1, 2: written by a newer qsupd" in told
        daemon.do("web", "pause")
        daemon.do("web", "resume")
        assert kinds(daemon) == ["resume", "pause"], name
        if name in ("later", "foreign"):
            before, after = (list(map(json.loads, text.splitlines())) for text in (wreck, journal.read_bytes()))
            assert after[: len(before)] == before, "and they are kept"
    daemon.signal(signal.SIGKILL)
    put_directory(journal)  # beside those that are kept already
    daemon.start()
    assert "operations.jsonl is a directory" in (told := " ".join(daemon.get("/v1/health")["problems"]))
    assert Path(told.rpartition("it is kept as ")[2]).is_dir()
    assert told in daemon.log()
    daemon.do("web", "pause")
    daemon.do("web", "resume")
    daemon.restart()
    assert kinds(daemon) == ["resume", "pause"]


def kinds(daemon: Daemon) -> list[str]:
    """What was done, newest first."""
    return [operation["kind"] for operation in daemon.get("/v1/operations")["operations"]]


def test_a_qemu_without_a_record_is_named_and_has_no_twin(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> None:
    """Somebody emptied the run directory: its VM is not started a second time, and nobody signals it."""
    for name in ("web", "db"):
        daemon.unit(name, rom_unit(emulator, rom_guest))
    pid = daemon.do("web", "start")["pid"]
    daemon.signal(signal.SIGKILL)
    shutil.rmtree(daemon.run / "instances")
    daemon.start()
    words = f"process {pid} is this VM"
    poll_until(lambda: words in str(daemon.get("/v1/health")["problems"]), "it is named", seconds=DEADLINE)
    assert words in str(daemon.view("web")["warnings"])
    operation = daemon.power("web", "start")
    assert (operation["state"], words in operation["error"]["detail"]) == ("failed", True)
    assert f"kill {pid}" in operation["error"]["hint"]
    daemon.do("db", "start")
    assert Path(f"/proc/{pid}/exe").exists()
    signal_process(pid, signal.SIGTERM)
    poll_until(lambda: daemon.get("/v1/health")["problems"] == [], "it has gone", seconds=DEADLINE)
    assert daemon.do("web", "start")["substate"] == "running"
