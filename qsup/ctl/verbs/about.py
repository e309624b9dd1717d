"""``whoami``, ``health`` and ``version``: about the daemon rather than a VM.

Decides: how these read.
Must not: fail at ``version`` for want of a daemon.
"""

from __future__ import annotations

import sys

from qsup.api.protocol import EXIT_FAILURE, EXIT_OK, PREFIX, VERSION
from qsup.ctl.render import clean, document, fields, paint, size, span
from qsup.errors import DaemonUnreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from qsup.api.wire import Health, UsageWire, Whoami
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser


def options(parser: Parser, verb: str) -> None:
    """None of the three has options of its own."""


def run(client: Client, options: Options) -> int:
    """Print the one that the verb names."""
    if options.verb == "whoami":
        return _show_whoami(client, options.output)
    return show_health(client, options.output) if options.verb == "health" else _show_version(client, options.output)


def show_health(client: Client, style: str) -> int:
    """Print how the daemon is; `EXIT_FAILURE` when it has a problem."""
    health: Health = client.get(f"{PREFIX}/health")
    if style != "table":
        sys.stdout.write(document(health, style))
    else:
        colour = "active" if health["status"] == "ok" else "failed"
        counts = [f"{count} {state}" for state, count in sorted(health["instances"].items()) if count]
        facts = [
            ("State", paint(health["status"], colour)),
            ("Version", clean(health["version"])),
            ("Main PID", str(health["pid"])),
            ("Up", span(health["uptime"])),
            ("Socket", clean(client.address.path)),
            ("VMs", ", ".join(counts) or "none"),
            ("Descriptors", _usage(health["descriptors"], str)),
            ("Memory", _usage(health["memory"], size)),
            *(("Problem", clean(problem)) for problem in health["problems"]),
        ]
        sys.stdout.write(f"{paint('●', colour)} qsupd\n" + fields(facts))
    return EXIT_OK if health["status"] == "ok" else EXIT_FAILURE


def _usage(usage: UsageWire, written: Callable[[int], str]) -> str:
    limit = usage["limit"]
    return written(usage["used"]) + ("" if limit is None else f" of {written(limit)}")


def _show_whoami(client: Client, style: str) -> int:
    who: Whoami = client.get(f"{PREFIX}/whoami")
    if style != "table":
        sys.stdout.write(document(who, style))
    else:
        groups = ", ".join(map(str, who["groups"]))
        facts = [("Role", who["role"]), ("UID", str(who["uid"])), ("GID", str(who["gid"])), ("Groups", groups)]
        sys.stdout.write(fields(facts))
    return EXIT_OK


def _show_version(client: Client, style: str) -> int:
    try:
        health: Health = client.get(f"{PREFIX}/health")
        daemon: str | None = health["version"]
    except DaemonUnreachable:
        daemon = None
    if style != "table":
        sys.stdout.write(document({"qsupctl": VERSION, "qsupd": daemon}, style))
    else:
        sys.stdout.write(f"qsupctl {VERSION}\nqsupd   {clean(daemon) if daemon is not None else 'not reachable'}\n")
    return EXIT_OK
