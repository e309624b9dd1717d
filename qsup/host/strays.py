"""QEMUs of ours that no record names: somebody removed the records, or another daemon's are elsewhere.

Decides: by which words of its command line a process is a certain VM's.
Must not: signal one, or take it over: that it looks like ours proves nothing.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Container, Mapping

from qsup.host import proc


def find(uuids: Mapping[str, str], uids: Container[int]) -> dict[str, int]:
    """The VMs of which there is a process, with its pid; that of a VM which a daemon knows is one, too.

    Args:
        uuids: name -> UUID of the VMs to look for.
        uids: whom such a process may run as: anybody can write anything into his own command line.
    """
    wanted = {(uuid, name): name for name, uuid in uuids.items()}
    found: dict[str, int] = {}
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        if proc.uid(pid) in uids and (name := wanted.get(_identity(proc.command_line(pid)))):
            found[name] = pid
    return found


def _identity(command_line: str) -> tuple[str, str]:
    """UUID and name by ``-uuid`` and ``-name guest=...``, as `qsup.plan.argv` writes them."""
    values = dict(itertools.pairwise(command_line.split("\0")))
    return values.get("-uuid", ""), values.get("-name", "").partition(",")[0].removeprefix("guest=")
