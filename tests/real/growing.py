"""Asking a VM that runs for more or fewer vCPUs, more or less memory.

Decides: how a test asks, and what it asks the guest.
Must not: assert anything; tests do.
"""

from __future__ import annotations

import json
from typing import Any

from tests.real.daemons import Daemon


def ask(
    daemon: Daemon, changes: dict[str, Any], *, vm: str = "web", wait: float = 30, query: str = ""
) -> dict[str, Any]:
    """Change keys, and wait at most so long: the operation as it is then."""
    body = json.dumps({"changes": changes}).encode()
    with daemon.client() as client:
        answer = client.exchange("PATCH", f"/v1/instances/{vm}?wait={wait:g}{query}", body=body, timeout=60.0)
    operation: dict[str, Any] = json.loads(answer)
    return operation


def cancel(daemon: Daemon, operation: dict[str, Any]) -> dict[str, Any]:
    """End an operation: as it is then."""
    with daemon.client() as client:
        ended: dict[str, Any] = client.delete(f"/v1/operations/{operation['id']}")
    return ended


def run(daemon: Daemon, command: str, *, vm: str = "web") -> str:
    """A shell command in the guest: what it wrote."""
    body = {"command": "exec", "path": "/bin/sh", "arguments": ["-c", command]}
    answer = daemon.post(f"/v1/instances/{vm}/agent", body)
    return str(answer["result"]["stdout"]).strip()


def differs(daemon: Daemon, *, vm: str = "web") -> dict[str, tuple[Any, Any]]:
    """What a VM runs with and its unit says otherwise, by key."""
    changes = daemon.get(f"/v1/instances/{vm}/diff")["changes"]
    return {change["key"]: (change["old"], change["new"]) for change in changes}
