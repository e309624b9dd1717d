"""What a unit's pins mean for each thread."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsup.plan.pinning import ANYWHERE, Pins

VCPUS, OTHERS = {0: 11, 1: 12}, (10, 13)
THREADS = (*OTHERS, *VCPUS.values())


TWO = Pins((frozenset({2}), frozenset({3})), frozenset({0}))


@pytest.mark.parametrize(
    ("pins", "vcpus", "others", "start"),
    [
        (Pins(), [{}, {}], {}, {}),
        (TWO, [{2}, {3}], {0}, {0, 2, 3}),
        (Pins((frozenset({2, 3}),), frozenset({2, 3})), [{2, 3}, {2, 3}], {2, 3}, {2, 3}),
        # its vCPUs may run anywhere, and so QEMU must not begin anywhere else
        (Pins((), frozenset({0})), [{}, {}], {0}, {}),
    ],
)
def test_every_thread_has_its_cpus(pins: Pins, vcpus: list[set[int]], others: set[int], start: set[int]) -> None:
    """Of a vCPU its own, of all else those of the emulator."""
    wanted = pins.of_threads(VCPUS, {}, THREADS)
    assert [wanted[thread] for thread in VCPUS.values()] == [frozenset(each) for each in vcpus]
    assert {wanted[thread] for thread in OTHERS} == {frozenset(others)}
    assert pins.start == frozenset(start)
    assert bool(pins) is (pins != Pins())


def test_vcpus_that_share_a_thread_may_run_where_any_of_them_may() -> None:
    """TCG without MTTCG has one thread for all."""
    assert TWO.of_threads({0: 11, 1: 11}, {}, (10, 11))[11] == {2, 3}
    assert TWO.of_threads({0: 11, 1: 11, 2: 11}, {}, (10, 11))[11] == ANYWHERE, "one of them is nowhere in particular"


def test_an_iothread_has_cpus_of_its_own_or_those_of_the_emulator() -> None:
    """By its id, whichever thread it is; one that nobody knows is a thread like others."""
    pins = Pins((frozenset({2}),), frozenset({0}), {"fast": frozenset({4, 5})})
    wanted = pins.of_threads({0: 11}, {13: "fast", 14: "plain"}, (10, 11, 13, 14, 15))
    assert wanted == {10: {0}, 11: {2}, 13: {4, 5}, 14: {0}, 15: {0}}
    alone = Pins(iothreads={"fast": frozenset({4})})
    assert alone.of_threads({0: 11}, {13: "fast"}, (11, 13)) == {11: ANYWHERE, 13: {4}}
    assert alone
    assert alone.start == ANYWHERE, "its vCPUs may run anywhere, and so QEMU must not begin anywhere else"


def test_a_vcpu_has_the_cpus_of_its_number() -> None:
    """Whichever others have gone."""
    assert TWO.of_threads({1: 12}, {}, THREADS)[12] == {3}


def test_a_vcpu_that_nobody_speaks_of_runs_anywhere() -> None:
    """QEMU has one more than its unit says, by its own monitor."""
    assert TWO.of_threads({**VCPUS, 2: 14}, {}, (*THREADS, 14))[14] == ANYWHERE


@given(
    st.lists(st.frozensets(st.integers(0, 9), min_size=1), max_size=4),
    st.frozensets(st.integers(0, 9)),
    st.dictionaries(st.integers(0, 5), st.integers(1, 9), max_size=4),
    st.frozensets(st.integers(1, 9)),
)
def test_only_threads_that_are_there_are_spoken_of(
    sets: list[frozenset[int]], emulator: frozenset[int], vcpus: dict[int, int], threads: frozenset[int]
) -> None:
    """Whatever QEMU says of its threads, and each is to be within all that the unit names."""
    pins = Pins(tuple(sets), emulator)
    wanted = pins.of_threads(vcpus, {}, threads)
    assert wanted.keys() == threads
    assert all(cpus <= emulator.union(*sets) for cpus in wanted.values())


def test_helpers_are_where_other_threads_are() -> None:
    """Unless something is said of them alone."""
    assert Pins((), frozenset({0})).of_helpers == {0}
    assert Pins((), frozenset({0}), helper=frozenset({3})).of_helpers == {3}
    alone = Pins(helper=frozenset({3}))
    assert alone
    assert alone.of_helpers == {3}
    assert Pins((frozenset({2}),)).of_helpers == ANYWHERE
