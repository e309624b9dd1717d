"""``topology``: the drawings of hosts of every shape, as text and as a picture, and what they hold."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from qsup.api import measures
from qsup.api.hostwire import Topology
from qsup.ctl import hostsvg, hosttext, render
from qsup.ctl.hostpicture import HostPicture
from qsup.ctl.hosttext import ASCII, UNICODE
from qsup.instance.pinned import by_cpu
from qsup.instance.view import TopologyView
from qsup.plan.occupancy import NodeOccupancy, Occupancy
from qsup.plan.topology import Cache, Cpu, Node
from qsup.plan.topology import Topology as Host
from tests.api.calling import Daemon
from tests.api.fake import HOST
from tests.ctl.golden_text import check_golden
from tests.ctl.running import Ctl
from tests.ctl.test_render import EVIL
from tests.host.machines import MACHINES, build, reader

SVG = "{http://www.w3.org/2000/svg}"
#: Two vCPUs with a CPU each and one that has both; another VM on CPUs that are isolated in one of the hosts.
PINNED = {"web": ([2], [3], [3, 2]), "db": ([6], [7])}


def document(host: Host, pinned: dict[str, Any] | None = None, owners: dict[int, str] | None = None) -> Topology:
    """What the daemon says of a host."""
    occupancy = Occupancy(owners=owners or {})
    return measures.topology(TopologyView(topology=host, pinned=by_cpu(pinned or {}), occupancy=occupancy))


@pytest.fixture(scope="module", params=MACHINES)
def drawn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, HostPicture]:
    """Each shape of host, with VMs on it."""
    host = build(tmp_path_factory.mktemp("host"), MACHINES[request.param]).read()
    return request.param, HostPicture(document(host, PINNED))


def test_golden_text(drawn: tuple[str, HostPicture]) -> None:
    """Each shape of host on a usual terminal, and in ASCII on a narrow one."""
    name, host = drawn
    wide, narrow = hosttext.draw(host, UNICODE, 96), hosttext.draw(host, ASCII, 50)
    assert narrow.isascii()
    check_golden(f"topology-{name}", wide if name == "large" else f"{wide}\n{narrow}")


@pytest.mark.parametrize("width", [1, 40, 61, 80, 133, 400])
@pytest.mark.parametrize("signs", [UNICODE, ASCII], ids=["unicode", "ascii"])
def test_every_width(drawn: tuple[str, HostPicture], width: int, signs: hosttext.Signs) -> None:
    """No line is wider than the terminal, down to 40 columns; frames are straight; no CPU is lost."""
    name, host = drawn
    lines = hosttext.draw(host, signs, width).splitlines()
    columns = max(1, min(len(host.nodes), (width + 1) // 81))
    limit = max(width if columns > 1 else min(width, 160), 40)
    assert max(map(len, lines)) <= limit
    widths = {len(line) for line in lines if line.startswith((signs.down, signs.corners[0]))}
    whole = columns * ((limit + 1) // columns) - 1
    assert max(widths) == whole
    assert len(widths) == 1 or len(host.nodes) % columns, "but for the last row"
    cells = re.findall(r"\[([^]]*)\]", "\n".join(line for line in lines if line.startswith(signs.down)))
    numbers = [int(number) for cell in cells for number in re.findall(r"\d+", cell)]
    assert sorted(numbers) == list(range(MACHINES[name].count))


def test_the_picture_holds_the_same(drawn: tuple[str, HostPicture]) -> None:
    """It is well-formed, whole by itself, and has each CPU, bar and line of the text, none beyond its edge."""
    name, host = drawn
    picture = hostsvg.draw(host)
    root = ElementTree.fromstring(picture)
    assert picture.isascii()
    assert not re.search(r"href|url\(|@import|<script|<image|<!", picture)
    words = [text.text or "" for text in root.iter(f"{SVG}text")]
    titles = [title.text or "" for title in root.iter(f"{SVG}title")]
    assert [int(title.split(":")[0].removeprefix("CPU ")) for title in titles] == [
        cpu["number"] for node in host.nodes for group in node.groups for core in group.cores for cpu in core
    ]
    assert len(titles) == MACHINES[name].count
    for node in host.nodes:
        shown = [node.title, *(bar.words for bar in node.bars), *(group.title for group in node.groups)]
        assert set(shown) <= set(words)
    residents = [*host.residents, *(resident for node in host.nodes for resident in node.residents)]
    assert sorted(name for name, _ in residents) == ["db", "web"]
    assert {f"{name}: {told}" for name, told in residents} <= set(words)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for box in root.iter(f"{SVG}rect"):
        assert float(box.get("x", 0)) + float(box.attrib["width"]) <= width
        assert float(box.get("y", 0)) + float(box.attrib["height"]) <= height


def test_golden_picture(tmp_path: Path) -> None:
    """Where everything stands on one of them."""
    host = build(tmp_path, MACHINES["two-sockets"]).read()
    check_golden("topology-svg", hostsvg.draw(HostPicture(document(host, PINNED))))


def test_a_picture_is_as_wide_as_it_has_to_be() -> None:
    """A core of a hundred threads, and the distances of a hundred nodes."""
    cpus = tuple(Cpu(number=number) for number in range(100))
    root = ElementTree.fromstring(hostsvg.draw(HostPicture(document(Host(cpus=cpus, nodes=HOST.nodes)))))
    assert max(float(box.get("x", 0)) + float(box.attrib["width"]) for box in root.iter(f"{SVG}rect")) <= float(
        root.attrib["width"]
    )
    nodes = tuple(Node(number=number, memory=0) for number in range(100))
    root = ElementTree.fromstring(hostsvg.draw(HostPicture(document(Host(cpus=(), nodes=nodes)))))
    assert max(float(text.attrib["x"]) for text in root.iter(f"{SVG}text")) <= float(root.attrib["width"])


def test_bars_are_full_only_where_there_is_nothing_left() -> None:
    """A page in use shows, and so does one that is free."""
    shown = []
    for free in (1000, 999, 500, 1, 0):
        node = Node(number=0, memory=1000 << 30, free=free << 30)
        text = hosttext.draw(HostPicture(document(evolve(HOST, nodes=(node,)))), ASCII, 40)
        shown.append(re.search(r"memory +([#.]{4,})", text)[1])  # type: ignore[index]  # without a bar it shall fail
    assert [(bar[0], bar[-1]) for bar in shown] == [(".", "."), ("#", "."), ("#", "."), ("#", "."), ("#", "#")]
    assert [shown[1].count("#"), shown[3].count(".")] == [1, 1]
    assert abs(shown[2].count("#") - shown[2].count(".")) <= 1


def test_a_core_of_more_threads_than_fit() -> None:
    """It goes on in the next line."""
    host = Host(cpus=tuple(Cpu(number=number) for number in range(100, 116)), nodes=(Node(number=0, memory=0),))
    text = hosttext.draw(HostPicture(document(host)), ASCII, 40)
    assert text.splitlines()[3:9] == [
        "| CPUs  ............  0 vCPUs share 16 |",
        "| no memory                            |",
        "| package 0                            |",
        "|   [100 101 102 103 104 105 106 107   |",
        "|    108 109 110 111 112 113 114 115]  |",
        "+--------------------------------------+",
    ]


def test_cores_stand_together_by_their_last_cache() -> None:
    """Where each core has one for itself, that parts nobody; where several share it, it does."""
    cpus = tuple(Cpu(number=number, core=number) for number in range(4))
    own = tuple(Cache(level=2, type="Unified", size=1 << 20, cpus=frozenset({cpu})) for cpu in range(4))
    shared = tuple(Cache(level=2, type="Unified", size=1 << 20, cpus=frozenset({cpu, cpu + 1})) for cpu in (0, 2))
    for caches, groups in (((), 1), (own, 1), (shared, 2)):
        host = HostPicture(document(Host(cpus=cpus, nodes=HOST.nodes, caches=caches)))
        assert len(host.nodes[0].groups) == groups


def test_all_marks(tmp_path: Path) -> None:
    """What there is to know of a CPU stands beside its number, and below what it means."""
    build(tmp_path, MACHINES["two-sockets"])
    host = reader(tmp_path, range(1, 32)).read()
    host = evolve(host, cpus=(*host.cpus, Cpu(number=32, node=1, online=False, allowed=False)))
    text = hosttext.draw(HostPicture(document(host, {"web": ([6], [32]), "db": ([9],)}, {9: "db"})), ASCII, 120)
    assert "[ 0-  16  ]" in text
    assert "[ 6i* 22i ]" in text
    assert "[ 9!  25  ]" in text
    assert "[32x*]" in text
    assert text.endswith("\nx offline; - not for this daemon; i isolated; ! exclusive; * with pinned vCPUs\n")
    assert "(1 offline, 1 not for this daemon, 4 isolated, 1 exclusive, 2 with pinned vCPUs)" in text


def test_vms_stand_where_their_vcpus_are_and_those_alike_together(tmp_path: Path) -> None:
    """What has a CPU for each vCPU is told in their order, what floats by its CPUs, which are not marked for it."""
    host = build(tmp_path, MACHINES["two-sockets"]).read()
    everywhere = tuple(range(32))
    pinned = {
        "own": ([2], [18], [3], [4]),
        "same": ([5], [5]),
        "mixed": ([8], [9, 10]),
        **{name: ([0, 1, 16, 17],) * 2 for name in ("a", "b")},
        "free": (everywhere,),
    }
    picture = HostPicture(document(host, pinned))
    assert [node.residents for node in picture.nodes] == [
        [
            ("a, b", "vCPUs 0-1 on 0-1, 16-17"),
            ("own", "vCPUs 0-3 each on 2, 18, 3-4"),
            ("same", "vCPUs 0-1 on 5"),
        ],
        [("mixed", "vCPU 0 on 8; vCPU 1 on 9-10")],
    ]
    assert picture.residents == [("free", "vCPU 0 on 0-31")]
    assert [cpu for cpu, found in picture.marks_of.items() if "pinned" in found] == [2, 3, 4, 5, 8, 9, 10, 18]


def test_who_has_cpus_and_does_not_run_is_told(tmp_path: Path) -> None:
    """Nobody else may use what is kept for it."""
    host = build(tmp_path, MACHINES["two-sockets"]).read()
    picture = HostPicture(document(host, {"web": ([2], [18])}, {2: "web", 18: "web", 9: "db", 10: "db", 25: "db"}))
    told = [[("web", "vCPUs 0-1 each on 2, 18")], [("db", "not up, 9-10, 25 kept for it")]]
    assert [node.residents for node in picture.nodes] == told


def test_how_full_a_node_is(tmp_path: Path) -> None:
    """What is exclusive and what is shared of its CPUs; of its memory what is used, and what more is promised."""
    host = build(tmp_path, MACHINES["two-sockets"]).read()
    view = TopologyView(
        topology=host,
        pinned={},
        occupancy=Occupancy(
            nodes={0: NodeOccupancy(own=2, vcpus=5.25, memory=32 << 30), 1: NodeOccupancy(vcpus=1.0, memory=1 << 30)},
            owners={2: "db", 18: "db"},
        ),
    )
    first, second = HostPicture(measures.topology(view)).nodes
    assert [(bar.label, bar.words) for bar in first.bars[:2]] == [
        ("CPUs", "2 exclusive, 5.2 vCPUs share 10"),
        ("memory", "18G of 64G used, 32G promised"),
    ]
    assert (first.bars[0].share, first.bars[1].promised) == (7.25 / 16, 0.5)
    assert [bar.words for bar in second.bars[:2]] == ["1 vCPU shares 16", "18G of 64G used, 1G promised"]
    text = hosttext.draw(HostPicture(measures.topology(view)), ASCII, 80)
    assert re.findall(r"memory +(#+)(=*)\.", text) == [("#" * 9, "=" * 7), ("#" * 10, "")]


def test_a_bar_is_coloured_by_how_full_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are colours, and no frame is any less straight for it."""
    host = HostPicture(document(build(tmp_path, MACHINES["two-sockets"]).read()))
    plain = hosttext.draw(host, ASCII, 80)
    monkeypatch.setattr(render, "colours_wanted", lambda: True)
    coloured = hosttext.draw(host, ASCII, 80)
    assert re.sub(r"\033\[\d+m", "", coloured) == plain
    assert set(re.findall(r"\033\[(\d+)m#", coloured)) == {"32", "33"}


