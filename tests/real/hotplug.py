"""What QEMU has, asked of itself, to hold against what the API says.

Decides: how a test attaches, detaches and looks.
Must not: assert anything but that both say the same; tests do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.real.daemons import Daemon
from tests.waiting import came_true

#: Bytes of a small image; firmware refuses to boot from less.
SMALL = 1 << 20


def image(daemon: Daemon, name: str, size: int = SMALL) -> Path:
    """A raw image in the daemon's pool."""
    path = daemon.images / name
    with path.open("wb") as file:
        file.truncate(size)
    return path


def qmp(daemon: Daemon, vm: str, command: str, **arguments: object) -> Any:
    """One QMP command's result."""
    return daemon.post(f"/v1/instances/{vm}/qmp", {"execute": command, "arguments": arguments})["result"]


def peripherals(daemon: Daemon, vm: str) -> set[str]:
    """The ids of QEMU's devices."""
    children = qmp(daemon, vm, "qom-list", path="/machine/peripheral")
    return {child["name"] for child in children if child["type"].startswith("child<")}


def chardevs(daemon: Daemon, vm: str) -> set[str]:
    """The names of QEMU's character devices."""
    return {each["label"] for each in qmp(daemon, vm, "query-chardev")}


def nodes(daemon: Daemon, vm: str) -> set[str]:
    """The names of QEMU's block nodes."""
    return {node["node-name"] for node in qmp(daemon, vm, "query-named-block-nodes", flat=True)}


def fdsets(daemon: Daemon, vm: str) -> list[int]:
    """The numbers of QEMU's descriptor sets."""
    return sorted(entry["fdset-id"] for entry in qmp(daemon, vm, "query-fdsets"))


def shown(daemon: Daemon, vm: str) -> set[str]:
    """The ids of the devices that the API shows."""
    return {device["id"] for device in daemon.get(f"/v1/instances/{vm}/devices")["devices"]}


def state(daemon: Daemon, vm: str, device: str) -> str:
    """Where a device stands by the API, ``""`` where there is none."""
    devices = daemon.get(f"/v1/instances/{vm}/devices")["devices"]
    return next((each["state"] for each in devices if each["id"] == device), "")


def attach(daemon: Daemon, vm: str, noun: str, **entry: object) -> dict[str, Any]:
    """Attach to a VM that runs, and not to its unit, and wait: the finished operation."""
    operation: dict[str, Any] = daemon.post(f"/v1/instances/{vm}/{noun}?wait=30&persist=0", _hyphens(entry))
    return operation


def attach_lasting(daemon: Daemon, vm: str, noun: str, **entry: object) -> dict[str, Any]:
    """Attach to a VM that runs and to its unit, and wait: the finished operation."""
    operation: dict[str, Any] = daemon.post(f"/v1/instances/{vm}/{noun}?wait=30", _hyphens(entry))
    return operation


def change(daemon: Daemon, vm: str, **changes: object) -> dict[str, Any]:
    """Change a VM that runs as a drop-in would say it, and not its unit, and wait: the finished operation."""
    with daemon.client() as client:
        path = f"/v1/instances/{vm}?wait=60&persist=0"
        operation: dict[str, Any] = client.patch(path, {"changes": changes}, timeout=70.0)
    return operation


def detach(daemon: Daemon, vm: str, path: str, *, wait: float = 30, query: str = "") -> dict[str, Any]:
    """Detach ``disks/data`` and its like from a VM that runs, and wait at most so long: the operation as it is then."""
    return detach_lasting(daemon, vm, path, wait=wait, query=f"&persist=0{query}")


def detach_lasting(daemon: Daemon, vm: str, path: str, *, wait: float = 30, query: str = "") -> dict[str, Any]:
    """The same, from its unit, too."""
    with daemon.client() as client:
        operation: dict[str, Any] = client.delete(f"/v1/instances/{vm}/{path}?wait={wait:g}{query}")
    return operation


def told(operation: dict[str, Any], key: str) -> dict[str, Any]:
    """What the result of a change says of a key, besides that it was changed."""
    said = operation["result"]["keys"][key]
    return {name: value for name, value in said.items() if name not in ("applied", "old", "new")}


def set_keys(daemon: Daemon, vm: str, query: str = "", **keys: str) -> dict[str, Any]:
    """Change keys, as ``qsupctl set`` names them, and wait: the finished operation."""
    return patch(daemon, vm, {"keys": {name.replace("__", "."): text for name, text in keys.items()}}, query)


def patch(daemon: Daemon, vm: str, body: dict[str, Any], query: str = "") -> dict[str, Any]:
    """Change a VM by a PATCH and wait: the finished operation."""
    with daemon.client() as client:
        operation: dict[str, Any] = client.patch(f"/v1/instances/{vm}?wait=30{query}", body)
    return operation


def finished(daemon: Daemon, operation: dict[str, Any], *, seconds: float = 20.0) -> dict[str, Any]:
    """An operation once it has ended."""
    found: dict[str, Any] = daemon.get(f"/v1/operations/{operation['id']}/wait?timeout={seconds:g}")
    assert found["state"] != "running", found
    return found


def agree(daemon: Daemon, vm: str) -> bool:
    """Whether the API shows just the devices that QEMU has, soon."""
    return came_true(lambda: shown(daemon, vm) == peripherals(daemon, vm), seconds=5.0)


def guest(daemon: Daemon, vm: str, command: str) -> str:
    """What a command in the guest prints."""
    body = {"command": "exec", "path": "/bin/sh", "arguments": ["-c", command], "timeout": 10}
    return str(daemon.post(f"/v1/instances/{vm}/agent", body)["result"]["stdout"]).strip()


def _hyphens(entry: dict[str, object]) -> dict[str, object]:
    return {name.replace("_", "-"): value for name, value in entry.items()}


def in_guest(daemon: Daemon, vm: str, script: str) -> str:
    """What a shell in the guest writes."""
    request = {"command": "exec", "path": "/bin/sh", "arguments": ["-c", script], "timeout": 20.0}
    result = daemon.post(f"/v1/instances/{vm}/agent", request)["result"]
    assert result["exit_code"] == 0, result
    return str(result["stdout"])
