"""What holds for every verb: starting fast, ending well."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qsup.api.protocol import EXIT_UNREACHABLE
from qsup.ctl.main import VERBS, main
from qsup.ctl.verbs import list as list_verb
from qsup.ctl.verbs import power
from tests.api.calling import Daemon
from tests.ctl.peer import answer, peer
from tests.ctl.running import Ctl, Result, in_thread, run_process, terminal

#: What no verb may load before it needs it: each costs milliseconds, or is no part of the standard library.
HEAVY = (
    *("argparse", "dataclasses", "datetime", "fnmatch", "gettext", "hashlib", "http", "inspect", "locale", "logging"),
    *(
        "shlex",
        "shutil",
        "ssl",
        "subprocess",
        "tempfile",
        "textwrap",
        "threading",
        "tomllib",
        "typing",
        "urllib",
        "uuid",
    ),
    *("attr", "attrs", "h11", "prometheus_client", "qemu", "structlog", "trio", "wsproto", "rich"),
    *("qsup.unit", "qsup.plan", "qsup.instance", "qsup.qmp", "qsup.host", "qsup.api.wire"),
)


def call(capture: pytest.CaptureFixture[str], *arguments: str) -> Result:
    """Run one command line in this thread."""
    code = main(arguments)
    out, err = capture.readouterr()
    return Result(code=code, out=out, err=err)


async def test_a_start_loads_little(served: Daemon) -> None:
    """Listing VMs loads json, socket and little else."""
    program = (
        "import sys; from qsup.ctl.main import main; code = main(sys.argv[1:]); "
        f"print([name for name in {HEAVY!r} if name in sys.modules]); sys.exit(code)"
    )
    command = [sys.executable, "-S", "-c", program, "--socket", served.served.path, "list"]
    done = await in_thread(
        lambda: subprocess.run(command, capture_output=True, text=True, timeout=10, cwd=Path(__file__).parents[2])
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    """``help`` needs no daemon and lists each verb; ``help VERB`` is what ``VERB --help`` prints."""
    for arguments in (["help"], ["--help"], ["-h"]):
        result = call(capsys, *arguments)
        assert (result.code, result.err) == (0, "")
        assert all(f"\n  {verb} " in result.out for verb in VERBS)
    assert call(capsys, "help", "stop") == call(capsys, "stop", "--help")


def test_an_unknown_verb_is_told_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    """A typing error gets a suggestion and code 2."""
    result = call(capsys, "statuz")
    assert result == Result(
        code=2, out="", err="qsupctl: there is no verb 'statuz'\n  hint: did you mean qsupctl status?\n"
    )


@pytest.mark.parametrize("verb", ["list", "status", "start", "console", "qmp", "events", "wait", "health"])
def test_without_a_daemon_every_verb_says_so(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No daemon: one sentence, how to start it, code 5."""
    arguments = [] if verb in ("list", "events", "health") else ["web"]
    arguments += ["query-status"] if verb == "qmp" else []
    result = call(capsys, verb, *arguments, "--root", str(tmp_path))
    assert result.code == EXIT_UNREACHABLE
    assert result.err == (
        f"qsupctl: no daemon listens at {tmp_path}/run/api.sock\n"
        f"  hint: is its daemon running? start it with: qsupd --root {tmp_path}\n"
    )


def test_the_version_needs_no_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a daemon ``version`` tells its own."""
    result = call(capsys, "version", "--root", str(tmp_path))
    assert (result.code, result.out.splitlines()[1]) == (0, "qsupd   not reachable")


@pytest.mark.parametrize("document", ["[]", "{}", '{"instances": 5}', '{"instances": [{"name": "x"}]}', "null", '"x"'])
@pytest.mark.parametrize("verb", ["list", "status", "show", "cmdline", "operations", "whoami"])
def test_an_answer_of_another_shape_is_told(
    verb: str, document: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A daemon of another version, or no daemon of ours: a sentence with a hint, never a traceback."""
    arguments = ["web"] if verb in ("status", "show", "cmdline") else []
    with peer(tmp_path, [answer(document)] * 3) as daemon:
        result = call(capsys, verb, *arguments, "--socket", daemon.client.address.path)
    assert result.code == 1
    assert "Traceback" not in result.err
    assert result.err.startswith("qsupctl: ")


def test_a_traceback_can_be_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """QSUP_DEBUG=1 shows where something unexpected happened."""
    monkeypatch.setenv("QSUP_DEBUG", "1")
    with peer(tmp_path, [answer("{}")]) as daemon:
        result = call(capsys, "list", "--socket", daemon.client.address.path)
    assert "Traceback" in result.err
    assert "qsupctl: unexpected: KeyError: 'instances'" in result.err


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C at any moment ends the command with 130 and without a word."""

    def interrupt(*arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(list_verb, "run", interrupt)
    assert call(capsys, "list") == Result(code=130, out="", err="")


async def test_an_interrupted_wait_leaves_the_operation(
    served: Daemon, ctl: Ctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while an operation runs says that it goes on."""

    def interrupt(*arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(power, "finish", interrupt)
    result = await ctl("stop", "web")
    assert (result.code, result.out) == (130, "")
    assert "what was begun goes on" in result.err


def test_closed_streams_are_survived(tmp_path: Path) -> None:
    """A caller that closed standard input, output or error gets an exit code, not a crash."""
    for closing in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        shell = f"exec {sys.executable} -m qsup.ctl.main list --root {tmp_path} {closing}"
        done = subprocess.run(["sh", "-c", shell], capture_output=True, timeout=10)
        assert done.returncode == EXIT_UNREACHABLE, closing
        assert b"Traceback" not in done.stderr


def test_lone_surrogates_are_printed_somehow(tmp_path: Path) -> None:
    """Text that is no Unicode does not end in an encoding error."""
    with peer(tmp_path, [answer('{"argv": ["qemu", "\\ud800"], "running": true}')]) as daemon:
        done = run_process("cmdline", "web", "--socket", daemon.client.address.path)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("environ", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {}], ids=["no-color", "dumb", "colour"])
async def test_colours_are_for_terminals(served: Daemon, environ: dict[str, str]) -> None:
    """A terminal gets colours, unless NO_COLOR or a dumb terminal forbids, and lines that fit; a pipe gets none."""
    arguments = ("list", "--socket", served.served.path)
    with terminal(*arguments, environ={**environ, "COLUMNS": "40"}) as shown:
        assert await in_thread(shown.end) == 0
    assert (b"\033[32mactive\033[0m" in shown.seen) == (not environ)
    assert b"2 VMs, 2 active." in shown.seen
    plain = shown.seen.replace(b"\033[32m", b"").replace(b"\033[0m", b"").decode()
    assert max(map(len, plain.splitlines())) <= 40
    piped = await in_thread(lambda: run_process(*arguments, environ=environ))
    assert b"\033" not in piped.stdout
    assert b"2 VMs" not in piped.stdout


async def test_a_person_is_told_that_there_are_problems(served: Daemon) -> None:
    """A unit with errors has no line in the list; that something is missing is said below it, where to look as well."""
    served.backend.problems += ["bad.toml:1: wrong", "the disk is full"]
    with terminal("list", "--socket", served.served.path) as shown:
        assert await in_thread(shown.end) == 0
    assert shown.seen.splitlines()[-1] == b"2 problems: see `qsupctl health`."
