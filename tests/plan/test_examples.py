"""The units that teach: they say which schema they follow, verify, and give plans."""

from __future__ import annotations

from pathlib import Path

import pytest

from qsup.unit.verify import verify_files
from tests.plan import goldens
from tests.plan.goldens import EXAMPLES


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_example_verifies(path: Path) -> None:
    """An example names its schema in its first line, says in comments what it shows, and has no error."""
    first, second, *_ = path.read_text().splitlines()
    assert first == "#:schema unit.schema.json"
    assert second.startswith(f"# {path.stem}: ")
    assert verify_files([path]) == ()


@pytest.mark.parametrize("name", goldens.example_names())
def test_example_gives_a_plan(name: str) -> None:
    """An example can be planned without a warning but that there is no KVM."""
    plan = goldens.load_example(name).plan(goldens.capabilities())
    assert all("the guest's CPU is emulated" in warning for warning in plan.warnings)


def test_template_gives_each_instance_its_own() -> None:
    """Two instances of the template share no disk and no address."""
    one, other = (goldens.load_example(f"dev@{name}") for name in ("alice", "bob"))
    assert one.unit.disks[0].path == "dev/alice.raw"
    assert other.unit.disks[0].path == "dev/bob.raw"
    assert one.unit.unit.description == "Development machine of alice"
