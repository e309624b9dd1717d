"""What the daemon decides before it begins."""

from __future__ import annotations

import gc
import grp
import json
import re
from pathlib import Path

import pytest
import structlog
import trio

from qsup import daemon, entry
from qsup.api.http import Router
from qsup.api.routes.endpoint import Api
from qsup.api.routes.table import make_router
from qsup.daemon import operate_gids, parse_arguments, set_up
from qsup.errors import HostError
from qsup.host import process
from qsup.host.notify import Notifier


def test_a_group_operates_the_vms_of_roots_daemon_alone() -> None:
    """Members operate where root runs the daemon; a user's VMs are the user's own, whatever groups there are."""
    group = grp.getgrall()[0]
    assert operate_gids(group.gr_name, uid=0) == {group.gr_gid}
    assert operate_gids(group.gr_name, uid=1000) == frozenset()
    assert operate_gids("no such group", uid=0) == frozenset()


def test_what_a_nursery_wrapped_is_told_like_any_error(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """An error that comes out of a group, and of a group in it, is one sentence with its hint and exit status 1."""
    error = HostError("the disk is gone", hint="look for it")
    assert told_by(error, tmp_path, capfd) == "qsupd: the disk is gone\n  hint: look for it\n"


def test_a_bug_is_a_line_and_a_record_in_the_log(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What nobody foresaw is one line that says where, and the traceback is in the log."""
    *logged, line = told_by(KeyError("x"), tmp_path, capfd).splitlines()
    assert re.fullmatch(r"qsupd: unforeseen KeyError: 'x' at .*\.py:\d+; VMs run on", line)
    (record,) = map(json.loads, logged)
    assert record["event"] == "ended by a bug"
    assert "Traceback" in record["exception"]


def told_by(error: Exception, root: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """What a daemon whose task of a task fails so leaves on its standard error."""

    async def fail() -> None:
        raise error

    async def run(_setup: object) -> None:
        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            inner.start_soon(fail)
            outer.start_soon(trio.sleep_forever)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(daemon, "run", run)
        patched.setattr(process, "settle", lambda: None)  # the place of all other tests, too
        try:
            assert daemon.main(["--root", str(root)]) == 1
        finally:
            structlog.reset_defaults()
    return capfd.readouterr().err


def test_no_garbage_is_looked_for_while_modules_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program switches that off before it loads the daemon."""
    monkeypatch.setattr(daemon, "main", lambda: int(gc.isenabled()))
    try:
        assert entry.main() == 0
    finally:
        gc.enable()


async def test_a_daemon_that_is_ready_looks_for_garbage_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among what came since, and not among what it has made by then."""
    setup = set_up(parse_arguments(["--root", str(tmp_path)]))
    lock = setup.layout.prepare()
    found: list[tuple[str, bool, bool]] = []
    scope = trio.CancelScope()

    def look(when: str) -> None:
        found.append((when, gc.isenabled(), gc.get_freeze_count() > 0))

    def routed(api: Api) -> Router:
        look("routed")
        return make_router(api)

    def ready(*_: object) -> None:
        look("ready")
        scope.cancel()

    monkeypatch.setattr(daemon, "make_router", routed)
    monkeypatch.setattr(Notifier, "ready", ready)
    try:
        with trio.fail_after(20), scope:
            await daemon.run(setup)
    finally:
        gc.unfreeze()
        gc.enable()
        lock.close()
    assert found == [("routed", False, False), ("ready", True, True)]
