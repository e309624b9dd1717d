"""Requests of one QMP command each: what counts as done."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from qsup.errors import QmpCommandError
from qsup.instance.control import carry_out
from qsup.instance.state import Event, Request, State
from tests.instance.test_position import UP, after
from tests.instance.test_watch import greeting
from tests.qmp.support import by_hand


async def test_a_guest_that_ran_for_a_moment_was_resumed(nursery: trio.Nursery) -> None:
    """Its disk may fail again, and stop it, before QEMU's answer to the command has come."""
    position = after(*UP, Event.READY, Event.GUEST_IO_ERROR)
    done = trio.Event()

    async def resume() -> None:
        assert await carry_out(Request.RESUME, monitor, State.IO_ERROR, position.wait) == {}
        done.set()

    async with by_hand(nursery) as (monitor, peer):
        await peer.say(greeting())
        nursery.start_soon(resume)
        with trio.fail_after(5):
            request = await peer.command()
        await trio.testing.wait_all_tasks_blocked()
        for event in (Event.GUEST_RESUMED, Event.GUEST_IO_ERROR):
            position.move(event, None)
        await peer.say(json.dumps({"return": {}, "id": request["id"]}).encode())
        with trio.fail_after(5):
            await done.wait()


async def test_what_qemu_refuses_is_its_own_error(nursery: trio.Nursery) -> None:
    """And no group of errors."""
    position = after(*UP, Event.READY, Event.GUEST_IO_ERROR)
    async with by_hand(nursery) as (monitor, peer):
        await peer.say(greeting())
        nursery.start_soon(partial(refuse, peer))
        with trio.fail_after(5), pytest.raises(QmpCommandError, match="no"):
            await carry_out(Request.RESUME, monitor, State.IO_ERROR, position.wait)


async def refuse(peer: Any) -> None:
    """Answer the next command with an error."""
    request = await peer.command()
    await peer.say(json.dumps({"error": {"class": "GenericError", "desc": "no"}, "id": request["id"]}).encode())
