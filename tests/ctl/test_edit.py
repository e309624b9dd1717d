"""``edit``: what reaches the daemon of what somebody wrote, and what they are asked."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from qsup.ctl.verbs.edit import DROPIN
from qsup.errors import BusyError, NoSpaceError
from qsup.instance.state import State
from tests.api.calling import Daemon
from tests.api.fake import UNIT_TEXT
from tests.ctl.running import Ctl, in_thread, terminal


@pytest.fixture(autouse=True)
def _no_editor_of_mine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever runs the tests may have one; and what is kept is kept here."""
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", "sed -i s/q35/pc/")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))


class Typed(io.StringIO):
    """A terminal at which something is typed."""

    def isatty(self) -> bool:
        """It is one."""
        return True


def answer(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """What is typed when something is asked."""
    monkeypatch.setattr(sys, "stdin", Typed(text))


def kept(tmp_path: Path) -> list[Path]:
    """What was left of what somebody wrote."""
    return sorted(tmp_path.glob("qsupctl-*/*"))


async def test_a_units_own_file_is_edited(served: Daemon, ctl: Ctl, tmp_path: Path) -> None:
    """It is written as it was left, and nothing of it stays behind."""
    served.backend.set_state("web", State.DEAD, pid=None)
    served.backend.previews["web"] = {"machine.type": {"applied": "start", "old": "q35", "new": "pc"}}
    shown = (await ctl.ok("edit", "web", "--no-apply")).splitlines()
    assert shown[:2] == ["--- /etc/qsup/units/web.toml", "+++ /etc/qsup/units/web.toml, edited"]
    assert shown[-5:-3] == ['-type = "q35"', '+type = "pc"']
    assert re.search(r'machine\.type +at the next start +"q35" +"pc"', shown[-2])
    assert shown[-1] == "Written; it counts at the next start."
    assert served.backend.unit_sources("web").sources[0][1] == UNIT_TEXT.replace("q35", "pc")
    assert kept(tmp_path) == []


async def test_another_unit_gets_a_drop_in(served: Daemon, ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which shows, in comments, what there is to change; and so does a drop-in that is asked for."""
    served.backend.set_state("web", State.DEAD, pid=None)
    monkeypatch.setenv("EDITOR", "sed -i s/^#.type/type/")
    served.backend.foreign.add("web")
    await ctl.ok("edit", "web", "--no-apply")
    text = served.backend.dropins["web", DROPIN]
    assert '# /etc/qsup/units/web.toml\n# [machine]\ntype = "q35"\n' in text
    monkeypatch.setenv("EDITOR", "sed -i s/q35/pc/")
    served.backend.foreign.clear()
    await ctl.ok("edit", "web", "--drop-in", "--no-apply")
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
    assert result.err.count("machine.bogus") == 1
    assert kept(tmp_path)[0].read_text() == UNIT_TEXT.replace("type", "bogus")
    assert str(kept(tmp_path)[0]) in result.err
    answer(monkeypatch, "e\n")
    result = await ctl("edit", "web")
    assert "[e]dit again, [q]uit? " in result.err
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
    result = await ctl("edit", "web", "--no-apply")
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
    result = await ctl("edit", "web", "--apply")
    assert (result.code, result.out.splitlines()[-1]) == (1, "Written.")
    assert "it is being stopped" in result.err
    assert "nothing was written" not in result.err


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


LIVE = {"cpu.vcpus": {"applied": "live", "old": 1, "new": 2}}
START = {"machine.type": {"applied": "start", "old": "q35", "new": "pc"}}


@pytest.mark.parametrize(
    ("options", "typed", "written", "applied"),
    [
        ((), "a\n", True, True),
        ((), "what?\n\nw\n", True, False),
        ((), "q\n", False, False),
        ((), "", False, False),
        (("--apply",), "", True, True),
        (("--no-apply",), "a\n", True, False),
    ],
    ids=str,
)
async def test_what_would_become_of_each_key_is_shown_before_anything_is_done(
    served: Daemon,
    ctl: Ctl,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    options: tuple[str, ...],
    typed: str,
    written: bool,
    applied: bool,
) -> None:
    """And nothing is, if nobody wants it: what was written is kept then."""
    served.backend.previews["web"] = LIVE
    served.backend.results["set"] = {"keys": LIVE}
    answer(monkeypatch, typed)
    result = await ctl("edit", "web", *options)
    assert result.code == (0 if written else 1)
    assert len(re.findall(r"cpu\.vcpus +now +1 +2", result.out)) == 1
    question = "[a]pply now and write, [w]rite only, [e]dit again, [q]uit? "
    assert result.err.count(question) == (0 if options else max(1, typed.count("\n")))
    assert ("Written.\n" in result.out) is written
    assert (served.backend.unit_sources("web").sources[0][1] != UNIT_TEXT) is written
    assert [kept_file.read_text() for kept_file in kept(tmp_path)] == [UNIT_TEXT.replace("q35", "pc")] * (not written)
    asked = [dict(operation.arguments) for operation in served.backend.operations()]
    assert [(each["dry_run"], each["changes"]) for each in asked] == [(False, None)] * applied


async def test_it_can_be_edited_again_before_it_is_written(
    served: Daemon, ctl: Ctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The editor begins with what was written before."""
    monkeypatch.setenv("EDITOR", "sed -i -e s/pc/microvm/ -e s/q35/pc/")
    answer(monkeypatch, "e\nw\n")
    assert (await ctl("edit", "web")).code == 0
    assert served.backend.unit_sources("web").sources[0][1] == UNIT_TEXT.replace("q35", "microvm")


async def test_where_nothing_counts_now_it_is_only_written(
    served: Daemon, ctl: Ctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it waits for the next start, and applying is not offered."""
    served.backend.previews["web"] = START
    answer(monkeypatch, "a\nw\n")
    result = await ctl("edit", "web")
    assert "at the next start" in result.out
    assert result.err.count("[w]rite only, [e]dit again, [q]uit? ") == 2
    assert "[a]pply" not in result.err


async def test_where_nobody_can_be_asked_nothing_is_written(served: Daemon, ctl: Ctl, tmp_path: Path) -> None:
    """What would become of it is shown all the same, and what to say."""
    served.backend.previews["web"] = LIVE
    result = await ctl("edit", "web")
    assert result.code == 2
    assert "cpu.vcpus" in result.out
    assert "--no-apply only writes it" in result.err
    assert served.backend.unit_sources("web").sources[0][1] == UNIT_TEXT
    assert [kept_file.read_text() for kept_file in kept(tmp_path)] == [UNIT_TEXT.replace("q35", "pc")]


async def test_what_became_otherwise_is_shown(served: Daemon, ctl: Ctl) -> None:
    """The VM may have been changed between the two."""
    served.backend.previews["web"] = LIVE
    served.backend.results["set"] = {"keys": START}
    shown = await ctl.ok("edit", "web", "--apply")
    assert re.search(r"cpu.vcpus.*Written\..*machine.type.*It counts at the next start\.", shown, re.DOTALL)


async def test_what_waits_is_not_said_to_be_applied(served: Daemon, ctl: Ctl) -> None:
    """Some of it counts now, and some does not."""
    both: dict[str, Any] = {**LIVE, **START}
    served.backend.previews["web"] = both
    served.backend.results["set"] = {"keys": both}
    shown = await ctl.ok("edit", "web", "--apply")
    assert shown.endswith("Written.\nApplied; the rest counts at the next start.\n")


async def test_it_asks_at_a_terminal(served: Daemon, tmp_path: Path) -> None:
    """A real one: what is typed is read as it is, and nothing is written before."""
    served.backend.previews["web"] = LIVE

    def at_terminal() -> int:
        environ = {"EDITOR": "sed -i s/q35/pc/", "TMPDIR": str(tmp_path)}
        with terminal("--socket", served.served.path, "edit", "web", environ=environ) as started:
            started.read_until(b"[q]uit? ")
            assert served.backend.unit_sources("web").sources[0][1] == UNIT_TEXT
            started.type(b"a\n")
            started.read_until(b"Applied.")
            return started.end()

    assert await in_thread(at_terminal) == 0
    assert served.backend.unit_sources("web").sources[0][1] != UNIT_TEXT


async def test_wrong_usage(ctl: Ctl) -> None:
    """Options that exclude each other, and what is not there."""
    assert (await ctl("edit", "web", "--apply", "--no-apply")).code == 2
    assert (await ctl("edit", "nope")).code == 4


async def test_a_drop_in_may_be_emptied(served: Daemon, ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon removes it then, and its lines are shown as what goes."""
    served.backend.dropins["web", DROPIN] = "[cpu]\nvcpus = 2\n"
    monkeypatch.setenv("EDITOR", "truncate -s 0")
    shown = await ctl.ok("edit", "web", "--drop-in", "--no-apply")
    assert "-[cpu]\n-vcpus = 2\n" in shown
    assert served.backend.dropins["web", DROPIN] == ""
