"""The unit files of one daemon, as the API may write them."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from qsup.catalog import UnitStore
from qsup.errors import PreconditionFailed, QsupError, RequestError, UnitError
from qsup.host.rundir import Layout
from qsup.unit.info import Precondition

UNIT = '[unit]\ndescription = "{}"\n'
ANY = Precondition()
ENABLED = "[install]\nautostart = true\n"


def version(etag: str) -> Precondition:
    """That a unit is of one version."""
    return Precondition(among=frozenset({etag}))


@pytest.fixture
def store(tmp_path: Path) -> UnitStore:
    """An empty store in a directory of the test's own."""
    layout = Layout.for_root(tmp_path)
    layout.unit_dirs[-1].mkdir(parents=True)
    return UnitStore(layout)


async def test_a_unit_is_written_read_and_deleted(store: UnitStore) -> None:
    """What was put is there, under the etag that a later change must name."""
    info = await store.put("web", UNIT.format("one"), only_if=ANY)
    assert (info.description, info.template) == ("one", False)
    assert (await store.put("web", UNIT.format("two"), only_if=version(info.etag))).description == "two"
    with pytest.raises(PreconditionFailed):
        await store.put("web", UNIT.format("three"), only_if=version(info.etag))
    await store.delete("web", only_if=ANY)
    with pytest.raises(QsupError, match="no unit 'web'"):
        store.info("web")


@pytest.mark.parametrize("text", ["", " \n", "[cpu]\nvcpu = 2\n", "a = " + "{a = " * 40 + "1" + "}" * 40])
async def test_what_is_no_valid_unit_is_not_written(store: UnitStore, text: str) -> None:
    """Neither a wrong text nor an empty one, which would mask the unit, replaces a valid file."""
    before = await store.put("web", UNIT.format("one"), only_if=ANY)
    with pytest.raises(UnitError):
        await store.put("web", text, only_if=ANY)
    assert store.info("web").etag == before.etag


async def test_of_writers_with_the_same_version_one_wins(store: UnitStore) -> None:
    """Concurrent changes of one version: the first is written, the others are told that it has gone."""
    etag = (await store.put("web", UNIT.format("start"), only_if=ANY)).etag
    outcomes: list[str] = []

    async def write(number: int) -> None:
        try:
            await store.put("web", UNIT.format(number), only_if=version(etag))
            outcomes.append("written")
        except PreconditionFailed:
            outcomes.append("refused")

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(write, number)
    assert sorted(outcomes) == ["refused"] * 4 + ["written"]


async def test_autostart_is_a_drop_in_that_goes_with_the_unit(store: UnitStore) -> None:
    """`enable` leaves the file as its author wrote it; `delete` takes the drop-in along."""
    await store.put("web", UNIT.format("one"), only_if=ANY)
    info = await store.set_autostart("web", enabled=True)
    assert info.autostart
    assert len(info.files) == 2
    assert not (await store.set_autostart("web", enabled=False)).autostart
    await store.delete("web", only_if=ANY)
    assert not await trio.Path(info.files[1]).exists()


async def test_disable_takes_back_what_enable_wrote(store: UnitStore) -> None:
    """No override is left that would hide a later `autostart` in the unit's own file, unless that says the opposite."""
    await store.put("web", UNIT.format("one"), only_if=ANY)
    folder = trio.Path((await store.set_autostart("web", enabled=True)).files[1]).parent
    assert len((await store.set_autostart("web", enabled=False)).files) == 1
    assert not await folder.exists()
    assert (await store.put("web", ENABLED, only_if=ANY)).autostart
    disabled = await store.set_autostart("web", enabled=False)
    assert (disabled.autostart, len(disabled.files)) == (False, 2)
    enabled = await store.set_autostart("web", enabled=True)
    assert (enabled.autostart, len(enabled.files)) == (True, 1)


async def test_an_instance_of_a_template_is_enabled_by_a_file_of_its_own(store: UnitStore) -> None:
    """Also where its template says so for all: without one the next daemon does not know the instance."""
    await store.put("web@", ENABLED, only_if=ANY)
    info = await store.set_autostart("web@blue", enabled=True)
    assert "web@blue.toml.d" in info.files[-1]
    await store.reload()
    assert [*store.units] == ["web@blue"]
    assert (await store.set_autostart("web@blue", enabled=True)).files == info.files
    assert not (await store.set_autostart("web@blue", enabled=False)).autostart
    again = await store.set_autostart("web@blue", enabled=True)
    assert (again.autostart, again.files) == (True, info.files)


async def test_a_template_is_not_enabled(store: UnitStore) -> None:
    """It starts nothing; the hint says that an instance does."""
    await store.put("web@", UNIT.format("one"), only_if=ANY)
    for enabled in (True, False):
        with pytest.raises(RequestError, match="web@ is a template") as refused:
            await store.set_autostart("web@", enabled=enabled)
        assert "name an instance" in refused.value.hint


async def test_a_reload_says_what_came_changed_and_went(store: UnitStore) -> None:
    """Names by what became of them since the last reload."""
    await store.put("one", UNIT.format("a"), only_if=ANY)
    await store.put("two", UNIT.format("a"), only_if=ANY)
    assert (await store.reload()).added == ("one", "two")
    await store.put("one", UNIT.format("b"), only_if=ANY)
    await store.delete("two", only_if=ANY)
    result = await store.reload()
    assert (result.added, result.changed, result.removed) == ((), ("one",), ("two",))


async def test_a_unit_with_errors_has_not_gone(store: UnitStore) -> None:
    """A reload counts it as changed once it is mended, never as removed and new."""
    path = trio.Path((await store.put("web", UNIT.format("a"), only_if=ANY)).files[0])
    await store.reload()
    await path.write_text("[cpu]\nvcpu = 2\n")
    result = await store.reload()
    assert (result.added, result.changed, result.removed, len(result.diagnostics)) == ((), (), (), 1)
    await path.write_text(UNIT.format("b"))
    result = await store.reload()
    assert (result.added, result.changed, result.removed) == ((), ("web",), ())


async def test_a_unit_with_errors_exists(store: UnitStore) -> None:
    """Who writes only what is new does not replace it, who repairs what is there does."""
    path = trio.Path((await store.put("web", UNIT.format("a"), only_if=Precondition(exists=False))).files[0])
    await path.write_text("[cpu]\nvcpu = 2\n")
    with pytest.raises(PreconditionFailed, match="exists"):
        await store.put("web", UNIT.format("b"), only_if=Precondition(exists=False))
    assert (await store.put("web", UNIT.format("b"), only_if=Precondition(exists=True))).description == "b"
    with pytest.raises(PreconditionFailed):
        await store.put("new", UNIT.format("b"), only_if=Precondition(exists=True))


async def test_a_candidate_is_judged_and_not_written(store: UnitStore) -> None:
    """As its file, and as a drop-in; what `put` would refuse is refused."""
    etag = (await store.put("web", UNIT.format("one"), only_if=ANY)).etag
    two = UNIT.format("two")
    assert (await store.candidate("web", two, only_if=version(etag))).unit.description == "two"
    assert (await store.candidate("web", two, only_if=ANY, dropin="50-a.toml")).unit.description == "two"
    for wrong in (version("other"), Precondition(exists=False)):
        with pytest.raises(PreconditionFailed):
            await store.candidate("web", two, only_if=wrong)
    with pytest.raises(UnitError):
        await store.candidate("web", "[cpu]\nvcpu = 2\n", only_if=ANY, dropin="50-a.toml")
    with pytest.raises(UnitError, match="mask"):
        await store.candidate("web", "", only_if=ANY)
    assert store.info("web").etag == etag
