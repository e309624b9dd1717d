"""What differs between two versions of a unit."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from qsup.unit.compare import compare, needs_restart
from qsup.unit.model import Unit
from qsup.unit.parse import unit_from_values
from qsup.unit.write import values_of
from tests.unit.strategies import tables

ONE = {"id": "one", "path": "one.img"}
TWO = {"id": "two", "path": "two.img"}
LAN = {"id": "lan"}
units = tables(Unit).map(unit_from_values)
BASE = {"format": "raw", "path": "base.img"}


def changes(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any, str]]:
    """What is told of two units, by key."""
    found = compare(unit_from_values(old), unit_from_values(new))
    return {change.key: (change.old, change.new, change.needs.value) for change in found}


def test_keys_are_compared_one_by_one() -> None:
    """Each with both values as a file spells them, and what makes the new one count."""
    old = {"memory": {"size": "512M"}, "cpu": {"vcpus": 1, "topology": {"cores": 1}}}
    new = {
        "unit": {"description": "a web server"},
        "service": {"stop-timeout": "2min", "ready": {"port": 22}},
        "cpu": {"vcpus": 2, "topology": {"cores": 2}},
        "memory": {"size": "1G"},
    }
    assert changes(old, new) == {
        "unit.description": ("", "a web server", "at once"),
        "service.stop-timeout": ("1min 30s", "2min", "at once"),
        "service.ready": ("running", {"port": 22}, "at once"),
        "cpu.vcpus": (1, 2, "live"),
        "cpu.max-vcpus": (1, 2, "restart"),
        "cpu.topology.cores": (1, 2, "restart"),
        "memory.size": ("512M", "1G", "live"),
    }


def test_entries_are_the_same_by_their_id() -> None:
    """One that came, one that went and one that changed are told apart, wherever they stand."""
    found = changes({"disk": [ONE, TWO], "nic": [LAN]}, {"disk": [{**TWO, "read-only": True}, {"id": "three"}]})
    assert {key: needs for key, (*_, needs) in found.items()} == dict.fromkeys(
        ("disk.one", "disk.two.read-only", "disk.three", "nic.lan"), "restart"
    )
    assert found["disk.two.read-only"][:2] == (False, True)
    assert (found["disk.one"][0]["path"], found["disk.one"][1]) == ("one.img", None)
    assert (found["disk.three"][0], found["disk.three"][1]["id"]) == (None, "three")


def test_another_order_is_another_hardware() -> None:
    """Devices are numbered in the order of their entries."""
    assert changes({"disk": [ONE, TWO]}, {"disk": [TWO, ONE]}) == {
        "disk": (["one", "two"], ["two", "one"], "restart"),
    }


def test_iothreads_have_no_order() -> None:
    """The guest does not see them; what one may run on changes at once, that one comes or goes does not."""
    one, two = {"id": "one"}, {"id": "two", "pin": "3"}
    assert changes({"iothread": [one, two]}, {"iothread": [two, one]}) == {}
    found = changes({"iothread": [one, two]}, {"iothread": [{"id": "three"}, {**two, "pin": ""}]})
    assert {key: needs for key, (*_, needs) in found.items()} == {
        "iothread.one": "restart",
        "iothread.two.pin": "live",
        "iothread.three": "restart",
    }


def test_backing_files_are_compared_as_a_whole() -> None:
    """They have no ids."""
    old = {"disk": [{**ONE, "format": "qcow2", "backing": [BASE]}]}
    new = {"disk": [{**ONE, "format": "qcow2", "backing": [BASE, {**BASE, "path": "deeper.img"}]}]}
    assert changes(old, new) == {
        "disk.one.backing": ([BASE], [BASE, {**BASE, "path": "deeper.img"}], "restart"),
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"disk": [ONE]}, {"disk": [{**ONE, "bus": "virtio"}]}),
        ({"disk": [{"id": "cd", "type": "cdrom"}]}, {"disk": [{"id": "cd", "type": "cdrom", "bus": "sata"}]}),
        ({"cpu": {"vcpus": 2}}, {"cpu": {"vcpus": 2, "max-vcpus": 2}}),
        ({}, {"display": {"video": "none"}}),
    ],
)
def test_what_another_key_decides_is_filled_in(old: dict[str, Any], new: dict[str, Any]) -> None:
    """To say what would be so anyway changes nothing."""
    assert changes(old, new) == {}


@given(units, units)
def test_nothing_differs_but_where_something_does(one: Unit, other: Unit) -> None:
    """A unit is the same as itself read back; of two that are not told to differ every key is the same."""
    assert compare(one, unit_from_values(values_of(one))) == ()
    if one.memory.min == other.memory.min:  # who does not say it is content with the VM's, and not the other way round
        assert len(compare(one, other)) == len(compare(other, one))


def test_a_guest_with_a_balloon_differs_in_what_it_is_left_and_what_its_machine_has() -> None:
    """However that is said: by `max`, or by the size that it began with."""
    began = unit_from_values({"memory": {"size": "1G"}})
    full = unit_from_values({"memory": {"size": "1G", "max": "1G", "resize": "balloon"}})
    left = unit_from_values({"memory": {"size": "512M", "max": "1G", "resize": "balloon"}})
    assert compare(began, full) == compare(full, began) == ()
    assert [change.key for change in compare(left, began)] == ["memory.size"]
    smaller = unit_from_values({"memory": {"size": "512M"}})
    assert [change.key for change in compare(began, smaller)] == ["memory.size"]
    assert [change.key for change in compare(left, smaller)] == ["memory.max"]
    none = unit_from_values({"memory": {"size": "1G", "balloon": False}})
    assert [change.key for change in compare(began, none)] == ["memory.balloon"]


def test_a_unit_need_not_say_what_virtio_mem_begins_at() -> None:
    """One that does differs where it is something else."""

    def vm(size: str, least: str = "0B") -> Unit:
        return unit_from_values({"memory": {"size": size, "max": "4G", "min": least}})

    grown = vm("2G", "1G")
    assert compare(grown, vm("2G")) == compare(vm("1G"), vm("1G", "1G")) == compare(grown, grown) == ()
    assert [change.key for change in compare(grown, vm("1G"))] == ["memory.size"]
    (change,) = compare(grown, vm("2G", "512M"))
    assert (change.key, change.old, change.new) == ("memory.min", "1G", "512M")
    assert needs_restart([change])


def test_a_restart_is_needed_where_a_key_needs_one() -> None:
    """What the daemon alone acts on needs none."""
    assert not needs_restart(compare(Unit(), unit_from_values({"service": {"restart": "always"}})))
    assert needs_restart(compare(Unit(), unit_from_values({"memory": {"balloon": False}})))
