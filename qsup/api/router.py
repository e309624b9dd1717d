"""From a request target to a route. Pure.

Decides: how a target is taken apart and decoded (RFC 3986, RFC 9112 section 3.2), and which route it means.
Must not: call a handler, judge a caller, or validate a parameter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from qsup.api.roles import Role
from qsup.errors import MethodNotAllowed, NotFoundError, RequestError

if TYPE_CHECKING:
    from qsup.api.message import Handler  # its module needs trio

_ABSOLUTE_FORM = "http://"
_BYTES = {f"{high}{low}": int(high + low, 16) for high in "0123456789abcdefABCDEF" for low in "0123456789abcdefABCDEF"}


@frozen(kw_only=True)
class Target:
    """A request target, decoded.

    Args:
        path: the whole path.
        segments: the path between its slashes, each decoded by itself: an encoded slash never splits.
        query: decoded names and values; a name without ``=`` has the value ``""``.
    """

    path: str
    segments: tuple[str, ...]
    query: dict[str, str]


def parse_target(target: str) -> Target:
    """Take a request target apart. Nothing is normalised: ``..`` and empty segments stay what they are.

    Raises:
        RequestError: neither origin-form nor absolute-form, a broken percent-encoding, bytes that are not UTF-8, a
            query parameter given twice.
    """
    if target.startswith(_ABSOLUTE_FORM):
        target = "/" + target.removeprefix(_ABSOLUTE_FORM).partition("/")[2]
    raw, _, query = target.partition("?")
    if not raw.startswith("/"):
        raise RequestError("the request target is not a path")
    raw_segments = raw.split("/")[1:]
    if "%" in raw:
        return Target(
            path=percent_decode(raw), segments=tuple(map(percent_decode, raw_segments)), query=_parse_query(query)
        )
    return Target(path=raw, segments=tuple(raw_segments), query=_parse_query(query) if query else {})


def percent_decode(text: str) -> str:
    """Decode ``%XX`` strictly; ``RequestError`` for anything else behind a percent sign and for bad UTF-8."""
    head, *rest = text.split("%")
    decoded = bytearray(head.encode())
    try:
        for part in rest:
            decoded.append(_BYTES[part[:2]])
            decoded += part[2:].encode()
        return decoded.decode()
    except KeyError as error:
        raise RequestError("a percent sign in the request target is not followed by two hexadecimal digits") from error
    except UnicodeDecodeError as error:
        raise RequestError("the request target is not UTF-8 once decoded") from error


def _parse_query(text: str) -> dict[str, str]:
    query: dict[str, str] = {}
    for pair in text.split("&"):
        name, _, value = (percent_decode(part) for part in pair.replace("+", " ").partition("="))
        if name in query:
            raise RequestError(f"the query parameter {name[:40]!r} is given twice")
        if name:
            query[name] = value
    return query


@frozen(kw_only=True, eq=False)
class Route:
    """One method on one pattern.

    Args:
        pattern: as it was added, such as ``/v1/instances/{instance}/cpus``; also the label in metrics.
        role: the least role that may call it.
        params: the name and the segment's index of each path parameter.
    """

    method: str
    pattern: str
    handler: Handler
    role: Role
    params: tuple[tuple[str, int], ...]


class _Node:
    __slots__ = ("literals", "routes", "wildcard")

    def __init__(self) -> None:
        self.routes: dict[str, Route] = {}
        self.literals: dict[str, _Node] = {}
        self.wildcard: _Node | None = None

    def grow(self, segment: str) -> _Node:
        """The child for a pattern's segment, made when it is not there."""
        if not _is_parameter(segment):
            return self.literals.setdefault(segment, _Node())
        if self.wildcard is None:
            self.wildcard = _Node()
        return self.wildcard


class Router:
    """The route table. A literal segment wins over a parameter, method by method."""

    def __init__(self) -> None:
        self._root = _Node()
        self._routes: list[Route] = []

    @property
    def routes(self) -> tuple[Route, ...]:
        """Every route, in the order they were added."""
        return tuple(self._routes)

    def add(self, method: str, pattern: str, handler: Handler, role: Role) -> None:
        """Add a route. ``GET`` serves ``HEAD`` too.

        Args:
            pattern: ``/literal/{parameter}/...``; a parameter takes one whole, non-empty segment.

        Raises:
            ValueError: the pattern is malformed, or that method has a route there already.
        """
        if not pattern.startswith("/") or not isinstance(role, Role):
            raise ValueError(f"{method} {pattern}: a pattern begins with a slash, and its route declares its role")
        segments = pattern.split("/")[1:]
        node = self._root
        for segment in segments:
            node = node.grow(segment)
        if method in node.routes:
            raise ValueError(f"{method} {pattern}: taken by {node.routes[method].pattern}")
        params = tuple((segment[1:-1], index) for index, segment in enumerate(segments) if _is_parameter(segment))
        route = Route(method=method, pattern=pattern, handler=handler, role=role, params=params)
        node.routes[method] = route
        self._routes.append(route)

    def find(self, method: str, segments: tuple[str, ...]) -> Route:
        """The route for a method and a path.

        Raises:
            NotFoundError: no route has that path.
            MethodNotAllowed: only with other methods.
        """
        nodes = [self._root]
        for segment in segments:
            nodes = _step(nodes, segment)
        wanted = "GET" if method == "HEAD" else method
        for node in nodes:
            if route := node.routes.get(wanted):
                return route
        allow = {method for node in nodes for method in node.routes}
        if not allow:
            raise NotFoundError("there is nothing at this path", hint="GET / lists where to begin")
        if "GET" in allow:
            allow.add("HEAD")
        raise MethodNotAllowed(f"{method} is not offered here", allow=tuple(sorted(allow)))


def _is_parameter(segment: str) -> bool:
    return segment.startswith("{") and segment.endswith("}")


def _step(nodes: list[_Node], segment: str) -> list[_Node]:
    """Every node one segment on, those reached by a literal before those reached by a parameter."""
    reached = []
    for node in nodes:
        if segment in node.literals:
            reached.append(node.literals[segment])
        if node.wildcard is not None and segment:
            reached.append(node.wildcard)
    return reached
