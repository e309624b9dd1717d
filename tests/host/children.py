"""Children for tests: started plainly, without the launcher that is under test."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qsup.host import proc


@contextmanager
def child(*argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """A child with pipes for its standard input and output; killed and reaped at the end of the block."""
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def grandchild(*argv: str, reaped: bool = True) -> Iterator[int]:
    """The pid of a process that is not our child; its parent reaps it, or leaves it a zombie."""
    parent_then = "wait" if reaped else "exec cat"
    with child("/bin/sh", "-c", f'"$@" </dev/null & echo $!; {parent_then}', "sh", *argv) as parent:
        assert parent.stdin
        assert parent.stdout
        pid = int(parent.stdout.readline())
        if not reaped:  # a shell might still reap it; what cat echoes shows that the shell is no more
            parent.stdin.write(b"cat?\n")
            parent.stdin.flush()
            assert parent.stdout.readline() == b"cat?\n"
        yield pid


def is_stopped(pid: int) -> bool:
    """Whether a process has been stopped by a signal."""
    now = proc.read_stat(pid)
    return now is not None and now.state == "T"


def children() -> list[str]:
    """The pids of our present children, zombies included."""
    return [pid for thread in threads() for pid in own("children", thread).split()]


def threads() -> list[str]:
    """The numbers of our threads; any but the main one may end at any time."""
    return [path.name for path in Path("/proc/self/task").iterdir()]


def own(name: str, thread: str) -> str:
    """What /proc says of one of our threads, ``""`` of one that has ended."""
    try:
        return Path("/proc/self/task", thread, name).read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
