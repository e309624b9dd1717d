"""Changes of a unit that runs: merged as a drop-in would be, and parted by key."""

from __future__ import annotations

import pytest

from qsup.unit.compose import amend, pick
from qsup.unit.model import DiskSection, Unit

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
