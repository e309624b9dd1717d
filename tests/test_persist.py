"""What changes of a VM leave in its unit's files: the least that says them, beside everybody else's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qsup.catalog import UnitStore
from qsup.errors import ChangeError, HostError, NoSuchUnit, PreconditionFailed, UnitError
from qsup.host.rundir import Layout
from qsup.unit.dropin import CHANGES
from qsup.unit.effective import machine_memory
from qsup.unit.info import Precondition

ANY = Precondition()
UNIT = """\
# mine
[cpu]
vcpus = 2  # as many as it needs

[[disk]]
id = "root"
path = "%n.img"
cache = "none"
"""


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The administrator's directory, with one unit in it."""
    directory = Layout.for_root(tmp_path).unit_dirs[-1]
    directory.mkdir(parents=True)
    (directory / "web.toml").write_text(UNIT)
    return directory


@pytest.fixture
def store(tmp_path: Path, units: Path) -> UnitStore:
    """The store over it."""
    return UnitStore(Layout.for_root(tmp_path))


def said(units: Path, name: str = "web") -> str:
    """What the drop-in says, without the comment above it."""
    path = units / f"{name}.toml.d" / CHANGES
    return path.read_text().partition("\n\n")[2] if path.exists() else ""


def names(directory: Path) -> list[str]:
    """What is in a directory."""
    return sorted(path.name for path in directory.iterdir())


async def test_a_change_is_a_drop_in_and_leaves_it_again(store: UnitStore, units: Path) -> None:
    """Key by key, and nobody's own file is touched; a folder that was made for it goes too."""
    loaded = await store.persist("web", {"cpu": {"vcpus": 4}})
    assert (loaded.unit.cpu.vcpus, said(units)) == (4, "[cpu]\nvcpus = 4\n")
    assert (await store.persist("web", {"memory": {"size": "1G"}})).files == loaded.files
    assert said(units) == '[cpu]\nvcpus = 4\n\n[memory]\nsize = "1G"\n'
    await store.persist("web", {"cpu": {"vcpus": 2}})
    assert said(units) == '[memory]\nsize = "1G"\n'
    assert (await store.persist("web", {"memory": {"size": "512M"}})).files == loaded.files[:1]
    assert names(units) == ["web.toml"]
    assert (units / "web.toml").read_text() == UNIT


async def test_entries_come_change_and_go(store: UnitStore, units: Path) -> None:
    """One of our own goes without a trace; one of a person's file is said not to be there, and comes back."""
    data = {"disk": [{"id": "data", "path": "100%.img", "bus": "scsi"}]}
    loaded = await store.persist("web", data, replaced=["disk.data"])
    assert [disk.id for disk in loaded.unit.disks] == ["root", "data"]
    assert loaded.unit.disks[1].path == "100%.img"
    assert said(units) == '[[disk]]\nid = "data"\npath = "100%%.img"\nbus = "scsi"\n'
    await store.persist("web", {"disk": [{"id": "root", "cache": "writeback"}, {"id": "data", "present": False}]})
    assert said(units) == '[[disk]]\nid = "root"\ncache = "writeback"\n'
    gone = await store.persist("web", {"disk": [{"id": "root", "present": False}]})
    assert (gone.unit.disks, said(units)) == ((), '[[disk]]\nid = "root"\npresent = false\n')
    await store.persist("web", {"disk": [{"id": "root", "path": "new.img"}]}, replaced=["disk.root"])
    (root,) = store.read("web").unit.disks
    assert (root.path, root.cache) == ("new.img", "writeback")
    back = {"disk": [{"id": "root", "path": "web.img", "cache": "none"}]}
    assert (await store.persist("web", back, replaced=["disk.root"])).files == (str(units / "web.toml"),)


def inode(units: Path) -> int:
    """Which file the drop-in is."""
    return (units / "web.toml.d" / CHANGES).stat().st_ino


async def test_a_guest_that_has_no_more_than_at_its_start_needs_no_minimum(store: UnitStore, units: Path) -> None:
    """It is written with what came, and goes with that."""
    (units / "web.toml").write_text('[memory]\nsize = "1G"\nmax = "4G"\n')
    await store.persist("web", {"memory": {"size": "2G", "min": "1G"}})
    assert said(units) == '[memory]\nsize = "2G"\nmin = "1G"\n'
    assert machine_memory(store.read("web").unit) == 1 << 30
    for size in ("1G", "512M"):
        await store.persist("web", {"memory": {"size": size}})
        assert "min" not in said(units)


async def test_it_is_done_once(store: UnitStore, units: Path) -> None:
    """A daemon that takes an operation up says the same again: the file is not even written."""
    await store.persist("web", {"cpu": {"vcpus": 4}})
    before = inode(units)
    await store.persist("web", {"cpu": {"vcpus": 4}})
    assert inode(units) == before


async def test_an_instance_has_a_folder_of_its_own(store: UnitStore, units: Path) -> None:
    """Its template, and the template's other instances, stay as they are."""
    (units / "db@.toml").write_text("[cpu]\nvcpus = 1\n")
    await store.persist("db@one", {"cpu": {"vcpus": 4}})
    assert said(units, "db@one") == "[cpu]\nvcpus = 4\n"
    assert (store.read("db@one").unit.cpu.vcpus, store.read("db@two").unit.cpu.vcpus) == (4, 1)
    assert [*store.units] == ["db@one"]
    await store.persist("db@one", {"cpu": {"vcpus": 1}})
    assert [*store.units] == []


