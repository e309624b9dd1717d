"""The records that the daemon keeps on disk: samples of every version, upgrades, and changes that raise no version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from attrs import evolve, frozen

from qsup.errors import StateFileError
from qsup.host import codec
from qsup.host.codec import Record
from qsup.instance.operation import OperationState
from qsup.instance.operation_record import OperationRecord
from qsup.instance.record import Running
from qsup.unit.parse import unit_from_values
from tests.records.shapes import KINDS, shapes

HERE = Path(__file__).parent
VERSIONS = [(kind, version) for kind, record in KINDS.items() for version in range(1, record.SCHEMA + 1)]


def sample(kind: str, version: int) -> Any:
    """What a daemon once wrote."""
    return json.loads((HERE / "samples" / f"{kind}-{version}.json").read_text())


@pytest.mark.parametrize(("kind", "version"), VERSIONS, ids=str)
def test_a_record_of_every_version_is_read(kind: str, version: int) -> None:
    """Each has a sample of its own, and becomes a record that is written as one of the present version."""
    written = sample(kind, version)
    assert written["schema"] == version
    record = codec.decode(KINDS[kind], written)
    assert codec.decode(KINDS[kind], codec.encode(record)) == record
    if version == KINDS[kind].SCHEMA:
        assert codec.encode(record) == written
    assert KINDS[kind].UPGRADES.keys() == set(range(1, KINDS[kind].SCHEMA))


def test_what_a_record_holds_is_still_understood() -> None:
    """A unit, a cause and an operation's error are values that today's code takes."""
    running = codec.decode(Running, sample("running", 1))
    assert unit_from_values(running.unit).disks[0].id == "root"
    operation = codec.decode(OperationRecord, sample("operation", 1)).operation()
    assert operation.state is OperationState.FAILED
    assert operation.error is not None
    assert (operation.error.code, operation.error.details) == ("start-failed", {"cause": "start-failed"})


def test_no_record_changes_without_its_version() -> None:
    """What is on the disks of others is read by its version, so a changed shape is another version.

    Raise its ``SCHEMA``, say in ``UPGRADES`` how the version before becomes the new one, add a sample, and write the
    shapes anew: ``python -m tests.records.shapes > tests/records/shapes.json``. Before the first release the last of
    these is enough, with samples of the new shape.
    """
    known = json.loads((HERE / "shapes.json").read_text())
    how = test_no_record_changes_without_its_version.__doc__
    for kind, shape in shapes().items():
        assert shape == known[kind], f"the record {kind!r} has changed. {how}"
    assert known.keys() == KINDS.keys()


@frozen(kw_only=True)
class Third:
    """An identity two versions later: ``uid`` was renamed, then ``machines`` became a list."""

    SCHEMA: ClassVar[int] = 3
    UPGRADES: ClassVar[codec.Upgrades] = {
        1: lambda values: {"user": values.pop("uid"), **values},
        2: lambda values: {**values, "machines": list(values["machines"].values())},
    }

    name: str
    uuid: str
    machines: tuple[str, ...]
    user: int | None


def test_an_older_record_is_upgraded_step_by_step(tmp_path: Path) -> None:
    """Each step makes one version of the one before it; the file is left as it is until it is written again."""
    path = tmp_path / "web.json"
    first = sample("identity", 1)
    path.write_text(json.dumps(first))
    record = codec.load(Third, path)
    assert (record.name, record.user, record.machines) == (first["name"], first["uid"], ("pc-q35-7.2",))
    assert json.loads(path.read_text()) == first
    second = {"schema": 2, "user": 7, "name": "web", "uuid": "x", "machines": {}}
    assert codec.decode(Third, second).user == 7
    codec.save(evolve(record, user=8), path)
    assert json.loads(path.read_text())["schema"] == 3
    assert codec.load(Third, path).user == 8


@pytest.mark.parametrize("change", [{"uid": ...}, {"machines": None}], ids=str)
def test_what_cannot_be_upgraded_is_refused(change: Mapping[str, Any]) -> None:
    """An older record that lacks what its version has is damaged, and names its version."""
    broken = {key: change.get(key, value) for key, value in sample("identity", 1).items()}
    broken = {key: value for key, value in broken.items() if value is not ...}
    with pytest.raises(ValueError, match=r"it is no record of schema [12]: "):
        codec.decode(Third, broken)


@pytest.mark.parametrize("kind", KINDS)
def test_a_newer_record_is_told_from_a_damaged_one(tmp_path: Path, kind: str) -> None:
    """Whatever else is in it, and it is left as it is."""
    record: type[Record] = KINDS[kind]
    path = tmp_path / "record.json"
    newer = json.dumps({"schema": record.SCHEMA + 1, "something": "new"})
    path.write_text(newer)
    with pytest.raises(StateFileError) as refused:
        codec.load(record, path)
    known = record.SCHEMA
    words = f"{path} was written by a newer qsupd: its schema is {known + 1}, and this qsupd reads up to {known}"
    assert refused.value.message == words
    assert path.read_text() == newer
