"""How VMs relate: the order of starts and stops, what a start pulls in, and cycles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsup.errors import DependencyError, NoSuchUnit
from qsup.unit.graph import MAX_PULLED, Graph, pull, shown_cycle
from qsup.unit.load import load_catalog
from qsup.unit.sections.service import UnitSection
from qsup.unit.specifier import SpecifierContext
from qsup.unit.verify import verify_files

NAMES = ("a", "b", "c", "d", "e", "f", "g")
Units = dict[str, UnitSection]


def unit(**relations: str) -> UnitSection:
    """A section from words: ``after="a b"``."""
    named: dict[str, Any] = {key: tuple(names.split()) for key, names in relations.items()}
    return UnitSection(**named)


def finder(units: Units) -> Callable[[str], UnitSection]:
    """A way to find these units and no others."""

    def find(name: str) -> UnitSection:
        if name not in units:
            raise NoSuchUnit(f"no unit {name!r}")
        return units[name]

    return find


def pulled(units: Units, *roots: str) -> tuple[str, ...]:
    """What a start of some pulls in, in its order."""
    return pull(roots, finder(units)).names


def names() -> st.SearchStrategy[tuple[str, ...]]:
    """A few names, one of them of nobody."""
    return st.lists(st.sampled_from((*NAMES, "nobody")), max_size=3, unique=True).map(tuple)


def sections() -> st.SearchStrategy[UnitSection]:
    """Any relations whatever."""
    return st.builds(UnitSection, after=names(), before=names(), requires=names(), wants=names(), conflicts=names())


def graphs() -> st.SearchStrategy[Units]:
    """Units with any relations to each other, cycles among them."""
    return st.dictionaries(st.sampled_from(NAMES), sections(), min_size=1)


def said(units: Units, name: str) -> set[str]:
    """Those that the units themselves say come before one, by either key."""
    before = {other for other, each in units.items() if name in each.before}
    return ((set(units[name].after) | before) & set(units)) - {name}


def test_the_order_obeys_both_keys_and_else_goes_by_name() -> None:
    """`after` and `before` say the same from two sides; those that nothing orders go by name."""
    graph = Graph({"web": unit(after="db"), "db": unit(), "storage": unit(before="db"), "cache": unit()})
    assert graph.order(["web", "db", "storage", "cache"]) == ("cache", "storage", "db", "web")
    assert (graph.earlier("db"), graph.later("db")) == ({"storage"}, {"web"})
    # what stands between the two is not there, and so orders nothing
    assert graph.order(["web", "storage"]) == ("storage", "web")
    assert Graph({"web": unit(after="gone", before="gone")}).order(["web"]) == ("web",)


@given(graphs(), st.sets(st.sampled_from(NAMES)))
def test_every_edge_is_obeyed_and_nobody_comes_twice(units: Units, some: set[str]) -> None:
    """Each VM that is asked for is in the order once, behind all it is after, but for cycles."""
    graph = Graph(units)
    wanted = some & set(units)
    order = graph.order(wanted)
    assert sorted(order) == sorted(wanted)
    for position, name in enumerate(order):
        assert not graph.earlier(name) & set(order[position:])
        if not graph.cycles():
            assert graph.earlier(name) == said(units, name)


@given(graphs())
def test_the_order_does_not_depend_on_how_the_units_come(units: Units) -> None:
    """The same units in another order are the same graph."""
    other = dict(reversed(list(units.items())))
    assert Graph(units).order(units) == Graph(other).order(reversed(list(units)))
    assert Graph(units).cycles() == Graph(other).cycles()


@given(graphs())
def test_a_cycle_is_one(units: Units) -> None:
    """Each cycle is made of edges that the units say, and where none is found every edge can be obeyed."""
    graph = Graph(units)
    for cycle in graph.cycles():
        assert len(set(cycle)) == len(cycle) > 1
        for name, other in zip(cycle, (*cycle[1:], cycle[0]), strict=True):
            assert other in said(units, name)
    # an edge of a cycle orders nothing, every other does
    dropped = {(n, o) for n in units for o in said(units, n) if o not in graph.earlier(n)}
    assert bool(dropped) == bool(graph.cycles())


def test_a_cycle_is_shown_whole() -> None:
    """A knot is told by a shortest cycle through its first VM."""
    graph = Graph(
        {"a": unit(after="b"), "b": unit(after="c d"), "c": unit(after="d"), "d": unit(before="c", after="a")}
    )
    assert [shown_cycle(cycle) for cycle in graph.cycles()] == ["a -> b -> d -> a"]


def test_a_start_pulls_in_what_is_required_and_wanted() -> None:
    """Over any number of steps, in their order; what only orders is not pulled in."""
    units = {
        "web": unit(requires="db", wants="cache", after="db other"),
        "db": unit(requires="storage", after="storage"),
        "storage": unit(),
        "cache": unit(before="web"),
        "other": unit(),
    }
    assert pulled(units, "web") == ("cache", "storage", "db", "web")
    assert pulled(units, "storage") == ("storage",)
    # requires alone orders nothing
    assert pulled({"a": unit(requires="z"), "z": unit()}, "a") == ("a", "z")


def test_what_is_required_and_missing_fails_and_what_is_wanted_is_left_out() -> None:
    """A missing VM is told through all that require it; who only wants one of those goes without."""
    units = {"web": unit(requires="db"), "db": unit(requires="storage"), "shop": unit(wants="web gone", after="gone")}
    with pytest.raises(DependencyError, match="it requires db: it requires storage: no unit 'storage'") as caught:
        pulled(units, "web")
    assert caught.value.instance == "web"
    found = pull(["shop"], finder(units))
    assert found.names == ("shop",)
    assert found.left_out == {
        "web": "it requires db: it requires storage: no unit 'storage'",
        "gone": "no unit 'gone'",
    }
    with pytest.raises(NoSuchUnit):
        pulled(units, "gone")


def test_a_start_that_runs_into_a_cycle_is_refused() -> None:
    """The whole cycle is named; of the same VMs those that are started without the others are not concerned."""
    units = {"a": unit(requires="b", after="b"), "b": unit(after="a"), "c": unit(wants="a")}
    for root in ("a", "c"):
        with pytest.raises(DependencyError, match="a -> b -> a") as caught:
            pulled(units, root)
        assert caught.value.details["cycle"] == ["a", "b"]
    assert pulled(units, "b") == ("b",)


def test_a_start_does_not_need_what_excludes_each_other() -> None:
    """Two that conflict are refused when both are required; a wanted one is left out, with what it alone wanted."""
    units = {"web": unit(requires="a", wants="b"), "a": unit(), "b": unit(conflicts="a", wants="c"), "c": unit()}
    found = pull(["web"], finder(units))
    assert found.names == ("a", "web")
    assert found.left_out == {"b": "it conflicts with a"}
    units["web"] = unit(requires="a b")
    with pytest.raises(DependencyError, match=r"a conflicts with b|b conflicts with a"):
        pulled(units, "web")


def test_a_template_that_names_itself_for_ever_is_bounded() -> None:
    """Each instance requires two further ones: the start is refused, not carried out until memory ends."""
    with pytest.raises(DependencyError, match=f"more than {MAX_PULLED}"):
        pull(["x"], lambda name: unit(requires=f"{name}1 {name}2"))


@given(graphs(), st.sampled_from(NAMES))
def test_whatever_is_pulled_in_has_what_it_requires(units: Units, root: str) -> None:
    """A start comes to VMs whose requirements are among them, which do not exclude each other, or is refused."""
    if root not in units:
        return
    try:
        found = pull([root], finder(units))
    except DependencyError:
        return
    assert root in found.units
    assert sorted(found.names) == sorted(found.units)
    for name, each in found.units.items():
        assert set(each.requires) <= set(found.units)
        assert not set(each.conflicts) & (set(found.units) - {name})
    # nothing that could have come along is missing without a word
    wanted = {other for each in found.units.values() for other in each.wants}
    assert wanted <= set(found.units) | set(found.left_out)


def test_requirers_are_found_over_all_steps() -> None:
    """Whoever cannot be without one of these, themselves left out; a want is no need."""
    graph = Graph({"web": unit(requires="db"), "shop": unit(requires="web"), "db": unit(), "log": unit(wants="db")})
    assert graph.requirers(["db"]) == ("shop", "web")
    assert graph.requirers(["shop"]) == ()


# in files


def write(directory: Path, **texts: str) -> None:
    """Unit files from ``[unit]`` sections; ``__`` in a name stands for ``@``."""
    for name, text in texts.items():
        (directory / f"{name.replace('__', '@')}.toml").write_text(f"[unit]\n{text}\n")


def wrong(*paths: Path) -> list[str]:
    """What `verify` says of these, each named by its last part."""
    return [str(diagnostic).rpartition("/")[2] for diagnostic in verify_files(paths)]


def test_verify_names_a_cycle_and_its_line(tmp_path: Path) -> None:
    """Of several files and of a directory, at the key that orders the first of the cycle; one file alone is right."""
    write(tmp_path, a="description = 'x'\nafter = ['b']", b="after = ['c']", c="description = 'y'\nafter = ['a']")
    told = "a.toml:3: unit.after: there is a cycle in the order: a -> b -> c -> a; each waits for the next"
    assert wrong(tmp_path) == [told]
    assert wrong(*(tmp_path / f"{name}.toml" for name in "cba")) == [told]
    assert wrong(tmp_path / "a.toml", tmp_path / "b.toml") == []
    write(tmp_path, a="", b="after = ['c']", c="after = ['b']")
    assert wrong(tmp_path) == [
        "b.toml:2: unit.after: there is a cycle in the order: b -> c -> b; each waits for the next"
    ]


def test_a_cycle_through_an_instance_without_a_file_is_found(tmp_path: Path) -> None:
    """What a template says of its instances counts where one is named."""
    write(tmp_path, web="after = ['db@1']", db__="before = ['later']\nafter = ['web']")
    assert wrong(tmp_path) == [
        "db@.toml:3: unit.after: there is a cycle in the order: db@1 -> web -> db@1; each waits for the next"
    ]
    assert wrong(tmp_path / "web.toml") == []


def test_a_reload_tells_a_cycle_and_breaks_no_unit_for_it(tmp_path: Path) -> None:
    """The units are there, and the error is among those of the files."""
    write(
        tmp_path,
        web="after = ['db']",
        db="after = ['web']",
        x__="requires = ['x@%i1']\nafter = ['x@%i1']",
        y="wants = ['x@0']",
    )
    catalog = load_catalog([tmp_path], lambda name: SpecifierContext(name=name))
    assert sorted(catalog.units) == ["db", "web", "y"]
    assert [diagnostic.key for diagnostic in catalog.diagnostics] == ["unit.after"]
    assert "db -> web -> db" in catalog.diagnostics[0].message
