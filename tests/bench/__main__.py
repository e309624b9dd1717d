"""``python -m tests.bench [NAME...]``: measures qsup beside bare scripts, and prints a table.

Decides: which subjects there are, and where the table goes.
Must not: be a test; nothing timed is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench import adoption, command, crash, crowd, hotplug, life, many, pins, placement, requests, stalled
from tests.bench.document import put_measured
from tests.bench.figures import Figure, markdown_table, text_table
from tests.bench.machine import describe
from tests.bench.workshop import Workshop, clean_environment, workshop

SUBJECTS: dict[str, Callable[[Workshop, int], Iterator[Figure]]] = {
    "life": life.measure,
    "crash": crash.measure,
    "requests": requests.measure,
    "command": command.measure,
    "crowd": crowd.measure,
    "many": many.measure,
    "adopt": adoption.measure,
    "stalled": stalled.measure,
    "hotplug": hotplug.measure,
    "pins": pins.measure,
    "placement": placement.measure,
}


def main() -> int:
    """Measure what was asked for: 0 when every target is met."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure qsup beside bare scripts.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to measure, of {', '.join(SUBJECTS)}")
    parser.add_argument("--repeat", type=int, default=50, metavar="N", help="how often (default: %(default)s)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into this document as well")
    options = parser.parse_args()
    if unknown := set(options.names) - set(SUBJECTS):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    clean_environment()
    machine = describe()
    print(machine, flush=True)
    figures: list[Figure] = []
    for name in options.names or SUBJECTS:
        with workshop() as shop:
            for figure in SUBJECTS[name](shop, options.repeat):
                print(f"{name}: {' '.join(figure.cells())}", file=sys.stderr, flush=True)
                figures.append(figure)
    print(text_table(figures))
    if options.write:
        put_measured(options.write, f"{machine}\n\n{markdown_table(figures)}")
    return 0 if all(figure.is_met for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
