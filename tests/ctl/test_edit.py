"""``edit``: what reaches the daemon of what somebody wrote, and what they are asked."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from attrs import evolve

from qsup.ctl.verbs.edit import DROPIN
from qsup.errors import BusyError, NoSpaceError
from qsup.instance.state import State
from tests.api.calling import Daemon
from tests.api.fake import UNIT_TEXT
from tests.ctl.running import Ctl


@pytest.fixture(autouse=True)
def _no_editor_of_mine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever runs the tests may have one; and what is kept is kept here."""
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", "sed -i s/q35/pc/")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))


def answer(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """What is typed when something is asked."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def kept(tmp_path: Path) -> list[Path]:
    """What was left of what somebody wrote."""
    return sorted(tmp_path.glob("qsupctl-*/*"))


async def test_a_units_own_file_is_edited(served: Daemon, ctl: Ctl, tmp_path: Path) -> None:
    """It is written as it was left, and nothing of it stays behind."""
    served.backend.set_state("web", State.DEAD, pid=None)
    assert await ctl.ok("edit", "web") == "Written; it counts at the next start.\n"
    assert served.backend.unit_sources("web").sources[0][1] == UNIT_TEXT.replace("q35", "pc")
    assert kept(tmp_path) == []


async def test_another_unit_gets_a_drop_in(served: Daemon, ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which shows, in comments, what there is to change; and so does a drop-in that is asked for."""
    served.backend.set_state("web", State.DEAD, pid=None)
    monkeypatch.setenv("EDITOR", "sed -i s/^#.type/type/")
    served.backend.foreign.add("web")
    await ctl.ok("edit", "web")
    text = served.backend.dropins["web", DROPIN]
    assert '# /etc/qsup/units/web.toml\n# [machine]\ntype = "q35"\n' in text
    monkeypatch.setenv("EDITOR", "sed -i s/q35/pc/")
    served.backend.foreign.clear()
    await ctl.ok("edit", "web", "--drop-in")
    assert served.backend.dropins["web", DROPIN] == text.replace("q35", "pc")
    assert served.backend.unit_sources("web").sources[0][1] == UNIT_TEXT


@pytest.mark.parametrize("option", [(), ("--drop-in",)])
async def test_what_was_not_changed_is_not_written(
    served: Daemon, ctl: Ctl, monkeypatch: pytest.MonkeyPatch, option: tuple[str, ...]
) -> None:
    """Nor is a drop-in that has only its heading."""
    monkeypatch.setenv("EDITOR", "true")
    before = served.backend.unit_sources("web")
    assert await ctl.ok("edit", "web", *option) == "Nothing was changed.\n"
    assert served.backend.unit_sources("web") == before


async def test_errors_are_told_by_line_and_may_be_mended(
    served: Daemon, ctl: Ctl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever does not want to finds what they wrote."""
    editor = tmp_path / "editor"
    editor.write_text(
        "#!/bin/sh\nif grep -q bogus $1; then sed -i s/bogus/type/ $1; else sed -i s/type/bogus/ $1; fi\n"
    )
    editor.chmod(0o755)
    monkeypatch.setenv("VISUAL", str(editor))
    result = await ctl("edit", "web")
    assert result.code == 1
    assert "web.toml:2: machine.bogus: unknown key; did you mean 'type'?" in result.err
    assert "Edit it again? [y/N]" in result.err
    assert kept(tmp_path)[0].read_text() == UNIT_TEXT.replace("type", "bogus")
    assert str(kept(tmp_path)[0]) in result.err
    answer(monkeypatch, "y\n")
    result = await ctl("edit", "web")
    assert (result.code, result.out) == (0, "Nothing was changed.\n")


async def test_somebody_else_was_faster(
    served: Daemon, ctl: Ctl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing of theirs is overwritten, and nothing of ours is lost."""
    real = served.backend.unit_sources
    monkeypatch.setattr(served.backend, "unit_sources", lambda name: evolve(real(name), etag="before"))
    result = await ctl("edit", "web")
    assert (result.code, real("web").sources[0][1]) == (1, UNIT_TEXT)
    (found,) = kept(tmp_path)
    assert str(found) in result.err
    assert found.read_text() == UNIT_TEXT.replace("q35", "pc")
    assert found.stat().st_mode & 0o77 == 0 or found.parent.stat().st_mode & 0o77 == 0


@pytest.mark.parametrize(
    "failure", [NoSpaceError("the disk is full"), KeyboardInterrupt()], ids=["full", "interrupted"]
)
async def test_what_could_not_be_written_is_not_lost(
    served: Daemon, ctl: Ctl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failure: BaseException
) -> None:
    """Whatever kept it from the daemon."""

    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr("qsup.ctl.client.Client.put", fail)
    result = await ctl("edit", "web")
    assert result.code != 0
    (found,) = kept(tmp_path)
    assert str(found) in result.err
    assert found.read_text() == UNIT_TEXT.replace("q35", "pc")


async def test_that_a_unit_was_written_is_said_whatever_becomes_of_its_vm(
    served: Daemon, ctl: Ctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its VM may be busy."""

    def fail(*_: object, **__: object) -> None:
        raise BusyError("it is being stopped")

    monkeypatch.setattr("qsup.ctl.client.Client.post", fail)
    result = await ctl("edit", "web")
    assert (result.code, result.out) == (1, "Written.\n")
    assert "it is being stopped" in result.err


@pytest.mark.parametrize(
    ("editor", "words"),
    [
        ("/no/such/editor", "there is no editor: /no/such/editor"),
        ("false", "the editor false ended with 1"),
        ("latin-1", "is not UTF-8"),
    ],
)
async def test_an_editor_that_fails_changes_nothing(
    served: Daemon, ctl: Ctl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, editor: str, words: str
) -> None:
    """Its failure is told."""
    if editor == "latin-1":
        script = tmp_path / "editor"
        script.write_text("#!/bin/sh\nprintf '\\377' > $1\n")
        script.chmod(0o755)
        editor = str(script)
    monkeypatch.setenv("EDITOR", editor)
    result = await ctl("edit", "web")
    assert result.code == 1
    assert words in result.err
    assert served.backend.unit_sources("web").sources[0][1] == UNIT_TEXT
    assert kept(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "typed", "applied"),
    [((), "y\n", True), ((), "n\n", False), ((), "", False), (("--apply",), "", True), (("--no-apply",), "y\n", False)],
    ids=str,
)
async def test_a_vm_that_runs_is_changed_if_that_is_wanted(
    served: Daemon, ctl: Ctl, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], typed: str, applied: bool
) -> None:
    """What would become of each key is shown first."""
    served.backend.results["set"] = {"keys": {"cpu.vcpus": {"applied": "live", "old": 1, "new": 2}}}
    answer(monkeypatch, typed)
    result = await ctl("edit", "web", *options)
    assert result.code == 0
    assert re.search(r"cpu\.vcpus +1 +2 +now", result.out)
    assert ("Apply now" in result.err) is (not options)
    asked = [dict(operation.arguments) for operation in reversed(served.backend.operations())]
    assert [each["dry_run"] for each in asked] == [True, False][: 1 + applied]
    assert [each["changes"] for each in asked] == [None] * len(asked)


async def test_where_nothing_counts_now_nothing_is_asked(served: Daemon, ctl: Ctl) -> None:
    """All of it waits for the next start."""
    served.backend.results["set"] = {"keys": {"machine.type": {"applied": "start", "old": "q35", "new": "pc"}}}
    result = await ctl("edit", "web")
    assert "at the next start" in result.out
    assert result.err == ""


async def test_wrong_usage(ctl: Ctl) -> None:
    """Options that exclude each other, and what is not there."""
    assert (await ctl("edit", "web", "--apply", "--no-apply")).code == 2
    assert (await ctl("edit", "nope")).code == 4
