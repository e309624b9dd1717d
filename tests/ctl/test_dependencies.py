"""``list-dependencies``: trees and graphs over the real API, relations from a supervisor in memory."""

from __future__ import annotations

import json

import pytest

from qsup.instance.state import State
from qsup.unit.sections.service import UnitSection
from tests.api.calling import Daemon
from tests.api.fake import FakeBackend, make_view
from tests.ctl.golden_text import check_golden
from tests.ctl.running import Ctl


def populate(backend: FakeBackend) -> None:
    """A web server over two others, a circle, and a VM of which nobody says anything."""
    states = {"cache": State.CRASHED, "storage": State.DEAD, "a": State.DEAD, "b": State.DEAD, "alone": State.PAUSED}
    backend.views |= {name: make_view(name, state=state) for name, state in states.items()}
    backend.views["web"] = make_view("web", state=State.WAITING_DEPS)
    backend.sections = {
        "web": UnitSection(requires=("db",), wants=("cache", "gone"), after=("db",), conflicts=("alone",)),
        "cache": UnitSection(requires=("storage",), before=("web",)),
        "db": UnitSection(requires=("storage",), wants=("cache",), after=("storage",)),
        "a": UnitSection(requires=("b",)),
        "b": UnitSection(requires=("a",)),
    }


async def test_the_trees_of_all_and_of_one(served: Daemon, ctl: Ctl) -> None:
    """Whoever nobody pulls in is at the top; what was shown before is not shown whole again; a circle ends."""
    populate(served.backend)
    check_golden("dependencies", await ctl.ok("list-dependencies"))
    check_golden("dependencies-db", await ctl.ok("list-dependencies", "db"))
    check_golden("dependencies-reverse", await ctl.ok("list-dependencies", "--reverse", "storage", "gon*"))


async def test_a_graph(served: Daemon, ctl: Ctl) -> None:
    """All relations among the VMs that the tree shows, `before` as the `after` of the other."""
    populate(served.backend)
    check_golden("dependencies-dot", await ctl.ok("list-dependencies", "--dot", "web"))


async def test_for_programs(served: Daemon, ctl: Ctl) -> None:
    """The API's own documents, of the VMs that the tree shows."""
    populate(served.backend)
    document = json.loads(await ctl.ok("list-dependencies", "storage", "--reverse", "-o", "json"))
    assert [vm["name"] for vm in document["dependencies"]] == ["cache", "db", "storage", "web"]
    assert document["dependencies"][3] == {
        "name": "web",
        "state": "activating",
        "substate": "waiting-deps",
        "after": ["db"],
        "before": [],
        "requires": ["db"],
        "wants": ["cache", "gone"],
        "conflicts": ["alone"],
    }


@pytest.mark.parametrize(
    ("arguments", "code", "words"), [("nope", 4, "there is no VM 'nope'"), ("--dot -o json", 2, "exclude each other")]
)
async def test_what_is_refused(served: Daemon, ctl: Ctl, arguments: str, code: int, words: str) -> None:
    """An unknown name, and two forms at once."""
    result = await ctl("list-dependencies", *arguments.split())
    assert (result.code, result.out) == (code, "")
    assert words in result.err
