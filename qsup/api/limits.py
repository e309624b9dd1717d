"""The bounds of one API server. Pure.

Decides: the default of each bound.
Must not: enforce them.
"""

from __future__ import annotations

from attrs import frozen

from qsup.api.protocol import BODY_MAX


@frozen(kw_only=True)
class Limits:
    """Sizes in bytes, times in seconds.

    Args:
        header: request line and header together. What arrives in one piece may pass it by 16 KiB.
        body: a request's body, declared or not.
        message: one WebSocket message from a client.
        header_timeout: from a request's first bytes to the end of its header.
        body_timeout: for the whole body, from when it is first asked for.
        send_timeout: for the peer to take a whole answer, or one chunk or message of an endless one.
        idle_timeout: between requests.
        drain_timeout: for running requests to end when the server does.
        connections: at once.
        connections_per_uid: at once, of one user.
        connections_for_administrators: beyond both, for those who administer.
    """

    header: int = 32768
    body: int = BODY_MAX
    message: int = 262144
    header_timeout: float = 5.0
    body_timeout: float = 10.0
    send_timeout: float = 10.0
    idle_timeout: float = 60.0
    drain_timeout: float = 2.0
    connections: int = 256
    connections_per_uid: int = 128
    connections_for_administrators: int = 16
