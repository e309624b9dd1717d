"""The guests and the QEMUs that real tests run, as ``contrib/`` provides them.

Decides: where they are found.
Must not: build or fetch anything itself; `contrib/guest/build.sh`, `contrib/host/build.sh` and `contrib/test.sh` do.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from pathlib import Path

import attrs

CONTRIB = Path(__file__).resolve().parents[1] / "contrib"


@attrs.frozen(kw_only=True)
class Emulator:
    """One QEMU: its ``qemu-system-x86_64`` and its version, such as ``7.2.22``."""

    path: Path
    version: str

    @property
    def img(self) -> Path:
        """The ``qemu-img`` of the same build."""
        return self.path.with_name("qemu-img")

    def __str__(self) -> str:
        return f"qemu-{self.version}"


@attrs.frozen(kw_only=True)
class LinuxGuest:
    """A Linux that boots directly, needs 128 MiB and says ``guest ready`` on its serial console.

    It has a shell there (prompt ``qsup-guest#``), a guest agent, DHCP on eth0, an HTTP server on port 80 that says
    ``hello from the guest``, and powers off when the power button is pressed.
    """

    kernel: Path
    initrd: Path
    append: str = "console=ttyS0 quiet cryptomgr.notests mitigations=off lsm="


@functools.cache
def cache_directory() -> Path:
    """Where built guests and fetched QEMUs are kept; every uid can reach what is there."""
    return Path(_shell(f". '{CONTRIB}/lib.sh'; cache_directory"))


@functools.cache
def emulators() -> tuple[Emulator, ...]:
    """Every QEMU of this machine, the installed one first."""
    installed = shutil.which("qemu-system-x86_64")
    fetched = sorted(cache_directory().glob("qemu-*/usr/bin/qemu-system-x86_64"))
    return tuple(_emulator(path) for path in ([Path(installed)] if installed else []) + fetched)


@functools.cache
def guest_directory() -> Path:
    """Where the guests of the present recipe are; the first call builds them when they are not there."""
    return Path(_shell(f"'{CONTRIB}/guest/build.sh'"))


@functools.cache
def host_directory() -> Path:
    """Where the host of several nodes of the present recipe is; the first call builds it, which takes minutes."""
    return Path(_shell(f"'{CONTRIB}/host/build.sh'"))


def rom_guest() -> Path:
    """The ROM that is a guest of its own; ``contrib/guest/rom.S`` says what it answers to."""
    return guest_directory() / "rom.bin"


def linux_guest() -> LinuxGuest:
    """The Linux guest."""
    return LinuxGuest(kernel=guest_directory() / "vmlinuz", initrd=guest_directory() / "initrd")


def _emulator(path: Path) -> Emulator:
    said = subprocess.run([path, "--version"], check=True, capture_output=True, text=True, timeout=30).stdout
    found = re.search(r"version (\d+(?:\.\d+)+)", said)
    assert found, said
    return Emulator(path=path, version=found[1])


def _shell(command: str) -> str:
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{command}:\n{done.stderr}")
    return done.stdout.strip()
