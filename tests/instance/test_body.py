"""The body of a VM's driver, as far as it needs no QEMU."""

from __future__ import annotations

from typing import Any, cast

import trio
import trio.testing

from qsup.errors import QsupError
from qsup.instance.body import Body
from qsup.instance.inbox import Inbox
from qsup.instance.messages import Finished, Message


async def test_what_was_left_unfinished_does_not_wait_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    """A QEMU that does not say within half a minute what became of a command ends its operation as not known."""
    inbox: Inbox[Message] = Inbox()
    nothing = cast(Any, None)
    error = QsupError("QEMU has not answered")
    async with trio.open_nursery() as nursery:
        body = Body("web", nothing, nursery, nothing, inbox)
        body.limit_left("operation", error)
        with trio.fail_after(31):
            assert await inbox.receive() == Finished(operation="operation", error=error)
    assert trio.current_time() >= 29
