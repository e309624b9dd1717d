"""``python -m tests.faults [CASE...]``: what qsup must survive, against real daemons and real QEMUs, as a table.

Decides: what the command line means, and where the table goes.
Must not: be slow by default in a test run: the tests by themselves are the short version.

The exit status is 0 when nothing was lost.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.bench.document import measured, put_measured
from tests.bench.machine import describe
from tests.faults.cases import CASES
from tests.faults.plugin import Campaign

REAL = Path(__file__).resolve().parents[1] / "real"
#: One test at a time; the logs of what fails are kept (see `tests.real.conftest`), not shown.
OPTIONS = ("-q", "--no-header", "-rN", "-n0", "-p", "no:cacheprovider", "--tb=short", "--show-capture=no")


def run(names: Sequence[str], *, tries: int | None, user: bool) -> Campaign:
    """Try cases.

    Args:
        names: of the cases.
        tries: how often faults are repeated, ``None`` for what the cases say.
        user: with an ordinary user's daemon.
    """
    campaign = Campaign(names, tries=tries, user=user)
    code = pytest.main([*OPTIONS, str(REAL)], plugins=[campaign])
    # one that was interrupted has not shown what it was to show
    campaign.tally.strays += code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    return campaign


def main(arguments: Sequence[str] | None = None) -> int:
    """The program: 0 when nothing was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Try what qsup must survive.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--tries", type=int, metavar="N", help="how often each fault is repeated (default: by case)")
    parser.add_argument("--user", action="store_true", help="as root, too, try an ordinary user's daemon")
    parser.add_argument(
        "--write",
        type=Path,
        metavar="FILE",
        help="put the table into this document as well, in place of those cases' lines",
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    if options.tries is not None and options.tries < 1:
        parser.error("--tries is at least 1")
    user = options.user or os.geteuid() != 0
    machine = describe(user=user)
    tally = run(options.cases or list(CASES), tries=options.tries, user=user).tally
    print(f"\n{machine}\n{tally.text()}\n{tally.summary()}")
    if options.write:
        what = "tried as a user" if user else "tried as root"
        table = tally.markdown(measured(options.write, what=what))
        put_measured(options.write, f"{machine}\n\n{table}", what=what)
    return tally.exit_code


if __name__ == "__main__":
    # whoever ends it wants the daemons and VMs to end, too
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
