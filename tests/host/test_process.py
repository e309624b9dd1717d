"""Tests of `qsup.host.process`: what the launcher chain makes of the daemon's child."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from qsup.errors import HostError, StartError
from qsup.host import proc, process
from qsup.host.pidfd import ExitStatus
from qsup.host.process import Credentials, adopt, launch_chain, launch_failure, run_tool, spawn
from tests.host.children import child, children
from tests.host.launching import VM_USER, Printed, run

LIBC_SIGNALS = 0b11 << 31  # 32 and 33, which belong to the C library and cannot be set


async def test_pid_stays_the_same(printed: Printed) -> None:
    """The pid known at the spawn is the program's own: the chain is made of execs alone."""
    with trio.fail_after(10):
        started = await spawn(["/bin/sh", "-c", "echo $$"], output_fd=printed.fd)
        assert started.start_time == proc.start_time(started.pid)
        assert (await started.wait_exit()).success
    assert printed.text == f"{started.pid}\n"
    assert started.status == ExitStatus(kind="code", value=0)
    await started.aclose()


async def test_environment_is_clean(printed: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the daemon's environment reaches the program."""
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/x")
    monkeypatch.setenv("SECRET", "x")
    await run(printed, "exec env")
    names = {line.partition("=")[0] for line in printed.text.splitlines()}
    assert names <= {"PATH", "LANG", "HOME", "PWD", "_", "SHLVL", "OLDPWD"}


async def test_descriptors_are_those_given(printed: Printed) -> None:
    """Only the descriptors named are inherited, under their numbers, though others be inheritable by mistake."""
    given, stray = os.memfd_create("given"), os.memfd_create("stray")
    os.set_inheritable(stray, True)
    os.write(given, b"handed over")
    await run(printed, f"ls /proc/$$/fd; cat /proc/self/fd/{given}; readlink /proc/$$/fd/0", fds=[given])
    os.close(given)
    os.close(stray)
    lines = printed.text.replace("handed over", "").split()
    assert "handed over" in printed.text
    assert "/dev/null" in lines
    assert {int(line) for line in lines if line.isdecimal()} == {0, 1, 2, given}


async def test_memory_may_be_locked_by_who_needs_that(printed: Printed) -> None:
    """As much as is asked, and by nobody else; one that runs can be allowed it later, and is never allowed less."""
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    less, size = 64 << 10, 1 << 20
    # what is allowed at most may be all that we are, so we begin with less
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (less, before[1]))
    try:
        await run(printed, "ulimit -S -l", lockable=size)
        assert printed.text == f"{size >> 10}\n"
        assert resource.getrlimit(resource.RLIMIT_MEMLOCK) == (less, before[1])
        with child("/bin/sleep", "60") as sleeper:
            process.let_lock(sleeper.pid, size)
            assert resource.prlimit(sleeper.pid, resource.RLIMIT_MEMLOCK) == (size, before[1])
            process.let_lock(sleeper.pid, less)
            assert resource.prlimit(sleeper.pid, resource.RLIMIT_MEMLOCK) == (size, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, before)


@pytest.mark.parametrize(("size", "words"), [(3 << 20, "3 MiB of memory"), (process.ANY_AMOUNT, "all of its memory")])
async def test_memory_that_the_daemon_may_not_let_it_lock(
    printed: Printed, monkeypatch: pytest.MonkeyPatch, size: int, words: str
) -> None:
    """Nothing is started then, and the error says what to do."""

    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (64 << 10, 64 << 10))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    with pytest.raises(HostError, match=f"could not let it lock {words}") as caught:
        await run(printed, "echo here", lockable=size)
    assert (caught.value.hint, printed.text) == ("raise LimitMEMLOCK of the daemon", "")


@pytest.mark.parametrize("hugepages", [True, False])
async def test_huge_pages_that_come_by_themselves(printed: Printed, hugepages: bool) -> None:
    """Who is to have none has none, nor has what it starts; the daemon's own are as they were."""
    await run(printed, "sh -c 'grep THP_enabled /proc/self/status || true'", hugepages=hugepages)
    if not printed.text:
        pytest.skip("this kernel does not say who has them")
    assert printed.text.split() == ["THP_enabled:", str(int(hugepages))]
    await run(printed, f"grep THP_enabled /proc/{os.getpid()}/status")
    assert printed.text.split()[2:] == ["THP_enabled:", "1"]


