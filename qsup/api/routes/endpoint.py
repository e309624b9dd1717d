"""How one route is declared, and what its handler is given.

Decides: what must be said of every route: method, pattern, role, what it takes and answers. The router, the OpenAPI
document, the reference and the tests all read this one declaration.
Must not: know any particular route.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from attrs import field, frozen, validators

from qsup.api import jsontext
from qsup.api.backend import Backend
from qsup.api.message import Answer, Handler, Request
from qsup.api.metrics import Traffic
from qsup.api.protocol import JSON
from qsup.api.render import InstanceCache
from qsup.api.roles import Policy, Role
from qsup.api.routes.body import check
from qsup.api.routes.parameters import Parameter, read_query
from qsup.errors import NoSuchInstance, QsupError, RequestError, UnsupportedMediaType
from qsup.unit.kinds import NAME_RULE, is_instance_name, is_template_name


class Api:
    """What every handler works on.

    Args:
        backend: the supervisor.
        policy: who has which role, for ``whoami`` and the commands that need more than their route.
        version: qsup's version.
    """

    def __init__(self, backend: Backend, *, policy: Policy, version: str) -> None:
        self.backend = backend
        self.policy = policy
        self.version = version
        self.instances = InstanceCache()
        self.traffic = Traffic()
        #: Documents that never change while the daemon lives, by name.
        self.documents: dict[str, bytes] = {}


class Call:
    """One request with what its route declares, already read and checked.

    Attributes:
        query: every declared parameter's value, defaults included.
        body: the declared body: the checked JSON value, or the text; ``{}`` for an optional one that is not there.
    """

    __slots__ = ("api", "backend", "body", "query", "request")

    def __init__(self, api: Api, request: Request, query: dict[str, Any], body: Any) -> None:
        self.api = api
        self.backend = api.backend
        self.request = request
        self.query = query
        self.body = body

    def instance(self) -> str:
        """The path's instance name.

        Raises:
            NoSuchInstance: it can be no name; no path and no control character travels further than this.
        """
        return instance_name(self.request.params["instance"])


def instance_name(name: str) -> str:
    """A VM's name as a client gave it.

    Raises:
        NoSuchInstance: it can be no name.
    """
    if is_template_name(name):
        raise NoSuchInstance(f"{name} is a template, no VM", hint=f"name an instance of it, such as {name}1")
    if not is_instance_name(name):
        raise NoSuchInstance(f"{name[:100]!r} can be no VM's name", hint=f"{NAME_RULE}, or NAME@INSTANCE")
    return name


@frozen(kw_only=True)
class Body:
    """What a route takes.

    Args:
        shape: a type of `qsup.api.wire` for JSON, ``str`` for text.
        optional: an empty body stands for ``{}``.
    """

    shape: Any
    media: str = JSON
    optional: bool = False

    async def read(self, request: Request) -> Any:
        """The checked value; `UnsupportedMediaType`, `RequestError` and what `Request.body` raises."""
        self._check_media(request.headers.get("content-type", ""))
        data = await request.body()
        if self.media != JSON:
            try:
                return data.decode()
            except UnicodeDecodeError as error:
                raise RequestError(f"the body is not UTF-8: {error.reason} at byte {error.start}") from error
        if not data and self.optional:
            return {}
        value = jsontext.loads(data)
        check(value, self.shape)
        return value

    def _check_media(self, content_type: str) -> None:
        """A text is taken from who calls it that, or nothing; JSON says by itself whether it is."""
        media = content_type.partition(";")[0].strip().lower()
        if self.media == JSON or media in ("", self.media) or media.startswith("text/"):
            return
        raise UnsupportedMediaType(
            f"the body is said to be {media[:100]!r}, and is read as {self.media}",
            hint=f"send it with Content-Type: {self.media}",
        )


@frozen(kw_only=True)
class Reply:
    """One answer a route gives when it does what was asked.

    Args:
        shape: a type of `qsup.api.wire`; ``str`` or ``bytes`` for other media; ``None`` for no body.
        doc: what this status means here.
        many: a stream of such values, one after another, without end.
        headers: names of response headers worth documenting.
    """

    status: int = HTTPStatus.OK
    shape: Any = None
    media: str = JSON
    doc: str = "Done."
    many: bool = False
    headers: tuple[str, ...] = ()


@frozen(kw_only=True)
class Endpoint:
    """One method of one resource.

    Args:
        id: the OpenAPI operation id, a verb and a noun such as ``listInstances``.
        pattern: path with ``{name}`` segments.
        handler: called once everything declared has been read and checked.
        role: the least role that may call it.
        summary: one sentence without its full stop.
        doc: what else a client should know, or ``""``.
        replies: every answer that is not a problem.
        headers: request headers with a meaning here: name -> doc.
        errors: problems of its own, besides those that any request may meet: malformed, forbidden, a bug, overload.
    """

    id: str
    method: str
    pattern: str
    handler: Callable[[Call], Awaitable[Answer]]
    role: Role = field(validator=validators.instance_of(Role))
    summary: str
    replies: tuple[Reply, ...]
    doc: str = ""
    query: tuple[Parameter, ...] = ()
    headers: dict[str, str] = field(factory=dict)
    body: Body | None = None
    errors: tuple[type[QsupError], ...] = ()

    def bind(self, api: Api) -> Handler:
        """The handler for the router."""
        parameters, body, handler = self.query, self.body, self.handler

        async def handle(request: Request) -> Answer:
            query = read_query(parameters, request.query)
            return await handler(Call(api, request, query, await body.read(request) if body else None))

        return handle

    def problems(self) -> dict[int, list[type[QsupError]]]:
        """Its own errors by their status."""
        found: dict[int, list[type[QsupError]]] = {}
        for error in self.errors:
            found.setdefault(error.status, []).append(error)
        return dict(sorted(found.items()))
