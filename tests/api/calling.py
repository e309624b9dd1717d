"""The whole API over a real Unix socket, with a client that checks every answer against the OpenAPI document.

Decides: that no test can meet an answer which the document does not foresee.
Must not: know what an answer should say.
"""

from __future__ import annotations

import copy
import functools
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from qsup.api.openapi import document
from qsup.api.protocol import JSON, NDJSON, PROBLEM
from qsup.api.roles import Policy
from qsup.api.router import Router, parse_target
from qsup.api.routes.endpoint import Api
from qsup.api.routes.table import make_router
from qsup.errors import QsupError
from tests.api.fake import FakeBackend
from tests.api.serving import Client, Reply, Served, request, serving

#: Statuses of problems that any request may meet.
ANYWHERE = (400, 403, 500, 503)


@functools.cache
def closed_document() -> dict[str, Any]:
    """The OpenAPI document as tests read it: replies hold the members it names and no others.

    Only problems stay open: each error adds details of its own.
    """
    closed = copy.deepcopy(document())
    for name, schema in closed["components"]["schemas"].items():
        if name != "Problem":
            schema["additionalProperties"] = False
    return closed


def check_value(value: object, schema: dict[str, Any]) -> None:
    """Check a JSON value against a schema of the document."""
    Draft202012Validator({**schema, "components": closed_document()["components"]}).validate(value)


def check_reply(method: str, pattern: str, reply: Reply) -> None:
    """Check status, media type and body of an answer against what the document says of its route."""
    responses = closed_document()["paths"][pattern][method.lower()]["responses"]
    status = str(reply.status)
    assert status in responses or reply.status in ANYWHERE, f"{method} {pattern} does not document {status}"
    content = responses.get(status, closed_document()["components"]["responses"]["Problem"]).get("content", {})
    if not content:
        assert reply.body == b""
        return
    media = reply.headers["content-type"].partition(";")[0]
    assert media in content, f"{method} {pattern} does not document {media}"
    schema = content[media]["schema"]
    if media in (JSON, PROBLEM):
        check_value(json.loads(reply.body), schema)
    elif media == NDJSON:
        for line in reply.body.splitlines():
            check_value(json.loads(line), schema)


class Caller:
    """A connection to the API that checks every answer."""

    def __init__(self, client: Client, router: Router) -> None:
        self.client = client
        self._router = router

    async def call(self, method: str, target: str, *headers: str, body: object = None) -> Reply:
        """One request and its checked answer.

        Args:
            headers: whole header lines.
            body: text or bytes as they are, anything else as JSON, ``None`` for none.
        """
        await self.client.send(request(f"{method} {target}", *headers, body=_encoded(body)))
        reply = await self.client.reply(method)
        self._check(method, target, reply)
        return reply

    def _check(self, method: str, target: str, reply: Reply) -> None:
        try:
            route = self._router.find(method, parse_target(target).segments)
        except QsupError as error:
            assert reply.status == error.status
            check_value(reply.json(), {"$ref": "#/components/schemas/Problem"})
        else:
            check_reply(route.method, route.pattern, reply)

    async def get(self, target: str, *headers: str) -> Reply:
        """``GET target``."""
        return await self.call("GET", target, *headers)

    async def post(self, target: str, body: object = None, *headers: str) -> Reply:
        """``POST target`` with a JSON body."""
        return await self.call("POST", target, *headers, body=body)


def _encoded(body: object) -> bytes:
    if body is None:
        return b""
    if isinstance(body, bytes):
        return body
    return body.encode() if isinstance(body, str) else json.dumps(body).encode()


class Daemon:
    """A served API with the fake behind it."""

    def __init__(self, served: Served, backend: FakeBackend, api: Api, router: Router) -> None:
        self.served = served
        self.backend = backend
        self.api = api
        self._router = router

    async def connect(self) -> Caller:
        """A new connection."""
        return Caller(await self.served.connect(), self._router)


@asynccontextmanager
async def daemon(path: Path, *names: str) -> AsyncIterator[Daemon]:
    """The API on a socket below ``path``, with running VMs of these names. No bug may come up in it."""
    backend = FakeBackend(*names)
    api = Api(backend, policy=Policy(daemon_uid=os.getuid()), version="0.0.1")
    router = make_router(api)
    async with serving(path, router) as served:
        yield Daemon(served, backend, api, router)
        assert served.bugs == []
