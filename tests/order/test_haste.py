"""When VMs that are all being stopped are cut short."""

from __future__ import annotations

from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsup.order.haste import chain, last_moments
from qsup.unit.graph import Graph
from qsup.unit.sections.service import UnitSection

CHAIN = Graph(
    {
        "db": UnitSection(),
        "web": UnitSection(after=("db",)),
        "shop": UnitSection(after=("web",)),
        "alone": UnitSection(),
    }
)


@pytest.mark.parametrize(
    ("names", "links"),
    [((), 0), (("alone",), 0), (("db", "web", "shop", "alone"), 2), (("db", "shop"), 0), (("db", "web"), 1)],
    ids=str,
)
def test_a_chain_is_as_long_as_those_in_it_are_up(names: Collection[str], links: int) -> None:
    """Whom nobody waits for who is still up keeps nobody."""
    assert chain(names, CHAIN) == links


def test_whoever_holds_others_up_goes_while_there_is_time_for_them() -> None:
    """A slot of half a minute for each, and QEMU's own two seconds at the end; nobody else is cut short before that."""
    moments = last_moments(("db", "web", "shop", "alone"), CHAIN, links=2, began=0.0, until=300.0)
    assert {name: (each.quit, each.kill) for name, each in moments.items()} == {
        "shop": (238.0, 253.0),
        "web": (268.0, 283.0),
        "db": (298.0, 300.0),
        "alone": (298.0, 300.0),
    }


@given(st.floats(0, 1000), st.floats(0, 4000), st.integers(1, 50))
def test_whatever_the_time_each_is_told_before_it_is_killed(began: float, seconds: float, length: int) -> None:
    """And before the next is to be, and half the time goes by before anybody is cut short."""
    names = [f"vm-{number:03}" for number in range(length)]
    units = {name: UnitSection(after=tuple(names[number - 1 : number])) for number, name in enumerate(names)}
    graph = Graph(units)
    until = began + seconds
    moments = last_moments(names, graph, links=chain(names, graph), began=began, until=until)
    assert min(each.quit for each in moments.values()) >= began + 0.4 * seconds - 1e-6
    for earlier, later in zip(reversed(names), reversed(names[:-1]), strict=False):
        assert moments[earlier].quit <= moments[earlier].kill <= moments[later].quit + 1e-6
    assert all(each.kill <= until + 1e-6 for each in moments.values())
