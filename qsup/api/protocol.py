"""What a client and the daemon agree on, as far as ``qsupctl`` needs it at every start. Pure, and quick to import.

Decides: qsup's version and the API's, bounds both sides know, media types, and the exit codes of ``qsupctl``.
Must not: import anything but the standard library's cheapest modules (typing and re cost milliseconds per command).

The shapes of requests and replies are in `qsup.api.wire`.
"""

from __future__ import annotations

#: qsup's own version; the package takes it from here.
VERSION = "0.1.0"
API_VERSION = "v1"
PREFIX = "/v1"

#: Longest path of a Unix socket, in bytes (unix(7): sun_path is 108 with its NUL).
SOCKET_PATH_MAX = 107
#: Longest request body the daemon reads.
BODY_MAX = 1 << 20
#: Longest wait for an operation that one request may ask for, in seconds.
WAIT_MAX = 3600.0

JSON = "application/json"
PROBLEM = "application/problem+json"
NDJSON = "application/x-ndjson"
EVENT_STREAM = "text/event-stream"
TOML = "application/toml"
PNG = "image/png"

#: The power verbs: ``POST /v1/instances/{instance}/{verb}`` answers 202 with an operation.
POWER_VERBS = ("start", "stop", "restart", "kill", "pause", "resume", "reset", "powerdown", "nmi", "reset-failed")
#: Those whose order counts among VMs that are named together: ``POST /v1/{verb}`` answers 202 with their operations.
ORDERED_VERBS = ("start", "stop", "restart")
#: Every type of event; the last one ends the stream of a listener that was too slow.
EVENT_TYPES = (
    *(
        "instance-state",
        "instance-changed",
        "operation",
        "device-removed",
        "guest-reset",
        "watchdog",
        "helper-ended",
        "device-pulled",
        "pin-drift",
        "start-forced",
    ),
    *("units-reloaded", "overflow"),
)
#: Most VMs that one request may name.
NAMES_MAX = 1000

# exit codes, as systemctl(1) and LSB use them
EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_NOT_ACTIVE = 3
EXIT_NO_SUCH_UNIT = 4
EXIT_UNREACHABLE = 5
EXIT_INTERRUPTED = 130


def instance_path(name: str, rest: str = "") -> str:
    """The path of an instance's resource; the name is quoted, ``rest`` is not.

    >>> instance_path("web@a b", "/start")
    '/v1/instances/web@a%20b/start'
    """
    return f"{PREFIX}/instances/{quote(name)}{rest}"


def quote(segment: str) -> str:
    """Percent-encode one path segment (RFC 3986), keeping its unreserved characters and ``@``."""
    keep = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~@"
    return "".join(chr(byte) if byte in keep else f"%{byte:02X}" for byte in segment.encode("utf-8", "surrogateescape"))
