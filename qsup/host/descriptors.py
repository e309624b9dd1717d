"""How many descriptors this process may have, and how many of them are left.

Decides: that the daemon may have as many as the host allows, and how the lack of descriptors is put into words.
Must not: close anything, or choose who has to go without.

What is started inherits the raised soft limit. That is for programs that use select(2), which QEMU does not: newer ones
(10.0) raise their own in the same way. The hard limit stays what it was.

Source: getrlimit(2).
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

from qsup.errors import HostError

#: Beyond this a process gains nothing from a higher limit, and whoever goes through all numbers takes long.
_MOST = 1 << 20

#: What the daemon itself must always be able to open: to reconnect a monitor, read /proc, tidy up after a VM.
KEPT = 12

_OWN = "/proc/self/fd"
_reservations: list[int] = []


def raise_limit() -> None:
    """Raise our soft limit as far as we may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limit() -> int:
    """How many this process may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def used() -> int:
    """How many this process has open; as many as it may have where there is none left to count them with."""
    try:
        # from Linux 6.2 on the size of that directory is their number, and asking needs no further one
        return os.stat(_OWN).st_size or len(os.listdir(_OWN)) - 1
    except OSError:
        return limit()


@contextmanager
def held(count: int) -> Iterator[None]:
    """Hold as many descriptors, so that their lack shows before it does harm.

    Raises:
        OSError: there are fewer left.
    """
    taken: list[int] = []
    try:
        while len(taken) < count:
            # copies of the first: half of what opening each takes
            taken.append(os.dup(taken[0]) if taken else os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        yield
    finally:
        for fd in taken:
            os.close(fd)


def are_left(count: int) -> bool:
    """Whether as many can be had now."""
    try:
        with held(count):
            return True
    except OSError:
        return False


@contextmanager
def reserved(count: int, doing: str, *, beside: int) -> Iterator[None]:
    """Keep descriptors for something that takes its time and will open them one by one.

    Args:
        doing: what they are for, such as ``start another VM``.
        beside: what must be left besides, and besides what others have reserved.

    Raises:
        HostError: there are not so many; the message names the limit.
    """
    needed = count + beside + sum(_reservations)
    if not are_left(needed):
        words = f"fewer than {needed} file descriptors are left of the daemon's {limit()} (RLIMIT_NOFILE)"
        raise HostError(
            f"could not {doing}: {words}",
            hint="stop other VMs, or raise the daemon's limit: LimitNOFILE= in its service, or `ulimit -n`",
            errno="EMFILE",
        )
    with promised(count):
        yield


@contextmanager
def promised(count: int) -> Iterator[None]:
    """Have descriptors count as reserved, left or not: they will be opened for something that is there already."""
    _reservations.append(count)
    try:
        yield
    finally:
        _reservations.remove(count)
