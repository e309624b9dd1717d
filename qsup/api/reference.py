"""The tables in ``docs/api.md`` that are made from the code: routes with their roles, agent commands, error codes.

Decides: where in the guide they stand, and which columns they have. ``python -m qsup.api.reference FILE`` fills them
in.
Must not: touch what is written by hand around them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from qsup.api.routes.guest import AGENT_ROLES
from qsup.api.routes.table import ENDPOINTS
from qsup.errors import ClientError, QsupError

_REGION = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill_in(guide: str) -> str:
    """The guide with its generated regions as they should be.

    Raises:
        KeyError: a region has a name nobody generates.
    """
    return _REGION.sub(lambda match: f"{match[1]}\n{_REGIONS[match['name']]()}\n{match[3]}", guide)


def regions(guide: str) -> set[str]:
    """The names of the generated regions in a guide."""
    return {match["name"] for match in _REGION.finditer(guide)}


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _routes() -> str:
    rows = ((e.role.label, f"`{e.method} {e.pattern}`", e.summary) for e in ENDPOINTS)
    return _table(("role", "request", "what it does"), rows)


def _agent_roles() -> str:
    return _table(("agent command", "role"), ((f"`{command}`", role.label) for command, role in AGENT_ROLES.items()))


def error_classes(base: type[QsupError] = QsupError) -> Iterator[type[QsupError]]:
    """Every class of the tree in `qsup.errors` that the daemon may answer with, parents first."""
    if base.__module__ == QsupError.__module__ and base is not ClientError:
        yield base
        for child in base.__subclasses__():
            yield from error_classes(child)


def _errors() -> str:
    rows: dict[str, tuple[str, ...]] = {}
    for error in error_classes():
        meaning = (error.__doc__ or "").strip().partition("\n")[0].replace("``", "`")
        rows.setdefault(error.code, (f"`{error.code}`", str(error.status), meaning))
    return _table(("code", "status", "meaning"), rows.values())


_REGIONS: Mapping[str, Callable[[], str]] = {"routes": _routes, "agent": _agent_roles, "errors": _errors}


def main() -> int:
    """Fill in one guide, in its place."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m qsup.api.reference FILE\n")
        return 2
    guide = Path(sys.argv[1])
    guide.write_text(fill_in(guide.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
