"""What is kept of a VM's end while it is started anew."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from attrs import evolve

from qsup.errors import StateFileError
from qsup.host.rundir import Layout
from qsup.instance import ended
from qsup.instance.cause import Cause, CauseKind
from qsup.instance.restart import RestartHistory
from qsup.instance.state import State
from qsup.unit.load import LoadedUnit
from qsup.unit.model import Unit
from qsup.unit.sections.machine import CpuSection

WEB = LoadedUnit(name="web", unit=Unit(), files=(), etag="", text="")
OTHER = evolve(WEB, unit=Unit(cpu=CpuSection(vcpus=2)))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """As much of one as is needed, with a VM that has crashed."""
    found = cast("Layout", SimpleNamespace(run=tmp_path))
    ended.keep(
        found,
        WEB,
        state=State.CRASHED,
        cause=Cause(kind=CauseKind.EXIT_CODE, detail="it fell"),
        since=1.0,
        uptime=2.0,
        due=0.0,
        history=RestartHistory(),
    )
    return found


@pytest.mark.parametrize("unit", [WEB, OTHER])
def test_how_it_ended_is_kept_until_it_runs(layout: Layout, unit: LoadedUnit) -> None:
    """Whatever it is started with."""
    ended.reserve(layout, unit)
    kept = ended.recall(layout, "web")
    assert kept is not None and kept.cause is not None and kept.loaded("web") == WEB
    ended.begin(layout, unit)
    assert ended.recall(layout, "web") is None


@pytest.mark.parametrize("unit", [WEB, OTHER])
@pytest.mark.parametrize(("key", "value"), [("vcpus", "many"), ("model", 7)])
def test_what_is_no_record_is_left_as_it_is(layout: Layout, unit: LoadedUnit, key: str, value: object) -> None:
    """It is not started over it, whatever is wrong with the unit in there."""
    path = Path(layout.run) / "ended" / "web.json"
    record = json.loads(path.read_text())
    record["unit"]["cpu"][key] = value
    path.write_text(text := json.dumps(record))
    with pytest.raises(StateFileError, match=str(path)):
        ended.reserve(layout, unit)
    assert path.read_text() == text
