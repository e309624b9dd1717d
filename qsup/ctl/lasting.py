"""The options of the verbs that change VMs: whether a change is to last, and how long the guest may take.

Decides: their names, and how they reach the daemon.
Must not: say what is usual; the daemon knows whose unit it is.
"""

from __future__ import annotations

from qsup.api.protocol import WAIT_MAX
from qsup.ctl.parser import seconds
from qsup.ctl.render import span
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


def add_force_after(parser: Parser) -> None:
    """Declare ``--force-after TIME``."""
    meaning = "reset a guest that has not let go by then of what is detached"
    parser.add_argument("--force-after", type=seconds, metavar="TIME", help=meaning)


def force_after(options: Options) -> list[str]:
    """That in the query of a request, if it is wanted."""
    after = options.force_after
    if after is None:
        return []
    if after > WAIT_MAX:
        words = f"{options.verb}: --force-after takes at most {span(WAIT_MAX)}, not {span(after)}"
        raise UsageError(words, hint="without it the guest has as long as it wants; qsupctl reset ends it, too")
    return [f"force-after={after:f}"]
