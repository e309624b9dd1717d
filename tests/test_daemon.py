"""What the daemon decides before it begins."""

from __future__ import annotations

import grp
import json
import re
from pathlib import Path

import pytest
import structlog
import trio

from qsup import daemon
from qsup.daemon import operate_gids
from qsup.errors import HostError
from qsup.host import process


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
