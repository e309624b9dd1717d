"""Events: what happens, as it happens.

Decides: the two ways a stream of events is written, and which of them a listener asked for.
Must not: keep events, or slow anybody down for a listener; the supervisor's ring does neither.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import trio

from qsup.api import jsontext, render, wire
from qsup.api.backend import EventRecord
from qsup.api.http import Answer, Role, StreamResponse
from qsup.api.protocol import EVENT_STREAM, EVENT_TYPES, NDJSON, PREFIX
from qsup.api.routes.endpoint import Call, Endpoint, Reply
from qsup.api.routes.parameters import Globs, count, globs
from qsup.errors import GoneError, NotAcceptable, RequestError
from qsup.instance.events import OVERFLOW

#: How often a listener for server-sent events hears something, in seconds, so that no proxy between takes it for dead.
KEEP_ALIVE = 15.0
_SINCE = count(
    "since", "Begin behind the event of this `seq`; without it, with the next one.", minimum=0, maximum=2**63 - 1
)
#: What a client may ask for, and what it gets.
_MEDIA = {
    NDJSON: NDJSON,
    EVENT_STREAM: EVENT_STREAM,
    "*/*": NDJSON,
    "application/*": NDJSON,
    "text/*": EVENT_STREAM,
}

Filter = Callable[[EventRecord], bool]


async def _events(call: Call) -> Answer:
    headers = call.request.headers
    media = _chosen_media(headers.get("accept", "*/*"))
    since = call.query["since"]
    if since is None and "last-event-id" in headers:
        since = _last_event_id(headers["last-event-id"])
    # GoneError comes here, while it can still be answered
    records = call.backend.events(since=since)
    write = _server_sent if media == EVENT_STREAM else _lines
    return StreamResponse(
        headers={"content-type": media, "cache-control": "no-store"},
        chunks=write(records, _filter(call.query["type"], call.query["instance"])),
    )


def _chosen_media(accept: str) -> str:
    """The first of the media types named in an Accept header that is offered."""
    for part in accept.split(","):
        media = part.partition(";")[0].strip().lower()
        if media in _MEDIA:
            return _MEDIA[media]
    raise NotAcceptable(f"events come as {NDJSON} or {EVENT_STREAM}")


def _last_event_id(text: str) -> int:
    """Where a browser's EventSource goes on after its connection broke."""
    try:
        since: int = _SINCE.parse(text)
    except ValueError as error:
        raise RequestError(f"Last-Event-ID must be {error}") from error
    return since


def _filter(types: Globs | None, instances: Globs | None) -> Filter:
    def wanted(record: EventRecord) -> bool:
        if record.type == OVERFLOW:
            return True  # it is the end of the stream, whatever is listened for
        return (types is None or types.match(record.type)) and (instances is None or instances.match(record.instance))

    return wanted


async def _lines(records: AsyncIterator[EventRecord], wanted: Filter) -> AsyncIterator[bytes]:
    async for record in records:
        if wanted(record):
            yield jsontext.dumps(render.event(record)) + b"\n"


async def _server_sent(records: AsyncIterator[EventRecord], wanted: Filter) -> AsyncIterator[bytes]:
    """Server-sent events (WHATWG HTML, section 9.2), with a comment where there was nothing to say for a while."""
    while True:
        chunk = b": keep-alive\n\n"
        with trio.move_on_after(KEEP_ALIVE):
            try:
                chunk = await _next_sent(records, wanted)
            except StopAsyncIteration:
                return
        yield chunk


async def _next_sent(records: AsyncIterator[EventRecord], wanted: Filter) -> bytes:
    while not wanted(record := await anext(records)):
        pass
    data = jsontext.dumps(render.event(record)).decode()
    return f"id: {record.seq}\nevent: {record.type}\ndata: {data}\n\n".encode()


ENDPOINTS = (
    Endpoint(
        id="listenEvents",
        method="GET",
        pattern=f"{PREFIX}/events",
        handler=_events,
        role=Role.READ,
        summary="Events as they happen, without end",
        doc="One JSON object a line, or server-sent events where `Accept` asks for `text/event-stream`. A listener "
        "that is too slow gets a last event `overflow`; one whose `since` is no longer kept is told so with 410. In "
        "both cases: listen from now on, then read the instances anew.",
        query=(
            _SINCE,
            globs(
                "type",
                "Only these types: names or globs, separated by commas. Each must match one of "
                f"{', '.join(f'`{each}`' for each in EVENT_TYPES)}.",
                *EVENT_TYPES,
            ),
            globs("instance", "Only of these VMs: names or globs, separated by commas."),
        ),
        headers={"Last-Event-ID": "The same as `since`, as browsers send it."},
        replies=(
            Reply(shape=wire.Event, media=NDJSON, many=True, doc="The events."),
            Reply(shape=str, media=EVENT_STREAM, many=True, doc="The same as server-sent events."),
        ),
        errors=(GoneError, NotAcceptable),
    ),
)
