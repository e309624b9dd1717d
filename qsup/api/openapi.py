"""The OpenAPI 3.1 document, made from the route table and the types of `qsup.api.wire`.

Decides: how a declaration reads in OpenAPI's words. ``python -m qsup.api.openapi`` prints what ``docs/openapi.json``
holds.
Must not: hold a fact about a route or a shape that its declaration lacks.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, Literal, Union, get_args, get_origin, is_typeddict

from qsup.api import wire
from qsup.api.protocol import API_VERSION, PROBLEM
from qsup.api.routes.body import members
from qsup.api.routes.endpoint import Body, Endpoint, Reply
from qsup.api.routes.table import ENDPOINTS
from qsup.unit.generated import print_or_check

_Schema = dict[str, Any]
_SCALARS: Mapping[Any, _Schema] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    types.NoneType: {"type": "null"},
    bytes: {"type": "string", "contentMediaType": "application/octet-stream"},
    dict: {"type": "object"},
    Any: {},
}
_PROBLEM: _Schema = {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}
_ANY_PROBLEM = "A malformed request (400), a role too small (403), a bug of the daemon's (500), a bound reached (503)."
_DESCRIPTION = (
    "qsupd supervises QEMU virtual machines. The API is HTTP/1.1 with JSON on a Unix socket. Who calls is known by the "
    "kernel's word (SO_PEERCRED); `x-role` names the least role that an operation needs. Replies may gain members; "
    "requests with unknown members or parameters are refused."
)


def document() -> _Schema:
    """The whole document, JSON values."""
    shapes: dict[str, Any] = {"Problem": wire.Problem}
    paths: dict[str, _Schema] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.pattern, {})[endpoint.method.lower()] = _operation(endpoint, shapes)
    return {
        "openapi": "3.1.0",
        "info": {"title": "qsup", "version": API_VERSION, "description": _DESCRIPTION},
        "servers": [{"url": "http://localhost", "description": "the daemon's Unix socket"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(map(tag_of, ENDPOINTS))],
        "paths": paths,
        "components": {
            "responses": {"Problem": {"description": _ANY_PROBLEM, "content": _PROBLEM}},
            "schemas": dict(sorted(_components(shapes).items())),
        },
    }


def tag_of(endpoint: Endpoint) -> str:
    """The noun an endpoint belongs to: its module."""
    handler = getattr(endpoint.handler, "func", endpoint.handler)
    return str(handler.__module__).rpartition(".")[2]


def _operation(endpoint: Endpoint, shapes: dict[str, Any]) -> _Schema:
    operation: _Schema = {
        "operationId": endpoint.id,
        "tags": [tag_of(endpoint)],
        "summary": endpoint.summary,
        "x-role": endpoint.role.label,
    }
    if endpoint.doc:
        operation["description"] = endpoint.doc
    if parameters := list(_parameters(endpoint)):
        operation["parameters"] = parameters
    if endpoint.body is not None:
        operation["requestBody"] = _request_body(endpoint.body, shapes)
    operation["responses"] = _responses(endpoint, shapes)
    return operation


def _parameters(endpoint: Endpoint) -> Iterator[_Schema]:
    for segment in endpoint.pattern.split("/"):
        if segment.startswith("{"):
            yield {"name": segment[1:-1], "in": "path", "required": True, "schema": {"type": "string"}}
    for parameter in endpoint.query:
        yield {"name": parameter.name, "in": "query", "description": parameter.doc, "schema": dict(parameter.schema)}
    for name, doc in endpoint.headers.items():
        yield {"name": name, "in": "header", "description": doc, "schema": {"type": "string"}}


def _request_body(body: Body, shapes: dict[str, Any]) -> _Schema:
    return {"required": not body.optional, "content": {body.media: {"schema": schema_of(body.shape, shapes)}}}


def _responses(endpoint: Endpoint, shapes: dict[str, Any]) -> _Schema:
    responses: _Schema = {}
    for reply in endpoint.replies:
        response = responses.setdefault(str(reply.status), {"description": reply.doc})
        if reply.headers:
            response["headers"] = {name: {"schema": {"type": "string"}} for name in reply.headers}
        if reply.shape is not None:
            response.setdefault("content", {})[reply.media] = _content(reply, shapes)
    for status, errors in endpoint.problems().items():
        codes = ", ".join(f"`{error.code}`" for error in errors)
        responses[str(status)] = {"description": f"{HTTPStatus(status).phrase}: {codes}.", "content": _PROBLEM}
    responses["default"] = {"$ref": "#/components/responses/Problem"}
    return responses


def _content(reply: Reply, shapes: dict[str, Any]) -> _Schema:
    schema = schema_of(reply.shape, shapes)
    # OpenAPI 3.2 has itemSchema for it; 3.1 has no word for a stream of values
    return {"schema": schema, "x-stream": True} if reply.many else {"schema": schema}


def schema_of(shape: Any, shapes: dict[str, Any]) -> _Schema:
    """The JSON Schema of a type.

    Args:
        shape: as `qsup.api.routes.body.check` takes it.
        shapes: TypedDicts met on the way are added here, by name, and referred to.
    """
    origin = get_origin(shape)
    if is_typeddict(shape):
        shapes[shape.__name__] = shape
        return {"$ref": f"#/components/schemas/{shape.__name__}"}
    if origin is list:
        return {"type": "array", "items": schema_of(get_args(shape)[0], shapes)}
    if origin is dict:
        return {"type": "object", "additionalProperties": schema_of(get_args(shape)[1], shapes)}
    if origin is Literal:
        return {"enum": list(get_args(shape))}
    if origin in (Union, types.UnionType):
        return {"anyOf": [schema_of(inner, shapes) for inner in get_args(shape)]}
    return dict(_SCALARS[shape])


def _components(shapes: dict[str, Any]) -> dict[str, _Schema]:
    """The schemas of ``shapes`` and of all that these refer to in turn."""
    done: dict[str, _Schema] = {}
    while missing := [name for name in shapes if name not in done]:
        for name in missing:
            done[name] = _object(shapes[name], shapes)
    return done


def _object(shape: type, shapes: dict[str, Any]) -> _Schema:
    known = members(shape)
    return {
        "type": "object",
        "description": " ".join((shape.__doc__ or "").split()),
        "properties": {name: schema_of(inner, shapes) for name, (inner, _) in known.items()},
        "required": [name for name, (_, required) in known.items() if required],
    }


def text() -> str:
    """The document as the file holds it."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    """Print the document, or compare it with a file."""
    return print_or_check(text(), "qsup.api.openapi", sys.argv)


if __name__ == "__main__":
    sys.exit(main())
