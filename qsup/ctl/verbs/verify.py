"""``verify``: check unit files, without a daemon or against its host.

Decides: how what is wrong is shown, and the exit code.
Must not: look at the host itself; it may be another one than the daemon's.
"""

from __future__ import annotations

import sys

from qsup.api.protocol import EXIT_FAILURE, EXIT_OK, PREFIX
from qsup.ctl.failures import complain
from qsup.ctl.render import clean, documents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from qsup.api.wire import HostCheck, HostCheckRequest
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser
    from qsup.errors import Diagnostic
    from qsup.unit.compose import Composed


def options(parser: Parser, verb: str) -> None:
    """Declare ``verify [--host] FILE...``."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="unit files, or directories of them")
    parser.add_argument("--host", action="store_true", help="ask the daemon whether they could start on its host, too")


def run(client: Client, options: Options) -> int:
    """Print every error of every file on standard error; silence means that all are right."""
    from qsup.unit.verify import verify_units  # the unit parser is heavy, and only two verbs need it

    diagnostics, units = verify_units(options.files)
    if options.host:
        diagnostics = (*diagnostics, *_check_host(client, units))
    if options.output == "table":
        complain(*(clean(diagnostic) for diagnostic in diagnostics))
    else:
        found = [diagnostic.as_dict() for diagnostic in diagnostics]
        sys.stdout.write(documents(found, options.output, "diagnostics"))
    return EXIT_FAILURE if diagnostics else EXIT_OK


def _check_host(client: Client, units: Mapping[str, Composed]) -> Iterable[Diagnostic]:
    """What the daemon finds of those that have no errors, each at its file and line; a template is no VM."""
    from qsup.unit.check import Finding
    from qsup.unit.compose import blame
    from qsup.unit.kinds import is_instance_name
    from qsup.unit.model import Unit
    from qsup.unit.write import difference

    sound = {name: each.unit for name, each in units.items() if each.unit is not None and is_instance_name(name)}
    values = [{"name": name, "values": difference(Unit(), unit)} for name, unit in sound.items()]
    request: HostCheckRequest = {"units": values}  # type: ignore[typeddict-item]  # of `HostCheckUnit`
    found: HostCheck = client.post(f"{PREFIX}/units/validate-host", request)
    told = []
    for each in found["findings"]:
        name = each["unit"]
        diagnostic = blame(units[name].merged, Finding(each["message"], [tuple(key) for key in each["keys"]]))
        if f"/{name}.toml" not in f"/{diagnostic.file}":
            # a template's, or one that several units share
            diagnostic.message = f"VM {name}: {diagnostic.message}"
        told.append(diagnostic)
    return told
