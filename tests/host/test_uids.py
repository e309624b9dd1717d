"""Tests of `qsup.host.uids`: a uid per VM."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsup.errors import HostError
from qsup.host.uids import DEFAULT_RANGE, allocate_uid


@given(st.lists(st.text(), max_size=40, unique=True))
def test_uids_are_never_given_twice(seeds: list[str]) -> None:
    """However many VMs there are, each gets a uid of its own from the range."""
    taken: set[int] = set()
    for seed in seeds:
        uid = allocate_uid(seed, taken=taken, within=range(720_000, 720_040))
        assert uid in range(720_000, 720_040)
        assert uid not in taken
        taken.add(uid)


def test_same_vm_gets_the_same_uid() -> None:
    """The seed decides, so that two daemons which know nothing of each other hardly ever meet."""
    assert allocate_uid("a", taken=()) == allocate_uid("a", taken=()) != allocate_uid("b", taken=())


def test_known_users_are_passed_over() -> None:
    """A uid or gid with a name in passwd or group, such as root's and daemon's, is never given."""
    with pytest.raises(HostError, match="no uid is left in 0-1"):
        allocate_uid("x", taken=(), within=range(2))


def test_exhausted_range_says_so() -> None:
    """When all are taken, the error names the range."""
    with pytest.raises(HostError, match="no uid is left in 720000-729999"):
        allocate_uid("x", taken=DEFAULT_RANGE)
