"""``events``: what happens, one line each, until interrupted.

Decides: how an event reads, and that a gap in the stream is told.
Must not: buffer: each event is out before the next is read.
"""

from __future__ import annotations

import sys
import time

from qsup.api.protocol import EVENT_TYPES, PREFIX, quote
from qsup.ctl.client import decode
from qsup.ctl.connection import Deadline
from qsup.ctl.names import matcher, name_of_vm
from qsup.ctl.parser import count, seconds
from qsup.ctl.render import bold, clean, document, key_values, paint, seconds_since_epoch
from qsup.errors import ClientError, DaemonUnreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from qsup.api.wire import Event
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser


def options(parser: Parser, verb: str) -> None:
    """Declare ``events [NAME...] [--type TYPE] [--since SEQ] [--count N] [--timeout TIME]``."""
    meaning = "only these VMs' events; globs match several"
    parser.add_argument("names", nargs="*", type=name_of_vm, metavar="NAME", help=meaning)
    meaning = "only events of this type, such as instance-state; globs match several"

    def types(text: str) -> str:
        for pattern in text.split(","):
            if not any(map(matcher([pattern]), EVENT_TYPES)):
                parser.none_of("--type TYPE", pattern, EVENT_TYPES)
        return text

    parser.add_argument("--type", action="append", type=types, metavar="TYPE", help=meaning)
    parser.add_argument("--since", type=count, metavar="SEQ", help="begin behind the event of this number")
    parser.add_argument("-n", "--count", type=int, metavar="N", help="end after N events")
    parser.add_argument("--timeout", type=seconds, metavar="TIME", help="end after this time")


def run(client: Client, options: Options) -> int:
    """Print events until interrupted, ``--count`` or ``--timeout``."""
    # a document that never ends cannot be indented JSON
    style = "jsonl" if options.output == "json" else options.output
    for number, event in enumerate(_events(client, options), 1):
        sys.stdout.write(document(event, style) if style == "jsonl" else describe(event))
        sys.stdout.flush()
        if number == options.count:
            break
    return 0


def _events(client: Client, options: Options) -> Iterator[Event]:
    deadline = Deadline(options.timeout)
    with client.stream(_path(options)) as stream:
        try:
            for line in stream.lines(deadline):
                event: Event = decode(line)
                if event["type"] == "overflow":
                    hint = "begin again, with --since to go on behind the last event shown"
                    raise ClientError("events came faster than they were read; some are lost", hint=hint)
                yield event
        except DaemonUnreachable:
            if deadline.left() != 0.0:
                raise
            return
    raise DaemonUnreachable("the daemon ended the stream of events")


def _path(options: Options) -> str:
    # the daemon takes globs, several with commas between them
    query = {"since": options.since, "type": ",".join(options.type), "instance": ",".join(options.names)}
    given = [f"{name}={quote(str(value))}" for name, value in query.items() if value not in (None, "")]
    return f"{PREFIX}/events" + ("?" + "&".join(given) if given else "")


def describe(event: Event) -> str:
    """One event on one line: local time, number, VM, type, and what there is to say."""
    moment = seconds_since_epoch(event["time"])
    clock = time.strftime("%H:%M:%S", time.localtime(moment)) + f".{int(moment % 1 * 1000):03}"
    data = event["data"]
    said = (
        _change(data)
        if event["type"] == "instance-state" and data.keys() >= {"state", "substate"}
        else key_values(data)
    )
    line = f"{clock} #{event['seq']} {clean(event['instance'] or '-'):<12} {bold(clean(event['type']))} {said}"
    return f"{line.rstrip()}\n"


def _change(data: dict[str, Any]) -> str:
    """``active (running), was waiting-ready``, with the cause where there is one."""
    if not data.keys() >= {"state", "substate"}:
        return key_values(data)
    said = f"{paint(clean(data['state']), data['state'])} ({clean(data['substate'])})"
    if data.get("previous"):
        said += f", was {clean(data['previous'])}"
    cause = data.get("cause")
    if isinstance(cause, dict):
        said += ": " + clean(": ".join(str(cause[key]) for key in ("text", "detail") if cause.get(key)))
    return said
