"""Hearing of CPUs that go on- or offline."""

from __future__ import annotations

import pytest

from qsup.host.uevents import is_of_cpu


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
