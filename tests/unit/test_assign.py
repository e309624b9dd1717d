"""Assignments on a command line: which key a name means, and which value a text is."""

from __future__ import annotations

import pytest

from qsup.errors import RequestError
from qsup.unit.assign import changes_of


@pytest.mark.parametrize(
    ("name", "text", "changes"),
    [
        ("vcpus", "4", {"cpu": {"vcpus": 4}}),
        ("cpu.vcpus", "4", {"cpu": {"vcpus": 4}}),
        ("memory", "4G", {"memory": {"size": "4G"}}),
        ("limits.cpu", "2", {"limits": {"cpu": "2"}}),
        ("limits.cpu", "50%", {"limits": {"cpu": "50%"}}),
        ("limits.cpu", "", {"limits": {"cpu": ""}}),
        ("pids", "200", {"limits": {"pids": 200}}),
        ("description", "4", {"unit": {"description": "4"}}),
        ("balloon", "false", {"memory": {"balloon": False}}),
        ("cores", "2", {"cpu": {"topology": {"cores": 2}}}),
        ("restart-delay", "1.5s", {"service": {"restart-delay": "1.5s"}}),
        ("stop-methods", "acpi,kill", {"service": {"stop-methods": ["acpi", "kill"]}}),
        ("after", "", {"unit": {"after": []}}),
        ("extra-args", '["-a,b"]', {"qemu": {"extra-args": ["-a,b"]}}),
        ("ready", '{"port": 22}', {"service": {"ready": {"port": 22}}}),
        ("ready", "agent", {"service": {"ready": "agent"}}),
        ("disk.data.cache", "none", {"disk": [{"id": "data", "cache": "none"}]}),
        ("disk.a.b.read-only", "true", {"disk": [{"id": "a.b", "read-only": True}]}),
        ("disk.data.serial", "12", {"disk": [{"id": "data", "serial": "12"}]}),
        ("nic.lan.forward", "2222:22,80:80", {"nic": [{"id": "lan", "forward": ["2222:22", "80:80"]}]}),
    ],
)
def test_an_assignment_is_a_change(name: str, text: str, changes: object) -> None:
    """Texts by the kind of their key."""
    assert changes_of({name: text}) == changes


def test_several_are_one_change() -> None:
    """Entries by their ids."""
    assigned = {"disk.a.cache": "none", "vcpus": "2", "disk.b.cache": "none", "disk.a.serial": "x", "max-vcpus": "4"}
    assert changes_of(assigned) == {
        "disk": [{"id": "a", "cache": "none", "serial": "x"}, {"id": "b", "cache": "none"}],
        "cpu": {"vcpus": 2, "max-vcpus": 4},
    }


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        ({"vcpu": "4"}, "there is no key 'vcpu'; did you mean 'vcpus'"),
        ({"type": "4"}, "type may be machine.type, console.type or display.type"),
        ({"zzzzzz": "4"}, "there is no key 'zzzzzz'"),
        ({"cpu": "4"}, "there is no key 'cpu'"),
        ({"disk.data.cash": "none"}, "disk 'data': there is no key 'cash' of a disk; did you mean 'cache'"),
        ({"disk.data.throttle.iop": "1"}, "disk 'data': there is no key 'throttle.iop' of a disk; did you mean"),
        ({"nic.a.b.zzzz": "1"}, "nic 'a.b': there is no key 'zzzz' of a nic"),
        ({"disk.cache": "none"}, "is no disk.ID.KEY"),
        ({"disk": "none"}, "is no disk.ID.KEY"),
        ({"disk.-.cache": "none"}, "disk: '-' is not a valid name"),
        ({"disk.data.id": "none"}, "is no disk.ID.KEY"),
        ({"vcpus": "four"}, "cpu.vcpus: expected an integer"),
        ({"vcpus": "0"}, "cpu.vcpus: must be from 1 to 4096, not 0"),
        ({"memory": "4"}, 'expected a string with a unit, such as "4M"'),
        ({"balloon": "maybe"}, "expected true or false"),
        ({"nic.lan.forward": "x"}, "nic.lan.forward: entry 1: 'x' is not a forward"),
        ({"vcpus": "1", "cpu.vcpus": "2"}, "vcpus and cpu.vcpus are the same key"),
        ({"": "1"}, "there is no key"),
        ({"vcpus": "9" * 5000}, "cpu.vcpus: "),
        ({"ready": "[" * 100000}, "service.ready: must be"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_means_nothing_is_refused(assignments: dict[str, str], words: str) -> None:
    """In words that help."""
    with pytest.raises(RequestError) as refused:
        changes_of(assignments)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("name", "form", "example"),
    [
        ("disk", "'disk' is no disk.ID.KEY", "disk.data.cache"),
        ("nic.lan", "'nic.lan' is no nic.ID.KEY", "nic.dmz.link"),
    ],
)
def test_a_key_of_an_entry_is_named_whole(name: str, form: str, example: str) -> None:
    """With its section and its id; an example says how."""
    with pytest.raises(RequestError) as refused:
        changes_of({name: "none"})
    assert (refused.value.message, refused.value.hint) == (form, f"such as {example}")
