"""The command line: `qsupctl list`.

Decides: the reference is the interpreter with the least that any client in Python needs.
Must not: measure a checkout whose modules are not compiled; the first go of each is not counted.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from tests.bench.figures import Figure, milliseconds, times
from tests.bench.workshop import Workshop, clock, in_turns, program

FACTOR = 1.6


def measure(shop: Workshop, repeat: int) -> Iterator[Figure]:
    """List a handful of VMs."""
    shop.add("one", "two", "three")
    yield list_figure(shop, repeat, "`qsupctl list`")


def list_figure(shop: Workshop, repeat: int, name: str, *, more: float = 0.0) -> Figure:
    """Run ``qsupctl list``.

    Args:
        more: milliseconds that it may take beyond the factor.
    """
    python = [sys.executable, "-I", "-S", "-c", "import json, socket"]
    qsupctl = [program("qsupctl"), "--socket", str(shop.socket), "list"]

    def run(command: list[str]) -> None:
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    (bare,), (ours,) = in_turns(repeat, lambda: (clock(run, python),), lambda: (clock(run, qsupctl),))
    return Figure(
        name=name,
        unit="ms",
        qsup=milliseconds(ours),
        bare=milliseconds(bare),
        reference="python3 -I -S, json, socket",
        limit=times(FACTOR, plus=more, unit="ms"),
    )
