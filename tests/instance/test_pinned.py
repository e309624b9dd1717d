"""Tests of `qsup.instance.pinned`: from the CPUs of vCPUs to the vCPUs of CPUs."""

from __future__ import annotations

from qsup.instance.pinned import Pinned, by_cpu


def test_who_is_pinned_to_a_cpu() -> None:
    """Each vCPU once, in the order of names and numbers; one that floats is nowhere."""
    found = by_cpu({"web": ({3, 2}, (2, 2), ()), "db": ([2],), "idle": ()})
    assert list(found.items()) == [
        (2, (Pinned("db", 0), Pinned("web", 0), Pinned("web", 1))),
        (3, (Pinned("web", 0),)),
    ]
