"""Hearing of CPUs that go on- or offline."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from qsup.host.uevents import heard, is_of_cpu


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


class Said:
    """A socket on which the kernel has said some things."""

    def __init__(self, *messages: bytes | int) -> None:
        self.left = list(messages)

    def recvfrom(self, most: int) -> tuple[bytes, tuple[int, int]]:
        """The next, or its error."""
        if not self.left:
            raise BlockingIOError(errno.EAGAIN, "nothing")
        message = self.left.pop(0)
        if isinstance(message, int):
            raise OSError(message, "an error")
        return message[:most], (0, 1)


def test_all_that_was_said_is_taken_at_once() -> None:
    """A host of many CPUs that leaves half of them says so of each: that is one change, and what is lost may be one."""
    listening: Any = Said(*[b"offline@/devices/system/cpu/cpu%d" % number for number in range(100)], b"change@/x")
    assert heard(listening) and not listening.left
    assert not heard(listening)
    listening = Said(b"online@/devices/system/memory/memory3", errno.ENOBUFS)
    assert heard(listening)
    listening = Said(errno.EBADF)
    with pytest.raises(OSError, match="an error"):
        heard(listening)
