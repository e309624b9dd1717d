"""Changes of a VM that runs, by key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attrs import evolve

from qsup.instance.change import LIVE, previewed
from qsup.unit.keys import Applies, keys_of, sections_of
from qsup.unit.model import Unit
from qsup.unit.sections.machine import CpuSection
from qsup.unit.sections.service import ServiceSection


def keys(cls: type[Any], path: str = "") -> Iterator[tuple[str, Applies]]:
    """Every key as a change names it, and when it applies; entries of arrays are called ``x.y``."""
    yield from ((f"{path}{name}", facts.applies) for name, (_, facts) in keys_of(cls).items())
    for name, (_, nested, section) in sections_of(cls).items():
        if not section.many or "id" in keys_of(nested):
            yield from keys(nested, f"{path}{name}.{'x.y.' if section.many else ''}")


def test_each_live_key_is_somebodys() -> None:
    """What the model says to be changed live is carried out by one, and nobody carries out anything else."""
    for key, applies in keys(Unit):
        whose = [each for each in LIVE if each.concerns(key)]
        # without one of its own, the most follows the number
        assert len(whose) == (applies in (Applies.LIVE, Applies.RESET) or key == "cpu.max-vcpus"), key


def test_of_a_vm_that_cannot_be_asked_only_the_daemon_does_something_now() -> None:
    """What QEMU would have to do waits for the next start, and says why."""
    running = Unit()
    unit = evolve(running, cpu=CpuSection(vcpus=2), service=ServiceSection(restart="always"))
    said = {each.key: (each.applied, each.why) for each in previewed(running, unit, None)}
    assert said == {"cpu.vcpus": ("start", "QEMU cannot be asked now"), "service.restart": ("daemon", "")}
