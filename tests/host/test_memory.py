"""Tests of `qsup.host.memory`: the daemon's own memory against its ceiling."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing

import pytest

from qsup.host import proc
from qsup.host.memory import OwnMemory
from tests.host.test_descriptors import free_descriptors

MEBIBYTE = 1 << 20


@pytest.fixture
def memory() -> Iterator[OwnMemory]:
    """Our own, without a ceiling."""
    with closing(OwnMemory(0)) as found:
        yield found


def test_what_is_resident_is_what_proc_says(memory: OwnMemory) -> None:
    """It grows with what is used, and can be read when no descriptor is left."""
    before = memory.resident()
    held = bytearray(b"x" * (32 * MEBIBYTE))
    with free_descriptors(0):
        after = memory.resident()
    assert len(held) <= after - before + MEBIBYTE
    stat = proc.read_stat(os.getpid())
    assert stat is not None
    assert abs(stat.rss - memory.resident()) < 8 * MEBIBYTE


def test_it_is_short_beyond_the_ceiling(memory: OwnMemory) -> None:
    """Without a ceiling never; what is free, by whichever allocator, does not count."""
    assert not memory.is_short()
    memory.ceiling = MEBIBYTE
    assert memory.is_short()
    memory.ceiling = memory.resident() + 16 * MEBIBYTE
    assert not memory.is_short()
    held = [bytes(1000) for _ in range(60_000)]
    assert memory.is_short()
    del held
    assert not memory.is_short()
