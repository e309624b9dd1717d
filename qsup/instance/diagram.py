"""The states of a VM as documentation, made from the table itself.

Decides: how the table reads on a page.
Must not: know a state or an edge by itself.

``python -m qsup.instance.diagram`` prints ``docs/states.md``; with ``--check FILE`` it compares, with ``--levels`` it
prints the diagram of the first level alone, which ``docs/reliability.md`` shows.
"""

from __future__ import annotations

import itertools
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from qsup.instance.state import TRANSITIONS, WITH_PROCESS, Event, Level, Request, State, Verdict, judge

_HEAD = """# The states of a VM

<!-- made by `python -m qsup.instance.diagram > docs/states.md`; a test compares -->

The API promises the first level (`state`) and documents the second (`substate`). There is one table of transitions,
`TRANSITIONS` in `qsup/instance/state.py`; this page is printed from it. A pair of state and event that is not in it
changes nothing.
"""
_ENDS = frozenset({Event.ENDED, Event.FAILED, Event.START_FAILED, Event.RESTARTING, Event.LIMIT_HIT})


def page() -> str:
    """The whole page, Markdown with a Mermaid diagram."""
    return "\n".join([_HEAD, *_states(), "", *_requests(), "", *_diagram(), ""])


def _states() -> Iterator[str]:
    yield "| state | substate | what it is | what ends it |"
    yield "|---|---|---|---|"
    for state in State:
        yield f"| {state.level.value} | `{state.substate}` | {state.meaning} | {state.ends_by} |"


def _requests() -> Iterator[str]:
    yield "## What may be asked in which state"
    yield ""
    yield "`yes`: carried out. `-`: already so, succeeds and does nothing. Empty: refused, with the reason."
    yield ""
    yield f"| substate | {' | '.join(request.value for request in Request)} |"
    yield f"|---|{'---|' * len(Request)}"
    words = {Verdict.ALLOWED: "yes", Verdict.NEEDLESS: "-", Verdict.DENIED: ""}
    for state in State:
        yield f"| `{state.substate}` | {' | '.join(words[judge(state, r).verdict] for r in Request)} |"


def _diagram() -> Iterator[str]:
    yield "## Transitions"
    yield ""
    alive = ", ".join(f"`{state.substate}`" for state in State if state in WITH_PROCESS)
    yield "Edges that change nothing are left out, and so is the end of QEMU's process. It is possible in every state"
    yield f"that has one ({alive})"
    yield "and leads, by its cause and the restart policy, to `dead`, `crashed`, `start-failed`, `auto-restart` or"
    yield "`start-limit-hit`."
    yield ""
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield "    [*] --> dead"
    edges: dict[tuple[State, State], list[str]] = defaultdict(list)
    for (state, event), transition in TRANSITIONS.items():
        if state is not transition.target and not (event in _ENDS and state in WITH_PROCESS):
            edges[state, transition.target].append(event.value)
    names = {state: state.substate.replace("-", "_") for state in State}
    for state in State:
        if names[state] != state.substate:
            yield f'    state "{state.substate}" as {names[state]}'
    for (source, target), events in edges.items():
        yield f"    {names[source]} --> {names[target]}: {', '.join(events)}"
    yield "```"


def levels() -> str:
    """The first level as a Mermaid diagram: which substates each has, and what leads from one to another."""
    edges: dict[tuple[Level, Level], set[Event]] = defaultdict(set)
    for (state, event), transition in TRANSITIONS.items():
        edges[state.level, transition.target.level].add(event)
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {State.DEAD.level.value}"]
    for level in Level:
        substates = [state.substate for state in State if state.level is level]
        lines.append(f'    state "{level.value}: {", ".join(substates)}" as {level.value}')
    for source, target in itertools.permutations(Level, 2):
        if events := [event.value for event in Event if event in edges[source, target]]:
            lines.append(f"    {source.value} --> {target.value}: {', '.join(events)}")
    return "\n".join([*lines, "```"])


def main(arguments: list[str]) -> int:
    """Print the page or its first level, or compare the page with a file: 1 when they differ."""
    if arguments == ["--levels"]:
        print(levels())
        return 0
    if arguments[:1] == ["--check"]:
        return int(Path(arguments[1]).read_text() != page() + "\n")
    print(page())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
