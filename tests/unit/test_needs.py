"""What QEMU needs at least, as sums that a message shows."""

from __future__ import annotations

from qsup.unit.model import Unit
from qsup.unit.needs import threads_needed
from qsup.unit.sections.disks import IothreadSection
from qsup.unit.sections.machine import CpuSection


def test_iothreads_count_among_threads() -> None:
    """Each is one, and is named where there are any."""
    cpu = CpuSection(vcpus=2, max_vcpus=4)
    assert threads_needed(Unit(cpu=cpu)).words == "4 for vCPUs and 80 for QEMU itself"
    unit = Unit(cpu=cpu, iothreads=(IothreadSection(id="fast"), IothreadSection(id="slow")))
    need = threads_needed(unit)
    assert (need.total, need.words) == (86, "4 for vCPUs, 2 for iothreads and 80 for QEMU itself")
