"""Tests of `qsup.host.resources`: what the daemon has, and when it counts as short of it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from structlog.testing import capture_logs

from qsup.host import descriptors
from qsup.host.memory import OwnMemory
from qsup.host.resources import DESCRIPTORS, MEMORY, OwnResources
from tests.host.test_descriptors import free_descriptors

MEBIBYTE = 1 << 20


@pytest.fixture
def memory() -> Iterator[OwnMemory]:
    """Our own, without a ceiling."""
    with closing(OwnMemory(0)) as found:
        yield found


def test_descriptors_are_counted_by_whatever_the_kernel_has(memory: OwnMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it does not say their number, and when there is none left to count them with."""
    resources = OwnResources(memory)
    opened = len(os.listdir("/proc/self/fd")) - 1
    assert resources.descriptors() == (opened, descriptors.limit())

    def stat(path: str) -> os.stat_result:
        return os.stat_result([0] * 10)

    with monkeypatch.context() as older:
        older.setattr(os, "stat", stat)
        assert descriptors.used() == opened
        with free_descriptors(0):
            assert descriptors.used() == descriptors.limit()


def test_a_shortage_is_a_problem_for_as_long_as_there_is_one(memory: OwnMemory) -> None:
    """Of descriptors when too few are left, of memory when the last look found too much."""
    resources = OwnResources(memory)
    assert resources.problems() == []
    with free_descriptors(2):
        (words,) = resources.problems()
        assert words.startswith("short of file descriptors: ")
        assert f"of {descriptors.limit()} are in use (RLIMIT_NOFILE); stop VMs" in words
    used, ceiling = resources.memory()
    assert ceiling is None
    assert abs(used - memory.resident()) < 8 * MEBIBYTE
    memory.ceiling = MEBIBYTE
    assert resources.problems() == []
    assert resources.memory_short()
    (words,) = resources.problems()
    assert "of 1 MiB are in use; end API clients" in words
    assert "memory-ceiling" in words
    assert resources.memory()[1] == MEBIBYTE
    memory.ceiling = memory.resident() + 64 * MEBIBYTE
    assert not resources.memory_short()
    assert resources.problems() == []


@pytest.mark.parametrize("what", [DESCRIPTORS, MEMORY])
def test_who_had_to_go_is_a_problem_for_a_minute(memory: OwnMemory, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Counted from the first to the last, and logged once a second, however many come."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    memory.ceiling = 1 << 40
    resources = OwnResources(memory)
    with capture_logs() as logged:
        for _ in range(100):
            resources.on_shed(what, 1)
            now += 0.1
    assert 9 <= len(logged) <= 11
    assert {line["short_of"] for line in logged} == {what}
    assert sum(line["clients"] for line in logged) > 80
    now += 50
    (words,) = resources.problems()
    assert words.startswith(f"short of {what}: ")
    assert ", 100 API clients turned out for that; " in words
    now += 10
    assert resources.problems() == []
    resources.on_shed(what, 1)
    assert ", 1 API client turned out for that; " in resources.problems()[0]
