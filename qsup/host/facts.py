"""What planning must know of this host: whether KVM can be used, and which firmware QEMU's descriptors offer.

Decides: what "KVM can be used" means, and which firmware descriptors count.
Must not: choose among them (`qsup.plan`), or fail: what cannot be read is not there, and said in the log.

Sources: docs/interop/firmware.json in QEMU's source for the search path and the masking rules; /proc/cpuinfo.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from qsup.host import proc
from qsup.host.opening import open_regular
from qsup.plan.spec import Firmware, HostFacts

_log = structlog.get_logger(__name__)

SYSTEM_FIRMWARE = (Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware"))
_DESCRIPTOR_LIMIT = 64 * 1024
_TRANSPARENT = ("enabled", "shmem_enabled")
_X86 = ("x86_64", "i686", "i586", "i486", "i386")


def read_host_facts(
    *,
    firmware: Sequence[Path] = SYSTEM_FIRMWARE,
    kvm: Path = Path("/dev/kvm"),
    cpuinfo: Path = Path("/proc/cpuinfo"),
    memory: Path = Path("/sys/kernel/mm"),
) -> HostFacts:
    """Read the facts of this host as they are now; takes a fifth of a millisecond.

    Args:
        firmware: directories of descriptors, the first that has a file of some name masks the others.
        kvm: KVM's device node.
        cpuinfo: the kernel's list of CPU flags.
        memory: where the kernel says how it manages memory (ksm.rst and transhuge.rst in its admin-guide/mm).
    """
    architecture = platform.machine()
    closed = _kvm_closed(kvm)
    reason = closed or _kvm_missing(kvm, cpuinfo, architecture)
    return HostFacts(
        kvm=not reason,
        kvm_device=not closed,
        kvm_reason=reason,
        architecture=architecture,
        firmware=find_firmware(firmware),
        boot_id=proc.boot_id(),
        merges_pages=_word(memory / "ksm/run") == "1",
        hugepages={name: word for name in _TRANSPARENT if (word := _chosen(memory / "transparent_hugepage" / name))},
    )


def _word(path: Path) -> str:
    """What a file of the kernel's says, ``""`` for nothing."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _chosen(path: Path) -> str:
    """Of some words the one in brackets, as in ``always [madvise] never``."""
    found = re.search(r"\[(\w+)\]", _word(path))
    return found[1] if found else ""


def firmware_directories(env: Mapping[str, str], *, uid: int) -> tuple[Path, ...]:
    """Where QEMU's descriptors are, from high to low priority; root has no directory of its own."""
    home = Path(env.get("XDG_CONFIG_HOME") or Path(env.get("HOME", "/nonexistent"), ".config"))
    return SYSTEM_FIRMWARE if uid == 0 else (home / "qemu/firmware", *SYSTEM_FIRMWARE)


def _kvm_closed(kvm: Path) -> str:
    try:
        os.close(os.open(kvm, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return f"there is no {kvm} (is the kvm module loaded?)"
    except OSError as error:
        return f"{kvm} cannot be opened: {error.strerror}"
    return ""


def _kvm_missing(kvm: Path, cpuinfo: Path, architecture: str) -> str:
    """Why an open device does not mean KVM: nested and para-virtual ones exist that run no ordinary guest."""
    if architecture not in _X86:
        return ""
    return "" if _has_virtualisation(cpuinfo) else f"{kvm} opens, but the CPU lists neither vmx nor svm"


@functools.cache  # a processor keeps its flags until the next boot
def _has_virtualisation(cpuinfo: Path) -> bool:
    try:
        with open(cpuinfo, encoding="ascii", errors="replace") as file:
            flags = next((line.split() for line in file if line.startswith("flags")), [])
    except OSError as error:
        _log.warning("CPU flags not read", file=str(cpuinfo), reason=error.strerror)
        return False
    return "vmx" in flags or "svm" in flags


def find_firmware(directories: Sequence[Path]) -> tuple[Firmware, ...]:
    """All usable firmware, in the order of the descriptors' file names.

    Args:
        directories: from high to low priority. A file masks those of the same name in later directories, even when it
            is empty, which hides them.
    """
    chosen: dict[str, Path] = {}
    for directory in directories:
        for path in sorted(directory.glob("*.json")):
            chosen.setdefault(path.name, path)
    found = (_read_descriptor(chosen[name]) for name in sorted(chosen))
    return tuple(firmware for firmware in found if firmware)


def _read_descriptor(path: Path) -> Firmware | None:
    try:
        status = os.stat(path)
        if not status.st_size:
            return None  # it hides others, as a link to /dev/null does
        firmware = _parsed(path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
        for image in (firmware.executable, firmware.variables):
            if image:
                os.stat(image)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        _log.warning("firmware descriptor not used", file=str(path), reason=repr(error))
        return None
    return firmware


@functools.lru_cache(maxsize=64)
def _parsed(path: Path, version: tuple[int, ...]) -> Firmware:
    """A descriptor's content, read again when ``version`` says that it is another."""
    with open(open_regular(path, follow=True), "rb") as file:
        data = file.read(_DESCRIPTOR_LIMIT + 1)
    if len(data) > _DESCRIPTOR_LIMIT:
        raise ValueError(f"larger than {_DESCRIPTOR_LIMIT} bytes")
    return parse_descriptor(str(path), json.loads(data))


def parse_descriptor(path: str, value: Any) -> Firmware:
    """A descriptor's JSON value (``Firmware`` in firmware.json).

    Raises:
        ValueError: it is not one. So do `KeyError`, `TypeError` and `AttributeError`.
    """
    mapping = value["mapping"]
    # flash is in two parts, memory in one; other kinds are newer, and nothing here could use them
    executable = mapping["executable"] if mapping["device"] == "flash" else {"filename": mapping.get("filename", "")}
    variables = mapping.get("nvram-template", {"filename": ""})
    strings = (executable["filename"], variables["filename"], *value["interface-types"], *value["features"])
    if not all(isinstance(text, str) for text in strings):
        raise ValueError("a string was expected")
    return Firmware(
        descriptor=path,
        interfaces=tuple(value["interface-types"]),
        mapping=mapping["device"],
        executable=executable["filename"],
        executable_format=_format(executable),
        variables=variables["filename"],
        variables_format=_format(variables),
        machines=_machines(value["targets"]),
        features=tuple(value["features"]),
    )


def _format(file: Mapping[str, Any]) -> str:
    named = file.get("format", "raw")
    if named not in ("raw", "qcow2"):
        raise ValueError(f"image format {named!r}")
    return str(named)


def _machines(targets: Sequence[Mapping[str, Any]]) -> Mapping[str, tuple[str, ...]]:
    machines: dict[str, tuple[str, ...]] = {}
    for target in targets:
        globs = tuple(str(glob) for glob in target["machines"])
        machines[str(target["architecture"])] = machines.get(str(target["architecture"]), ()) + globs
    return machines
