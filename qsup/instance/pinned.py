"""Which vCPUs are pinned to which CPUs of the host. Pure.

Decides: how the CPUs of each vCPU become the vCPUs of each CPU.
Must not: choose where a vCPU runs, or read where its thread really is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from attrs import frozen


@frozen
class Pinned:
    """One vCPU of a VM that may run on a CPU, and on none but those it is pinned to."""

    instance: str
    vcpu: int


def by_cpu(sets: Mapping[str, Sequence[Iterable[int]]]) -> Mapping[int, tuple[Pinned, ...]]:
    """Who is pinned to each CPU, by name and number of the vCPU; CPUs that nobody is pinned to are left out.

    Args:
        sets: by VM the CPUs that each vCPU is pinned to, none of one that is not.
    """
    found: dict[int, list[Pinned]] = {}
    for instance, cpus_of in sorted(sets.items()):
        for vcpu, cpus in enumerate(cpus_of):
            for cpu in set(cpus):
                found.setdefault(cpu, []).append(Pinned(instance, vcpu))
    return {cpu: tuple(pinned) for cpu, pinned in sorted(found.items())}
