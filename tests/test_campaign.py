"""The campaign's own bookkeeping, on fake tests: what is lost decides the exit code, and the table says what was done.

Decides: that a loss of any kind, and that nothing was tried, can be told from success by a script.
Must not: start a daemon; the real cases are those of ``tests/real``.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.bench.document import put_measured
from tests.faults.__main__ import main
from tests.faults.cases import CASES, case_of
from tests.faults.tally import Tally
from tests.faults.trial import MEASURED, TRIED, Promise, Tries

REAL = Path(__file__).parent / "real"
CASE = """\
import pytest

@pytest.fixture
def broken():
    yield
    assert {teardown}

def test_t5_of_a_fake(broken):
    assert {call}

@pytest.mark.root
def test_t4_which_needs_root():
    assert {call}
"""


def tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str, call: bool = True, teardown: bool = True
) -> int:
    """The exit code of the command on two fake cases."""
    (tmp_path / f"test_{tmp_path.name}.py").write_text(CASE.format(call=call, teardown=teardown))
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = root: needs root\naddopts = --import-mode=importlib\n")
    monkeypatch.setattr("tests.faults.__main__.REAL", tmp_path)
    return main(["--tries", "2", *arguments])


def test_nothing_lost_is_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tests of other cases do not run, and each is run as often as was asked for."""
    assert tried(tmp_path, monkeypatch, "T5") == 0
    assert re.search(r"^T5 .* 2 +0 ", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("what", ["call", "teardown"])
def test_a_loss_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """A promise that is broken, and something that is left behind."""
    code = tried(tmp_path, monkeypatch, "T5", call=what != "call", teardown=what != "teardown")
    assert code == 1
    said = capsys.readouterr()
    assert re.search(r"^T5 .* 2 +\*\*2\*\* ", said.out, re.MULTILINE)
    assert len(re.findall("^lost in .*test_t5_of_a_fake.*: .*assert False", said.err, re.MULTILINE)) == 2


def test_what_cannot_be_read_is_a_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of tests with an error in it is not nothing."""
    (tmp_path / "test_broken.py").write_text("1 / 0")
    assert tried(tmp_path, monkeypatch, "T5") == 1


def test_one_that_is_interrupted_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was tried before then has shown nothing of the rest."""
    text = "def test_t4_of_a_fake(): pass\n\ndef test_t5_of_a_fake(): raise KeyboardInterrupt\n"
    (tmp_path / f"test_{tmp_path.name}_too.py").write_text(text)
    assert tried(tmp_path, monkeypatch, "T4", "T5") == 1


def test_what_needs_root_is_named_as_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user's campaign does not count it as passed; when nothing at all was tried that is no success."""
    assert tried(tmp_path, monkeypatch, "--user", "T4", "T5") == 0
    said = capsys.readouterr().out
    assert re.search(r"^T4 .*not run \(1 test needs root\)", said, re.MULTILINE)
    assert said.endswith("\n2 tries, 0 lost; not run for want of root: all of T4\n")
    assert tried(tmp_path, monkeypatch, "--user", "T4") == 1


def test_it_is_tried_as_often_as_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oftener than the case says, too."""
    assert tried(tmp_path, monkeypatch, "--tries", "7", "T5") == 0
    said = capsys.readouterr().out
    assert re.search(r"^T5 .* 7 +0 ", said, re.MULTILINE)
    assert "\n7 tries, 0 lost; nothing left out\n" in said


def test_a_name_that_only_begins_alike_is_no_case() -> None:
    """Random numbers are no random ends of the daemon."""
    assert case_of("tests/real/test_x.py::test_random_ends_of_the_daemon_lose_nothing") == CASES["random"]
    assert case_of("tests/real/test_x.py::test_random_numbers_can_be_limited[qemu-7.2]") is None


def test_what_is_promised_of_nothing_is_told_all_the_same() -> None:
    """Beside what is; and of one thing with two promises both are."""
    tally, promise = Tally(["T3"]), Promise(properties=[])
    promise.told("its end", 0.02)
    for within in (1.0, 2.0):
        promise.kept("an answer", 0.5, within=within)
    tally.count("T3", failed=False, seconds=1.0, told=promise.properties)
    assert tally.rows["T3"].cells()[4] == "its end 20 ms; an answer 500 ms of 1 s; an answer 500 ms of 2 s"


def test_the_worst_of_all_tries_is_shown() -> None:
    """Of each thing that was measured, beside what is promised of it."""
    tally = Tally(["T3"])
    for event in (0.02, 0.05, 0.03):
        tally.count(
            "T3", failed=False, seconds=1.0, told=[(TRIED, 1), (TRIED, 1), (MEASURED, ("event", event, 0.1, "s"))]
        )
    (row,) = tally.rows.values()
    assert row.cells()[2:5] == ["6", "0", "event 50 ms of 100 ms"]


def test_a_document_keeps_the_lines_of_other_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was tried is put in its place, in the cases' order; a document without a place is refused."""
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- tried as a user -->\n| T6 | six |\n| T5 | five |\n<!-- end -->\nz\n")
    assert tried(tmp_path, monkeypatch, "--user", "T5", "--write", str(page)) == 0
    first, *_, machine, _empty, head, _rule, five, six, end, last = page.read_text().splitlines()
    assert (first, six, end, last) == ("a", "| T6 | six |", "<!-- end -->", "z")
    assert "not root" in machine
    assert head.startswith("| case | what is done | tries | lost |")
    assert five.startswith("| T5 | SIGSTOP of 3 of 5 QEMUs | 2 | 0 |")
    with pytest.raises(ValueError, match="no place that is marked <!-- measured -->"):
        put_measured(page, "text")


def test_a_promise_that_is_not_kept_fails_the_test_that_tells_of_it() -> None:
    """And it is told all the same; tries are counted one by one, so that none counts which did not take place."""
    promise, tries = Promise(properties=[]), Tries(count=3, properties=[])
    with pytest.raises(AssertionError, match=r"event: 0\.2 s, not within 0\.1 s"):
        promise.kept("event", 0.2, within=0.1)
    assert promise.properties == [(MEASURED, ("event", 0.2, 0.1, "s"))]
    assert next(iter(tries)) == 0
    assert tries.properties == [(TRIED, 1)]


def test_every_case_has_a_real_test() -> None:
    """By its name, so that none is promised which nobody tries."""
    names = [
        name
        for file in REAL.glob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    ]
    assert {case.name for name in names if (case := case_of(name))} == set(CASES)
