"""The body of a VM's driver, as far as it needs no QEMU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import trio
import trio.testing

from qsup.errors import QsupError
from qsup.host.rundir import Layout
from qsup.instance.body import Body
from qsup.instance.inbox import Inbox
from qsup.instance.messages import Finished, Message


async def test_what_was_left_unfinished_does_not_wait_for_ever(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """A QEMU that does not say within half a minute what became of a command ends its operation as not known."""
    inbox: Inbox[Message] = Inbox()
    nothing = cast(Any, None)
    error = QsupError("QEMU has not answered")
    async with trio.open_nursery() as nursery:
        services = cast(Any, SimpleNamespace(layout=Layout.for_root(tmp_path), operations=nothing, load=None))
        body = Body("web", services, nursery, nothing, inbox, nothing)
        body.limit_left("operation", error)
        with trio.fail_after(31):
            assert await inbox.receive() == Finished(operation="operation", error=error)
    assert trio.current_time() >= 29