@pytest.mark.parametrize(
    "changes",
    [{"cpu": {"vcpus": 0}}, {"cpu": {"vcpu": 1}}, {"disk": [{"id": "data"}]}, {"cpu": {"max-vcpus": 1}}],
    ids=str,
)
async def test_what_makes_no_valid_unit_is_not_written(store: UnitStore, units: Path, changes: dict[str, Any]) -> None:
    """Of the rules within a key, and of those between keys of several files."""
    with pytest.raises(UnitError):
        await store.persist("web", changes)
    assert names(units) == ["web.toml"]


async def test_who_has_the_last_word_is_named(store: UnitStore, units: Path) -> None:
    """A change that a later drop-in would undo is refused."""
    folder = units / "web.toml.d"
    folder.mkdir()
    (folder / "99-mine.toml").write_text("[cpu]\nvcpus = 3\n")
    with pytest.raises(ChangeError, match=r"cpu.vcpus.*: .*99-mine.toml has the last word"):
        await store.persist("web", {"cpu": {"vcpus": 4}})
    await store.persist("web", {"cpu": {"max-vcpus": 8}})
    assert said(units) == "[cpu]\nmax-vcpus = 8\n"


async def test_a_rehearsal_leaves_nothing(store: UnitStore, units: Path) -> None:
    """And finds out what would stand in the way."""
    await store.persist("web", {"cpu": {"vcpus": 4}}, rehearsal=True)
    assert names(units) == ["web.toml"]
    (units / "web.toml.d" / f".{CHANGES}.new").mkdir(parents=True)
    with pytest.raises(HostError, match=r"could not write .*is a directory"):
        await store.persist("web", {"cpu": {"vcpus": 4}}, rehearsal=True)
    with pytest.raises(NoSuchUnit):
        await store.persist("other", {"cpu": {"vcpus": 4}}, rehearsal=True)


@pytest.mark.parametrize("first", [True, False])
async def test_enable_and_disable_have_their_way(store: UnitStore, units: Path, first: bool) -> None:
    """Whatever was set before; and a change has its way after them."""
    await store.set_autostart("web", enabled=first)
    for enabled in (not first, first):
        await store.persist("web", {"install": {"autostart": enabled}, "cpu": {"vcpus": 4}})
        assert store.info("web").autostart is enabled
        assert (await store.set_autostart("web", enabled=not enabled)).autostart is not enabled
    assert "vcpus = 4" in said(units)


async def test_what_was_rehearsed_is_written_unless_files_change_in_between(store: UnitStore, units: Path) -> None:
    """Somebody who edits the unit meanwhile is not forgotten."""
    changes = {"cpu": {"vcpus": 4}}
    await store.persist("web", changes, rehearsal=True)
    write(units / "web.toml", UNIT.replace("vcpus = 2", "vcpus = 4"))
    await store.persist("web", changes)
    assert said(units) == ""
    await store.persist("web", changes, rehearsal=True)
    await store.persist("web", {"cpu": {"vcpus": 3}})
    assert said(units) == "[cpu]\nvcpus = 3\n"


async def test_it_goes_with_the_unit(store: UnitStore, units: Path) -> None:
    """A unit that is deleted takes along what was changed of it."""
    await store.persist("web", {"cpu": {"vcpus": 4}})
    await store.delete("web", only_if=Precondition())
    assert names(units) == []


async def test_a_drop_in_of_anybodys_is_written_and_removed(store: UnitStore, units: Path) -> None:
    """If the unit is valid with it, and of the version that was meant."""
    before = store.sources("web")
    assert (before.own, before.etag) == (str(units / "web.toml"), store.info("web").etag)
    meant = Precondition(among=frozenset({before.etag}))
    info = await store.put("web", "[cpu]\nvcpus = 3\n", only_if=meant, dropin="80-local.toml")
    assert store.sources("web").sources == (
        (str(units / "web.toml"), UNIT),
        (str(units / "web.toml.d" / "80-local.toml"), "[cpu]\nvcpus = 3\n"),
    )
    with pytest.raises(UnitError, match=r"80-local.toml:1: cpu.vcpu: unknown key"):
        await store.put("web", "cpu.vcpu = 3\n", only_if=ANY, dropin="80-local.toml")
    with pytest.raises(PreconditionFailed):
        await store.put("web", "", only_if=meant, dropin="80-local.toml")
    meant = Precondition(among=frozenset({info.etag}))
    assert (await store.put("web", " \n", only_if=meant, dropin="80-local.toml")).etag == before.etag
    assert names(units) == ["web.toml"]
    with pytest.raises(NoSuchUnit):
        await store.put("other", "cpu.vcpus = 3\n", only_if=ANY, dropin="80-local.toml")


async def test_a_unit_with_errors_can_be_read_and_mended(store: UnitStore, units: Path) -> None:
    """By whoever has read that version; a template's instance has no file of its own."""
    write(units / "web.toml", "nonsense\n")
    found = store.sources("web")
    assert found.sources[0][1] == "nonsense\n"
    await store.put("web", UNIT, only_if=Precondition(among=frozenset({found.etag})))
    assert store.info("web").etag != found.etag
    write(units / "db@.toml", UNIT)
    assert (store.sources("db@one").own, store.sources("db@").own) == ("", str(units / "db@.toml"))


def write(path: Path, text: str) -> None:
    """Write a file."""
    path.write_text(text)
