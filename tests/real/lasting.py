"""A VM whose unit's files are looked at.

Decides: how one is started, and what is read of its files.
Must not: change a VM.
"""

from __future__ import annotations

from pathlib import Path

from qsup.unit.dropin import CHANGES
from tests.guests import Emulator
from tests.real.daemons import Daemon, rom_unit
from tests.real.hotplug import image

ROOT = '[[disk]]\nid = "root"  # mine\npath = "root.img"\n'


def start(daemon: Daemon, qemu: Emulator, rom: Path, name: str = "web", *, more: str = "", **sections: str) -> str:
    """A VM with a disk that its unit's own file has, and ``more`` tables: the text of that."""
    image(daemon, "root.img")
    image(daemon, "log.img")
    text = rom_unit(qemu, rom, tables=ROOT + more, **sections)
    daemon.unit(name, text)
    daemon.do(name, "start")
    return text


def said(daemon: Daemon, name: str = "web") -> str:
    """What the daemon's drop-in says, without the comment above it."""
    path = daemon.units / f"{name}.toml.d" / CHANGES
    return path.read_text().partition("\n\n")[2] if path.exists() else ""


def disks(daemon: Daemon, name: str = "web") -> list[str]:
    """The ids of the VM's disks."""
    return [disk["id"] for disk in daemon.view(name)["disks"]]


def verdicts(daemon: Daemon) -> dict[str, str]:
    """When each key would count."""
    keys = daemon.post("/v1/instances/web/apply?wait=30&dry-run=1")["result"]["keys"]
    return {key: said["applied"] for key, said in keys.items()}
