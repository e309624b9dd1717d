"""A uid of its own for each VM's QEMU.

Decides: which uid of the range a VM gets.
Must not: store it (the identity does) or change credentials (the launcher does).
"""

from __future__ import annotations

import grp
import hashlib
import pwd
from collections.abc import Collection

from qsup.errors import HostError

#: Above what adduser(8) gives to people and services.
DEFAULT_RANGE = range(720_000, 730_000)


def allocate_uid(seed: str, *, taken: Collection[int], within: range = DEFAULT_RANGE) -> int:
    """A uid that no known VM has and that /etc/passwd and /etc/group (or what NSS adds) do not name.

    The search starts at a place that the seed decides, so that the VMs of two daemons on one machine, who know
    nothing of each other, hardly ever meet.

    Args:
        seed: the VM's UUID.
        taken: the uids of all known VMs.

    Raises:
        HostError: none is left.
    """
    start = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big") % len(within)
    for offset in range(len(within)):
        uid = within[(start + offset) % len(within)]
        if uid not in taken and not _is_known(uid):
            return uid
    raise HostError(
        f"no uid is left in {within.start}-{within.stop - 1} for another VM", hint="widen the range, or remove VMs"
    )


def _is_known(number: int) -> bool:
    for lookup in (pwd.getpwuid, grp.getgrgid):
        try:
            lookup(number)
        except KeyError:
            continue
        return True
    return False
