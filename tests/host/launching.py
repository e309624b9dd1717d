"""Running programs through the launcher, for its tests.

Decides: how a child's output is kept and its end waited for.
Must not: assert anything.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import trio

from qsup.host.pidfd import ExitStatus
from qsup.host.process import Credentials, spawn

VM_USER = Credentials(uid=720_123, gid=720_123)


class Printed:
    """A file for a child's output."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("printed")

    @property
    def text(self) -> str:
        """All that was printed."""
        return os.pread(self.fd, 1 << 20, 0).decode()


async def run(
    printed: Printed,
    script: str,
    *,
    fds: Sequence[int] = (),
    credentials: Credentials | None = None,
    kvm_node: bool = False,
    lockable: int = 0,
    hugepages: bool = True,
    nofile: int = 0,
) -> ExitStatus:
    """Run a shell script through the chain, to its end."""
    with trio.fail_after(10):
        started = await spawn(
            ["/bin/sh", "-c", script],
            fds=fds,
            output_fd=printed.fd,
            credentials=credentials,
            kvm_node=kvm_node,
            lockable=lockable,
            hugepages=hugepages,
            nofile=nofile,
        )
        status = await started.wait_exit()
        await started.aclose()
    return status
