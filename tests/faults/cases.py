"""The cases of the campaign.

Decides: which there are, what is promised of each, and how often each is tried.
Must not: try anything. A case's tests are those of `tests/real` whose names begin with its own, such as
``test_t5_...`` (``test_random_ends_...``); each is as long as the test run can bear, and repeats itself as often as the
campaign wants.
"""

from __future__ import annotations

import re

from attrs import frozen


@frozen(kw_only=True)
class Case:
    """One case.

    Args:
        name: such as ``T5``.
        fault: what is done to qsup.
        promise: what must hold all the same.
        tries: how often its tests that repeat a fault do so, unless the command line says otherwise.
        repeat: how often each of its other tests is run, likewise.
    """

    name: str
    fault: str
    promise: str
    tries: int = 0
    repeat: int = 3


_NAME = re.compile(r"(?:::|^)test_(t\d+|random(?=_ends))_")

CASES = {
    case.name: case
    for case in (
        Case(
            name="T1",
            fault="daemon SIGKILLed at the n-th openat, write, fsync, rename, clone, connect... of a start",
            promise="within 5 s of a restart the VM runs and obeys, or nothing of it is there",
            tries=200,
        ),
        Case(
            name="T2",
            fault="20 idle VMs, daemon SIGKILLed",
            promise="the same processes, all under control within 3 s",
            tries=20,
        ),
        Case(
            name="T3",
            fault="QEMU of an adopted VM SIGKILLed",
            promise="the first event within 100 ms, with the cause; then `crashed`, or what the restart policy says",
            tries=50,
        ),
        Case(
            name="T4",
            fault="a record that names the pid of a living stranger, of the VM's own user",
            promise="never signalled; the VM is down",
            repeat=5,
        ),
        Case(
            name="T5",
            fault="SIGSTOP of 3 of 5 QEMUs",
            promise="`unresponsive` within 10 s, every answer within 1 s, force stop within 2 s",
            repeat=5,
        ),
        Case(
            name="T6",
            fault="records empty, truncated, random, 100 MB, 10,000 deep, links...",
            promise="the daemon starts, those VMs alone are quarantined, nothing is deleted",
            repeat=5,
        ),
        Case(
            name="T7",
            fault="full disks",
            promise="ENOSPC is named, nothing is torn, other VMs are fine, room is enough to go on",
            repeat=5,
        ),
        Case(
            name="T12",
            fault="malformed, endless and deep requests",
            promise="a problem or an end within 20 s each; memory grows < 16 MiB",
        ),
        Case(
            name="T13",
            fault="200 idle connections, a subscriber that never reads",
            promise="evicted; p99 of the others < 50 ms",
        ),
        Case(
            name="T15",
            fault="hostile guest agents",
            promise="the call fails within 5 s, the next one works; memory grows < 32 MiB at any moment",
        ),
        Case(
            name="T17",
            fault="hostile QMP",
            promise="that VM fails with the cause named; the others do not notice; memory grows < 96 MiB at any moment",
        ),
        Case(
            name="T18",
            fault="64 descriptors, VMs started until there are none left",
            promise="errors that say so; after all are stopped as many descriptors as before, give or take 5",
            repeat=5,
        ),
        Case(
            name="T20",
            fault="a look at QEMU's process",
            promise="its own uid, no capability, no new privileges, seccomp, no core, its own descriptors only",
        ),
        Case(
            name="random",
            fault="daemon ended by SIGKILL or SIGTERM at random moments of starts, stops, pauses, restarts, crashes...",
            promise="0 lost, 0 orphans, 0 ghosts; what was asked for is done or said to have failed",
            tries=500,
        ),
    )
}


def case_of(test: str) -> Case | None:
    """The case that a test belongs to, by its name or its node id."""
    found = _NAME.search(test)
    if not found:
        return None
    name = found[1]
    return CASES.get(name if name == "random" else name.upper())
