"""The documents against the code: what they name exists, and what they list is complete.

Decides: which claims of the hand-written pages can be checked.
Must not: check what is generated; its own drift tests do.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import attrs
import pytest

from qsup.config import Config
from qsup.instance.cause import FAILURES, Cause, CauseKind
from qsup.instance.restart import wants_restart
from qsup.instance.state import State
from qsup.plan.capacity import Bounds
from qsup.unit.quantity import format_size

REPOSITORY = Path(__file__).parents[1]
PAGES = [*sorted(REPOSITORY.glob("docs/*.md")), *sorted(REPOSITORY.glob("*.md"))]
TEST = re.compile(r"\b(tests/[\w/]+\.py)::(\w+)")
LINK = re.compile(r"\]\(([^)#:]+)(?:#([\w-]+))?\)")
ROW = re.compile(r"^\| `([\w-]+)` \| (?:`([^`]*)` \| )?", re.MULTILINE)


def _section(page: str, heading: str) -> str:
    text = (REPOSITORY / "docs" / page).read_text()
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_are_named_exist(page: Path) -> None:
    """Every test that a page cites as evidence is there."""
    cited = TEST.findall(page.read_text())
    missing = [f"{file}::{name}" for file, name in cited if not _defines(REPOSITORY / file, name)]
    assert not missing


def _defines(file: Path, name: str) -> bool:
    return file.exists() and re.search(rf"^(async )?def {name}\(", file.read_text(), re.MULTILINE) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every link within the repository leads to a file, and to a heading in it where it names one."""
    for target, anchor in LINK.findall(page.read_text()):
        path = page.parent / target
        assert path.exists(), target
        assert not anchor or anchor in _anchors(path), f"{target}#{anchor}"


def test_every_key_of_the_configuration_is_documented() -> None:
    """The table in admin.md has each key of qsupd.toml once, with its default."""
    documented = [
        (key, tomllib.loads(f"v = {default}")["v"])
        for key, default in ROW.findall(_section("admin.md", "Configuration"))
    ]
    plain = [field for field in attrs.fields(Config) if field.name != "capacity"]
    keys = [(field.name.replace("_", "-"), _as_toml(field)) for field in (*plain, *attrs.fields(Bounds))]
    assert documented == keys


def _as_toml(field: attrs.Attribute[Any]) -> object:
    if field.name in ("memory", "memory_reserve"):
        return format_size(field.default or 0)
    return list(field.default) if isinstance(field.default, tuple) else field.default


#: States that ask for nothing, or end by themselves in a time that the unit says.
CALM = {State.DEAD, State.SPAWNING, State.WAITING_READY, State.RUNNING, State.EXITING} | {
    state for state in State if state.substate.startswith("stopping-")
}


def test_every_odd_state_has_a_section() -> None:
    """troubleshooting.md has one for each state that wants a person, and for no other."""
    page = (REPOSITORY / "docs" / "troubleshooting.md").read_text()
    headings = re.findall(r"^## ([a-z-]+)$", page, re.MULTILINE)
    assert sorted(headings) == sorted(state.substate for state in set(State) - CALM)


def test_every_cause_of_an_end_is_in_the_table_of_policies() -> None:
    """What each policy makes of it is documented as `wants_restart` has it."""
    rows = re.findall(r"^\| (`[^|]+`) \|[^|]+\|(.+)\|$", _section("troubleshooting.md", "What ended it"), re.MULTILINE)
    found = {
        CauseKind(name): [cell.strip() == "again" for cell in cells.split("|")]
        for names, cells in rows
        for name in re.findall(r"`([a-z-]+)`", names)
        if name != "cause"
    }
    policies = ("no", "on-failure", "on-panic", "always")
    assert found == {kind: [wants_restart(policy, Cause(kind=kind)) for policy in policies] for kind in found}
    # by a lost monitor alone nothing ends
    assert found.keys() == (
        {*FAILURES, CauseKind.OPERATOR, CauseKind.GUEST_SHUTDOWN, CauseKind.GUEST_RESET} - {CauseKind.MONITOR_LOST}
    )


def test_every_state_says_what_to_do() -> None:
    """The table in reliability.md has each substate once, in the table's own order."""
    documented = [name for name, _ in ROW.findall(_section("reliability.md", "What to do, state by state"))]
    assert documented == [state.substate for state in State]
