"""Changes that are written to a unit: what is said when they cannot be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from qsup.errors import ChangeError, NoSpaceError, UnsupportedError
from qsup.instance.filing import Filing, absent
from qsup.instance.verdict import Said, check_none_refused, keys_said, result_of
from qsup.unit.compare import Change
from qsup.unit.keys import Applies
from qsup.unit.load import LoadedUnit
from qsup.unit.model import Unit

LOADED = LoadedUnit(name="web", unit=Unit(), files=("web.toml",), etag="", text="")


class Files:
    """A unit's files, which may be on a full disk."""

    def __init__(self, *, full: bool = False) -> None:
        self.full = full
        self.calls: list[tuple[Mapping[str, Any], bool]] = []
        self.filed: list[LoadedUnit] = []

    async def persist(
        self, name: str, changes: Mapping[str, Any], *, replaced: Sequence[str] = (), rehearsal: bool = False
    ) -> LoadedUnit:
        """Fail if it is full, and is to be written."""
        self.calls.append((changes, rehearsal))
        if self.full and not rehearsal:
            raise NoSpaceError("no space left", instance=name)
        return LOADED

    def filing(self, *, wanted: bool = True) -> Filing:
        """The filing of it."""
        return Filing(name="web", wanted=wanted, persist=self.persist, on_filed=self.filed.append)


async def test_where_nothing_is_wanted_nothing_is_asked() -> None:
    """Neither a rehearsal nor a file."""
    files = Files()
    filing = files.filing(wanted=False)
    assert await filing.rehearse({}) is None
    await filing.write({})
    assert files.calls == []


async def test_what_is_so_and_not_written_is_said() -> None:
    """The error keeps its kind, and names what is true of the VM."""
    files = Files(full=True)
    filing = files.filing()
    assert await filing.rehearse(absent("disk.data")) == Unit()
    with pytest.raises(NoSpaceError) as refused:
        await filing.write(absent("disk.data"), done="disk.data is gone")
    assert refused.value.message == "disk.data is gone, but that could not be written down: no space left"
    assert "until the VM ends" in refused.value.hint
    assert files.filed == []
    files.full = False
    await filing.write(absent("disk.data"))
    assert files.calls[-1] == ({"disk": [{"id": "data", "present": False}]}, False)
    assert files.filed == [LOADED]


def change(key: str) -> Change:
    """Some change of a key."""
    return Change(key=key, old=1, new=2, needs=Applies.RESTART)


def test_a_refusal_names_every_key() -> None:
    """A single one keeps its kind; several are one refusal."""
    fine = Said.of(change("cpu.vcpus"), "live")
    no = Said.refused(change("memory.size"), UnsupportedError("no memory", hint="buy some"))
    with pytest.raises(UnsupportedError) as one:
        check_none_refused([fine, no])
    assert one.value.details["keys"] == {
        "cpu.vcpus": {"applied": "live", "old": 1, "new": 2},
        "memory.size": {"applied": "refused", "old": 1, "new": 2, "why": "no memory"},
    }
    with pytest.raises(ChangeError, match="no memory; no disk"):
        check_none_refused([no, fine, Said.refused(change("disk.a.cache"), ChangeError("no disk"))])
    check_none_refused([fine])


def test_what_a_request_names_is_told_and_nothing_else() -> None:
    """An entry by any of its keys, an array without ids as a whole; no order and nothing that follows."""
    found = [
        change(key) for key in ("cpu.vcpus", "cpu.max-vcpus", "disk.data", "disk.root.backing", "nic", "nic.lan.mac")
    ]
    said = keys_said(
        found,
        {
            "cpu": {"vcpus": 2},
            "disk": [{"id": "data", "path": "a"}, {"id": "root", "backing": [{"path": "b", "format": "raw"}]}],
            "nic": [{"id": "wan", "mac": ""}],
        },
    )
    assert [each.key for each in said] == ["cpu.vcpus", "disk.data", "disk.root.backing"]


def test_a_result_has_what_else_is_known() -> None:
    """Beside what is said of the key."""
    said = [Said.of(change("memory.size"), "live")]
    told = {"memory.size": {"given": 1}, "x.y": {"z": 2}}
    found = result_of(said, changed=True, dry_run=False, persisted=True, told=told)
    assert found["keys"]["memory.size"] == {"applied": "live", "old": 1, "new": 2, "given": 1}
    assert found["keys"]["x.y"] == {"applied": "live", "z": 2}