def test_a_brief_drawing_has_nodes_and_their_bars_alone(drawn: tuple[str, HostPicture]) -> None:
    """No cores, no VMs, no distances."""
    _, host = drawn
    text = hosttext.draw(host, ASCII, 80, brief=True)
    assert all(node.title in text for node in host.nodes)
    assert text.count(" used") == sum(bar.words.count(" used") for node in host.nodes for bar in node.bars)
    assert not re.search(r"\[ *\d|distances|vCPU \d", text)


@given(name=st.text())
def test_a_hostile_name_harms_neither_terminal_nor_picture(name: str) -> None:
    """Names are ASCII by the rules; whatever else a daemon says is no markup and no control character."""
    host = HostPicture(document(HOST, {name: ([0],), EVIL: ([1],), "<a href='&x;'>]]>": ([0],)}))
    assert "\033" not in hosttext.draw(host, UNICODE, 80)
    assert len(list(ElementTree.fromstring(hostsvg.draw(host)).iter(f"{SVG}title"))) == 2


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({"LANG": "de_DE.UTF-8"}, True),
        ({"LANG": "C.utf8"}, True),
        ({"LANG": "de_DE.UTF-8", "LC_ALL": "C"}, False),
        ({"LANG": "de_DE.ISO-8859-1"}, False),
        ({"LANG": "C", "LC_CTYPE": "en_US.UTF-8"}, True),
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8"}, False),
        ({"LC_CTYPE": "C.UTF-8"}, False),
        ({"LC_ALL": "C.UTF-8"}, True),
        ({}, False),
    ],
)
def test_the_locale_decides_on_the_signs(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], wanted: bool
) -> None:
    """As locale(7) reads the variables; what Python itself put there does not count."""
    for name in ("LC_ALL", "LC_CTYPE", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert render.unicode_wanted() is wanted


async def test_the_verb_draws_what_the_daemon_says(served: Daemon, ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the signs of the locale, and as wide as the terminal; for programs it is the API's own document."""
    served.backend.cpu_sets = {"web": ([0],)}
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    said = HostPicture(document(HOST, {"web": ([0],)}))
    assert await ctl.ok("topology") == hosttext.draw(said, UNICODE, 80)
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setattr("qsup.ctl.verbs.topology.terminal_width", lambda: 50)
    assert await ctl.ok("topology") == hosttext.draw(said, ASCII, 50)
    assert json.loads(await ctl.ok("topology", "-o", "json")) == document(HOST, {"web": ([0],)})
    assert len((await ctl.ok("topology", "-o", "jsonl")).splitlines()) == 1


async def test_the_picture_is_written_whole_or_not_at_all(served: Daemon, ctl: Ctl, tmp_path: Path) -> None:
    """To a file that is replaced at once, through a link, or to standard output."""
    picture = hostsvg.draw(HostPicture(document(HOST)))
    file, link = tmp_path / "host.svg", tmp_path / "link.svg"
    file.write_text("old")
    file.chmod(0o644)
    before = file.stat().st_ino
    link.symlink_to(file)
    assert await ctl.ok("topology", "--svg", str(link)) == f"{link}\n"
    assert (file.read_text(), link.is_symlink()) == (picture, True)
    assert file.stat().st_ino != before
    assert json.loads(await ctl.ok("topology", f"--svg={file}", "-o", "json")) == {"file": str(file)}
    assert await ctl.ok("topology", "--svg", "-") == picture
    result = await ctl("topology", "--svg", str(tmp_path / "no/host.svg"))
    assert (result.code, result.err) == (
        1,
        f"qsupctl: could not write {tmp_path}/no/host.svg: No such file or directory\n",
    )
    result = await ctl("topology", "--svg", str(tmp_path))
    assert (result.code, result.err) == (1, f"qsupctl: could not write {tmp_path}: Is a directory\n")
    assert sorted(name for name in os.listdir(tmp_path) if name.endswith((".svg", ".new"))) == ["host.svg", "link.svg"]
