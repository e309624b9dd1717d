"""``list-dependencies``: who needs whom, as a tree or as a graph.

Decides: what the tree follows, where it is cut, and how the graph is drawn.
Must not: know what a start would really do; that hangs on what runs by then, and the daemon decides it.
"""

from __future__ import annotations

import sys

from qsup.api.protocol import EXIT_OK, PREFIX
from qsup.ctl.names import add_names, matcher
from qsup.ctl.render import clean, documents, paint
from qsup.errors import NoSuchInstance, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from qsup.api.wire import Dependencies, DependencyList
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser

    Found = dict[str, Dependencies]

EPILOG = """The tree follows what VMs require and want; a VM that was shown before ends in "...".
The graph has the colours of systemd-analyze dot: black requires, grey wants, green after, red conflicts."""


def options(parser: Parser, verb: str) -> None:
    """Declare ``list-dependencies [NAME...] [--reverse] [--dot]``."""
    add_names(parser, optional=True)
    parser.add_argument("--reverse", action="store_true", help="the other way round: who requires or wants it")
    parser.add_argument("--dot", action="store_true", help="a graph for Graphviz, order and conflicts too")


def run(client: Client, options: Options) -> int:
    """Print the trees of the VMs named, by default of all that nobody else pulls in."""
    if options.dot and options.output != "table":
        raise UsageError("list-dependencies: --dot and --output exclude each other", hint="leave one away")
    listed: DependencyList = client.get(f"{PREFIX}/dependencies")
    found = {vm["name"]: vm for vm in listed["dependencies"]}
    below = _reversed(found) if options.reverse else {name: _pulled(vm) for name, vm in found.items()}
    roots = _named(options.names, found) if options.names else _tops(found, below)
    shown = _reach(roots, below)
    if options.output != "table":
        sys.stdout.write(documents((found[name] for name in sorted(shown)), options.output, "dependencies"))
    elif options.dot:
        sys.stdout.write(dot([found[name] for name in sorted(shown)]))
    else:
        sys.stdout.write("".join(f"{line}\n" for line in tree(roots, below, lambda name: _line(found[name]))))
    return EXIT_OK


def _pulled(vm: Dependencies) -> list[str]:
    return sorted({*vm["requires"], *vm["wants"]})


def _reversed(found: Found) -> dict[str, list[str]]:
    above: dict[str, list[str]] = {name: [] for name in found}
    for name, vm in found.items():
        for other in _pulled(vm):
            above.setdefault(other, []).append(name)
    return {name: sorted(others) for name, others in above.items()}


def _named(patterns: list[str], found: Found) -> list[str]:
    """The VMs that names and globs mean; `NoSuchInstance` for one that means none."""
    roots: dict[str, None] = {}
    for pattern in patterns:
        matched = [name for name in found if matcher([pattern])(name)]
        if not matched:
            raise NoSuchInstance(f"there is no VM {pattern!r}", hint="qsupctl list shows all")
        roots |= dict.fromkeys(matched)
    return list(roots)


def _tops(found: Found, below: dict[str, list[str]]) -> list[str]:
    """The VMs that are below no other, and one of each circle of such that nothing else leads to."""
    under = {other for others in below.values() for other in others}
    roots = [name for name in found if name not in under]
    seen = _reach(roots, below)
    for name in found:
        if name not in seen:
            roots.append(name)
            seen |= _reach([name], below)
    return sorted(roots)


def _reach(names: Iterable[str], below: dict[str, list[str]]) -> set[str]:
    seen: set[str] = set()
    queue = list(names)
    while queue:
        name = queue.pop()
        if name not in seen:
            seen.add(name)
            queue += below.get(name, [])
    return seen


def _line(vm: Dependencies) -> str:
    if vm["state"] is None:
        return f"{clean(vm['name'])}  {paint('not found', 'failed')}"
    return f"{clean(vm['name'])}  {paint(vm['state'], vm['state'])} ({clean(vm['substate'])})"


def tree(roots: Iterable[str], below: dict[str, list[str]], line: Callable[[str], str]) -> Iterator[str]:
    """The lines of trees, each VM's own branches once."""
    expanded: set[str] = set()
    # what is still to be written: the indentation so far, the branch before the name, the name
    todo = [("", "", name) for name in roots][::-1]
    while todo:
        indent, branch, name = todo.pop()
        again = name in expanded and bool(below.get(name))
        yield f"{indent}{branch}{line(name)}" + (" ..." if again else "")
        if name in expanded:
            continue
        expanded.add(name)
        further = indent + {"": "", "├─": "│ ", "└─": "  "}[branch]
        others = below.get(name, [])
        todo += [(further, "├─" if other != others[-1] else "└─", other) for other in others][::-1]


_SHAPES = {
    "requires": '[color="black"]',
    "wants": '[color="grey66"]',
    "conflicts": '[color="red", dir="none"]',
}


def dot(vms: list[Dependencies]) -> str:
    """The graph of some VMs; edges to others are left out."""
    names = {vm["name"] for vm in vms}
    lines = ["digraph qsup {", "  rankdir=LR;"]
    for vm in vms:
        state = "not found" if vm["state"] is None else f"{vm['state']} ({vm['substate']})"
        lines.append(f"  {_quoted(vm['name'])} [label={_quoted(vm['name'] + chr(10) + state)}];")
    edges: dict[str, None] = {}
    for vm in vms:
        # each key by itself: the type of a document's member is known by its literal name alone
        relations = (("requires", vm["requires"]), ("wants", vm["wants"]), ("conflicts", vm["conflicts"]))
        for relation, others in relations:
            for other in filter(names.__contains__, others):
                edges[f"  {_quoted(vm['name'])} -> {_quoted(other)} {_SHAPES[relation]};"] = None
        pairs = [(vm["name"], other) for other in vm["after"]] + [(other, vm["name"]) for other in vm["before"]]
        for one, other in pairs:
            if {one, other} <= names:
                edges[f'  {_quoted(one)} -> {_quoted(other)} [color="green"];'] = None
    return "\n".join([*lines, *edges, "}", ""])


def _quoted(text: str) -> str:
    """A string of DOT; names can hold neither quotes nor backslashes, but who knows who answers."""
    lines = (clean(line).replace("\\", "\\\\").replace('"', '\\"') for line in text.split("\n"))
    return '"' + "\\n".join(lines) + '"'
