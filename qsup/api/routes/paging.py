"""One page of a list.

Decides: where a page begins and ends, the same for every list.
Must not: know what the entries are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from qsup.errors import GoneError

T = TypeVar("T")


def page_by_name(
    entries: Sequence[T], name: Callable[[T], str], query: Mapping[str, Any]
) -> tuple[Sequence[T], str | None]:
    """The entries behind the name ``after``, at most ``limit``, of a list sorted by name.

    The name itself need not exist (any more): nobody is skipped or shown twice when VMs come and go between pages.

    Returns:
        The page, and the ``after`` of the page behind it, ``None`` at the end.
    """
    after = query["after"]
    return _cut(entries, name, query, bisect_right(entries, after, key=name) if after is not None else 0)


def page_by_key(
    entries: Sequence[T], key: Callable[[T], str], query: Mapping[str, Any]
) -> tuple[Sequence[T], str | None]:
    """The same for a list in another order, where ``after`` must be an entry.

    Raises:
        GoneError: it is not among them any more.
    """
    after = query["after"]
    if after is None:
        return _cut(entries, key, query, 0)
    for index, entry in enumerate(entries):
        if key(entry) == after:
            return _cut(entries, key, query, index + 1)
    raise GoneError("the entry named by `after` is no longer in the list", hint="begin again without `after`")


def _cut(
    entries: Sequence[T], key: Callable[[T], str], query: Mapping[str, Any], start: int
) -> tuple[Sequence[T], str | None]:
    end = len(entries) if query["limit"] is None else start + query["limit"]
    page = entries[start:end]
    return page, key(page[-1]) if page and end < len(entries) else None
