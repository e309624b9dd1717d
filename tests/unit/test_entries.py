"""Entries of arrays of tables, by their names."""

from __future__ import annotations

from typing import Any

import pytest

from qsup.errors import NoSuchDevice
from qsup.unit.entries import check_known
from qsup.unit.model import Unit
from qsup.unit.sections.devices import NicSection
from qsup.unit.sections.disks import DiskSection, IothreadSection

UNIT = Unit(
    disks=(DiskSection(id="root", path="a.img"), DiskSection(id="data", path="b.img")),
    nics=(NicSection(id="lan"),),
    iothreads=(IothreadSection(id="fast"),),
)


@pytest.mark.parametrize(
    ("changes", "words", "hint"),
    [
        (
            {"disk": [{"id": "dta", "cache": "none"}]},
            "it has no disk 'dta'; did you mean 'data'?",
            "it has root and data; a new one needs its path or type",
        ),
        ({"nic": [{"id": "other", "link": "down"}]}, "it has no nic 'other'", "it has lan; a new one needs its type"),
        (
            {"device": [{"id": "x", "action": "none"}]},
            "it has no device 'x'",
            "it has no device at all; a new one needs its type",
        ),
        (
            {"iothread": [{"id": "fst", "pin": "3"}]},
            "it has no iothread 'fst'; did you mean 'fast'?",
            "it has fast; a new one needs present = true",
        ),
    ],
)
def test_what_is_changed_must_be_there(changes: dict[str, Any], words: str, hint: str) -> None:
    """A name that may be a mistake is told with those that there are."""
    with pytest.raises(NoSuchDevice) as no:
        check_known(changes, UNIT, "it")
    assert (no.value.message, no.value.hint) == (words, hint)


@pytest.mark.parametrize(
    "changes",
    [
        {"disk": [{"id": "data", "cache": "none"}], "cpu": {"vcpus": 2}},
        {"disk": [{"id": "new", "path": "c.img"}, {"id": "cd", "type": "cdrom"}]},
        {"disk": [{"id": "gone", "present": False}]},
        {"nic": [{"id": "bare"}]},
        {"iothread": [{"id": "new", "present": True}, {"id": "fast", "pin": "3"}]},
        {"disk": [{"id": "known", "cache": "none"}]},
        {"disk": ["what the reader of the change refuses", {"cache": "none"}]},
        {"disk": 5},
    ],
    ids=str,
)
def test_what_is_new_is_said_so(changes: dict[str, Any]) -> None:
    """By what it is, or by whoever asks; that it is not there can be said of anything."""
    check_known(changes, UNIT, "it", ("disk.known",))
