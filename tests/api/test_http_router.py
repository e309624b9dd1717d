"""Targets and the route table."""

from __future__ import annotations

from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsup.api.http import Answer, Request, Response, Role, Router
from qsup.api.router import parse_target, percent_decode
from qsup.errors import MethodNotAllowed, NotFoundError, RequestError

# a surrogate cannot be encoded, so no client can send one
text = st.text(alphabet=st.characters(exclude_categories=["Cs"]))


async def handler(request: Request) -> Answer:
    """Answer."""
    return Response()


def table(*routes: str) -> Router:
    """A table of ``METHOD pattern`` routes."""
    router = Router()
    for route in routes:
        method, pattern = route.split()
        router.add(method, pattern, handler, Role.READ)
    return router


def found(router: Router, method: str, target: str) -> tuple[str, dict[str, str]]:
    """The pattern found for a target, and its parameters."""
    segments = parse_target(target).segments
    route = router.find(method, segments)
    return route.pattern, {name: segments[index] for name, index in route.params}


def test_literals_win_over_parameters_method_by_method() -> None:
    """A literal segment is preferred, but not where only the parameter has the method."""
    router = table("POST /units/validate", "GET /units/{unit}", "GET /units/{name}/log", "GET /")
    assert found(router, "POST", "/units/validate") == ("/units/validate", {})
    assert found(router, "GET", "/units/validate") == ("/units/{unit}", {"unit": "validate"})
    assert found(router, "GET", "/units/validate/log") == ("/units/{name}/log", {"name": "validate"})
    assert found(router, "HEAD", "/") == ("/", {})


def test_every_method_of_a_path_is_named() -> None:
    """A wrong method is told the methods of every route that has the path, HEAD with GET."""
    router = table("POST /units/validate", "GET /units/{unit}", "PUT /units/{unit}")
    with pytest.raises(MethodNotAllowed) as caught:
        found(router, "DELETE", "/units/validate")
    assert caught.value.allow == ("GET", "HEAD", "POST", "PUT")


@pytest.mark.parametrize("target", ["/units", "/units/", "/units/a/", "/units//log", "/UNITS/a", "/x/../units/a", "//"])
def test_paths_are_not_normalised(target: str) -> None:
    """A path means what it says: no case folding, no dots resolved, no slashes merged, no empty parameter."""
    with pytest.raises(NotFoundError):
        found(table("GET /units/{unit}", "GET /units/{unit}/log"), "GET", target)


@given(name=text.filter(bool))
def test_names_come_through_whatever_they_hold(name: str) -> None:
    """An encoded name of any characters is one parameter, decoded, and never routes elsewhere."""
    target = f"/units/{quote(name, safe='')}/log"
    # "." and ".." are unreserved: nobody encodes them
    assert found(table("GET /units/{unit}/log", "GET /{any}"), "GET", target) == ("/units/{unit}/log", {"unit": name})


@given(query=st.dictionaries(text.filter(bool), text))
def test_queries_come_through(query: dict[str, str]) -> None:
    """Every encoded query parameter is decoded to what it was."""
    encoded = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in query.items())
    assert parse_target(f"/?{encoded}").query == query


@given(data=st.text(alphabet="%0123456789abcdefABCDEFgG+ é"))
def test_decoding_is_strict(data: str) -> None:
    """A percent sign is followed by two hexadecimal digits of UTF-8, or the whole is refused."""
    try:
        decoded = percent_decode(data)
    except RequestError:
        return
    assert decoded == unquote(data, errors="strict")


@pytest.mark.parametrize("route", ["GET units", "GET /units/{unit}"])
def test_wrong_routes_are_refused(route: str) -> None:
    """A pattern without a slash, and a second route for the same method and shape, are the programmer's errors."""
    router = table("GET /units/{name}")
    method, pattern = route.split()
    with pytest.raises(ValueError, match=r"slash|taken by"):
        router.add(method, pattern, handler, Role.READ)


def test_route_without_a_role_is_refused() -> None:
    """Every route declares its role."""
    with pytest.raises(ValueError, match="role"):
        Router().add("GET", "/", handler, None)  # type: ignore[arg-type]  # what a hurried author would try


def test_table_lists_its_routes() -> None:
    """The routes can be listed, with what they declare."""
    (route,) = table("GET /units/{unit}/log").routes
    assert (route.method, route.pattern, route.role, route.params) == (
        "GET",
        "/units/{unit}/log",
        Role.READ,
        (("unit", 1),),
    )