async def test_session_of_its_own(printed: Printed) -> None:
    """The program leads a session of its own: no terminal's signal reaches it."""
    await run(printed, 'cut -d" " -f6 /proc/$$/stat; echo $$')
    session, pid = printed.text.split()
    assert session == pid


SETTLED = """
import subprocess
from qsup.host import process
process.settle()
subprocess.run(["sh", "-c", "ulimit -Hc; umask; pwd"], check=True)
"""


def test_place_that_children_inherit(tmp_path: Path) -> None:
    """What a settled daemon starts may not dump core, has umask 077, and stands in the root directory."""
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"]}
    told = subprocess.check_output(
        [sys.executable, "-c", SETTLED], cwd=tmp_path, env=environment, text=True, timeout=20
    )
    assert told.split() == ["0", "0077", "/"]


async def test_signals_are_at_their_defaults(printed: Printed) -> None:
    """What Python ignores, the program does not."""
    await run(printed, "exec grep -E '^Sig(Ign|Blk)' /proc/self/status")  # a shell blocks some while it forks
    blocked, ignored = (int(mask, 16) for mask in printed.text.split()[1::2])
    assert blocked == 0
    assert ignored & ~LIBC_SIGNALS == 0


async def test_no_new_privileges_for_anybody(printed: Printed) -> None:
    """The caller's own programs cannot gain privileges either."""
    await run(printed, "grep NoNewPrivs /proc/$$/status")
    assert printed.text.split() == ["NoNewPrivs:", "1"]


@pytest.mark.root
async def test_user_without_rights(printed: Printed) -> None:
    """As another user, no group, no capability and no way to gain one is left."""
    status = await run(printed, "grep -E '^(Uid|Gid|Groups|Cap|NoNew)' /proc/$$/status", credentials=VM_USER)
    assert status.success
    fields = {line.partition(":")[0]: line.partition(":")[2].split() for line in printed.text.splitlines()}
    assert fields["Uid"] == fields["Gid"] == ["720123"] * 4
    assert fields["Groups"] == []
    assert {name: value for name, value in fields.items() if name.startswith("Cap")} == {
        name: ["0000000000000000"] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    }
    assert fields["NoNewPrivs"] == ["1"]


async def test_missing_program_is_the_launchers_failure(printed: Printed) -> None:
    """A program that cannot be executed is told from one that fails, with the reason."""
    with trio.fail_after(10):
        started = await spawn(["/nonexistent/qemu"], output_fd=printed.fd)
        status = await started.wait_exit()
        await started.aclose()
    failure = launch_failure(status, printed.text)
    assert failure
    assert failure.startswith("the launcher could not start the program: setpriv: failed to execute /nonexistent/qemu")


@pytest.mark.parametrize(
    ("status", "output"),
    [
        (ExitStatus(kind="code", value=1), "setpriv: setresuid failed: Operation not permitted\n"),
        (ExitStatus(kind="code", value=126), "setpriv: failed to execute /usr/bin/qemu: Permission denied\n"),
        (ExitStatus(kind="code", value=127), ""),
    ],
)
def test_chain_failures_are_recognised(status: ExitStatus, output: str) -> None:
    """Each link's failure is recognised, with its words where it had any."""
    failure = launch_failure(status, output)
    assert failure
    assert failure.endswith(output.strip() or "exit code 127")


@pytest.mark.parametrize(
    ("status", "output"),
    [
        (ExitStatus(kind="code", value=1), "qemu-system-x86_64: -m 1X: Parameter 'size' expects a size\n"),
        (ExitStatus(kind="code", value=1), "setpriv: odd\nqemu-system-x86_64: no\n"),
        (ExitStatus(kind="code", value=0), "setpriv: something in passing\n"),
        (ExitStatus(kind="signal", value=6), "setpriv: odd\n"),
        (ExitStatus(kind="unknown"), ""),
    ],
)
def test_qemus_own_failures_are_not_the_launchers(status: ExitStatus, output: str) -> None:
    """What QEMU says and how it dies is its own failure."""
    assert launch_failure(status, output) is None


def test_chain_of_a_root_daemon() -> None:
    """The chain keeps the program's argv whole, however it looks."""
    argv = ["/usr/bin/qemu", "-name", "a b; $(x)", "--", "-x"]
    chain = launch_chain(argv, credentials=VM_USER)
    assert chain[-len(argv) - 1 :] == ["--", *argv]
    assert chain[0] == "setpriv"
    assert launch_chain(argv, credentials=VM_USER, nofile=100) == ["prlimit", "--nofile=100:100", *chain]


