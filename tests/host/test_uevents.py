"""Hearing of CPUs that go on- or offline."""

from __future__ import annotations

from contextlib import aclosing
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from qsup.host.uevents import cpu_changes, is_of_cpu
from tests.waiting import wait_until

#: What is written here the kernel says as if it were so (Documentation/ABI/testing/sysfs-uevent).
SAY = Path("/sys/devices/system/cpu/cpu0/uevent")


@pytest.mark.parametrize(
    ("message", "sender", "is_one"),
    [
        (b"online@/devices/system/cpu/cpu3\0ACTION=online\0", 0, True),
        (b"offline@/devices/system/cpu/cpu12", 0, True),
        (b"offline@/devices/system/cpu/cpu12", 4711, False),
        (b"online@/devices/system/memory/memory3", 0, False),
        (b"change@/devices/system/cpu/cpu3", 0, False),
        (b"onlinecpu@/devices/system/cpu/cpu3", 0, False),
        (b"libudev\0\xfe\xed\xca\xfe", 0, False),
        (b"", 0, False),
    ],
)
def test_which_messages_are_of_cpus(message: bytes, sender: int, *, is_one: bool) -> None:
    """And said by the kernel: anybody with the right to may write to the group."""
    assert is_of_cpu(message, sender) is is_one


@pytest.mark.root
async def test_the_kernel_is_heard() -> None:
    """Each time, and of what else it says nothing."""
    heard: list[None] = []

    async def listen() -> None:
        async with aclosing(cpu_changes()) as changes:
            async for _ in changes:
                heard.append(None)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await trio.testing.wait_all_tasks_blocked()
        for number, word in enumerate(("change", "online", "change", "offline"), 1):
            await trio.to_thread.run_sync(SAY.write_text, word)
            await wait_until(partial(_has, heard, number // 2), f"the kernel is heard after {word}")
        assert len(heard) == 2
        nursery.cancel_scope.cancel()


def _has(heard: list[None], count: int) -> bool:
    return len(heard) >= count
