"""Children for tests: started plainly, without the launcher that is under test."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager


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
    wait = "wait" if reaped else "exec sleep 60"
    with child("/bin/sh", "-c", f'"$@" </dev/null & echo $!; {wait}', "sh", *argv) as parent:
        assert parent.stdout
        yield int(parent.stdout.readline())
