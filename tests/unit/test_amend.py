"""Changes of a unit that runs: merged as a drop-in would be, and parted by key."""

from __future__ import annotations

from typing import Any

import pytest

from qsup.unit.compose import amend, pick
from qsup.unit.model import Unit
from qsup.unit.sections.disks import DiskSection
from qsup.unit.sections.machine import CpuSection

CHANGES = {
    "cpu": {"vcpus": 2},
    "disk": [{"id": "root", "cache": "none"}, {"id": "data", "path": "a%n.img"}],
}


def test_changes_merge_as_a_dropin() -> None:
    """Keys replace keys, entries merge by id, and specifiers mean nothing."""
    unit = Unit(disks=(DiskSection(id="root", path="100%.img", serial="one"),))
    found = amend(unit, CHANGES, "web").unit
    assert found is not None
    assert found.cpu.vcpus == 2
    root, data = found.disks
    assert (root.path, root.serial, root.cache, data.path) == ("100%.img", "one", "none", "a%n.img")


def test_wrong_changes_are_named_by_key() -> None:
    """All of them, as errors of the request."""
    changes = {"cpu": {"vcpus": "two"}, "disk": [{"id": "data", "path": "a", "bus": "isa"}], "zzz": {}}
    found = amend(Unit(), changes, "web")
    assert found.unit is None
    assert {(each.file, each.key) for each in found.diagnostics} == {
        ("the request", "cpu.vcpus"),
        ("the request", "disk.data.bus"),
        ("the request", "zzz"),
    }


def test_what_the_vm_itself_says_is_named_as_its() -> None:
    """Where a change contradicts it."""
    (error,) = amend(Unit(cpu=CpuSection(max_vcpus=2)), {"cpu": {"vcpus": 4}}, "web").diagnostics
    assert str(error) == "VM web: cpu.max-vcpus: max-vcpus (2) is less than vcpus (4)"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"memory": {"size": None}}, "expected a string, not null"),
        ({"disk": [{"id": "a", "path": "a"}, {"id": "a", "path": "b"}]}, "the id 'a' is taken: another entry has it"),
        (
            {"disk": [{"id": f"d{n}", "path": "x", "bus": "scsi"} for n in range(99)]},
            "is the path of disk 'd0' already",
        ),
    ],
    ids=["null", "twice", "many"],
)
def test_the_first_error_tells_what_is_wrong(changes: dict[str, Any], words: str) -> None:
    """It is the one that people read: in words for JSON, without a line where there is none."""
    found = amend(Unit(), changes, "web")
    assert words in found.diagnostics[0].message


@pytest.mark.parametrize(
    ("keys", "picked"),
    [
        (["cpu.vcpus"], {"cpu": {"vcpus": 2}}),
        (["disk.data"], {"disk": [{"id": "data", "path": "a%n.img"}]}),
        (["disk.root.cache"], {"disk": [{"id": "root", "cache": "none"}]}),
        (["disk.root"], {"disk": [{"id": "root", "cache": "none"}]}),
        (["cpu", "disk.data.path"], {"cpu": {"vcpus": 2}, "disk": [{"id": "data", "path": "a%n.img"}]}),
        (["disk.roo", "cpu.vcpu"], {}),
        ([], {}),
    ],
    ids=str,
)
def test_changes_are_parted_by_key(keys: list[str], picked: object) -> None:
    """A key stands for itself and all below it, an entry for all that is said of it."""
    assert pick(CHANGES, keys) == picked