async def test_files_are_limited(printed: Printed) -> None:
    """Those of the program; where its user may not have so many, that is the launcher's failure in its own words."""
    assert (await run(printed, "ulimit -n; ulimit -Hn", nofile=100)).success
    assert printed.text == "100\n100\n"
    words = "prlimit: failed to set the NOFILE resource limit: Operation not permitted"
    failed = ExitStatus(kind="code", value=1)
    assert launch_failure(failed, words) == f"the launcher could not start the program: {words}"


async def spawn_mortal() -> None:
    """Spawn a program that is to end with us, and say which."""
    started = await spawn(["/bin/sleep", "1000"], output_fd=2, mortal=True, credentials=user_of_the_vm())
    print(started.pid, flush=True)
    await trio.sleep_forever()


def user_of_the_vm() -> Credentials | None:
    """Another user where we may choose one: a change of the uid clears the signal that is asked for."""
    return VM_USER if os.geteuid() == 0 else None


def test_mortal_program_ends_with_whoever_spawned_it() -> None:
    """Also when that one is killed and can end nothing itself."""
    command = [sys.executable, "-c", "import trio; from tests.host.test_process import *; trio.run(spawn_mortal)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        watch = os.pidfd_open(int(parent.stdout.readline()))
        assert not select.select([watch], [], [], 0)[0]
        parent.kill()
        assert select.select([watch], [], [], 10)[0]
    os.close(watch)


def test_mortal_program_is_not_begun_by_an_orphan() -> None:
    """Whoever spawned it may have died before the kernel was asked for the signal."""
    begun, orphaned = (
        subprocess.run(launch_chain(["/bin/echo", "begun"], parent=pid), capture_output=True, check=False)
        for pid in (os.getpid(), os.getppid())
    )
    assert (begun.stdout, orphaned.stdout, orphaned.returncode) == (b"begun\n", b"", 1)


async def test_launcher_that_cannot_be_executed(printed: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the chain's first program is missing, the spawn fails at once."""
    monkeypatch.setattr(process, "launch_chain", lambda argv, **_: ["no-such-launcher", *argv])
    with pytest.raises(StartError, match="could not execute no-such-launcher: No such file or directory"):
        await spawn(["/bin/true"], output_fd=printed.fd)


async def test_adopts_the_recorded_process_only() -> None:
    """A process is found again by pid, start time and boot; any other is not."""
    with child("/bin/sleep", "60") as sleeper:
        start = proc.start_time(sleeper.pid)
        assert start
        found = adopt(sleeper.pid, start, proc.boot_id())
        assert found
        assert adopt(sleeper.pid, start + 1, proc.boot_id()) is None
        sleeper.returncode = 0  # the pidfd reaps it
        found.send_signal(signal.SIGKILL)
        with trio.fail_after(5):
            assert (await found.wait_exit()).describe() == "signal KILL"
        await found.aclose()


async def test_closing_leaves_the_process_running(printed: Printed) -> None:
    """Giving up the watch harms nobody; the process can be found again and ended."""
    started = await spawn(["/bin/sleep", "60"], output_fd=printed.fd)
    pid, start = started.pid, started.start_time
    await started.aclose()
    found = adopt(pid, start, proc.boot_id())
    assert found
    assert found.send_signal(signal.SIGKILL)
    with trio.fail_after(5):
        await found.wait_exit()
    await found.aclose()


async def test_tool_gives_its_output() -> None:
    """A tool's output comes back; its failure holds its last line; its time is bounded and it does not outlive it."""
    assert await run_tool(["/bin/echo", "hello"], seconds=5) == "hello\n"
    with pytest.raises(HostError, match=r"sh failed \(exit code 2\): second"):
        await run_tool(["/bin/sh", "-c", "echo first; echo second >&2; exit 2"], seconds=5)
    with pytest.raises(HostError, match=r"sleep took longer than 0\.05 s"):
        await run_tool(["/bin/sleep", "60"], seconds=0.05)
    with pytest.raises(HostError, match="failed to execute /nonexistent/tool"):
        await run_tool(["/nonexistent/tool"], seconds=5)


async def test_cancelled_tool_is_killed() -> None:
    """A tool whose caller is cancelled is killed and reaped before the cancellation goes on."""
    with trio.move_on_after(0.05):
        await run_tool(["/bin/sleep", "4242.42"], seconds=60)
    assert not [line for line in command_lines_of_children() if "4242.42" in line]


def command_lines_of_children() -> list[str]:
    """What our present children are."""
    return [Path(f"/proc/{pid}/cmdline").read_text() for pid in children()]
