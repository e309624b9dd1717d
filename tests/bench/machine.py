"""What machine a table was made on, in words.

Decides: what of a machine the figures depend on.
Must not: name the machine.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

from tests.bare import accelerator
from tests.guests import emulators


def describe(*, user: bool = False) -> str:
    """Processor, memory, kernel, Python, QEMU, accelerator, and how busy it was when this was asked.

    Args:
        user: root tries an ordinary user's daemon.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    accel = accelerator().upper() + (", hardware virtualisation hidden" if _is_hidden() else "")
    return (
        f"{len(os.sched_getaffinity(0))} x {_processor()}, {memory:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}, QEMU {emulators()[0].version} ({accel}), "
        f"{'root' if os.geteuid() == 0 and not user else 'not root'}, load {os.getloadavg()[0]:.1f}."
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _is_hidden() -> bool:
    """Whether KVM is used although the processor does not list what it needs: a para-virtual or nested one."""
    flags = Path("/proc/cpuinfo").read_text().split()
    return accelerator() == "kvm" and not {"vmx", "svm"} & set(flags)
