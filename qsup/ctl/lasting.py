"""Whether a change is to last: the options of the verbs that change VMs.

Decides: their names, and how they reach the daemon.
Must not: say what is usual; the daemon knows whose unit it is.
"""

from __future__ import annotations

from qsup.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qsup.ctl.parser import Options, Parser


def add_lasting(parser: Parser) -> None:
    """Declare ``--persist`` and ``--runtime``."""
    usual = "as is usual for units of the administrator's"
    parser.add_argument("--persist", action="store_true", help=f"change the VM's unit, too, {usual}")
    parser.add_argument("--runtime", action="store_true", help="change the VM alone, until it ends")


def query(options: Options, *wanted: str) -> str:
    """The query of a request: what is wanted, and whether it is to last."""
    if options.persist and options.runtime:
        raise UsageError(f"{options.verb}: --persist and --runtime exclude each other", hint="without either: as usual")
    said = ["persist=1"] if options.persist else ["persist=0"] if options.runtime else []
    found = "&".join([*wanted, *said])
    return f"?{found}" if found else ""
