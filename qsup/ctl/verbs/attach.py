"""``attach``, ``detach`` and ``devices``: what a VM has while it runs.

Decides: how an entry of a unit is written on a command line, and how devices are shown.
Must not: judge what can be attached; the daemon does.
"""

from __future__ import annotations

import sys

from qsup.api.protocol import EXIT_OK, instance_path, quote
from qsup.ctl.client import new_token
from qsup.ctl.connection import Deadline
from qsup.ctl.lasting import add_force_after, add_lasting, force_after, query
from qsup.ctl.names import add_name, name_of_vm
from qsup.ctl.parser import seconds
from qsup.ctl.render import clean, document, table
from qsup.ctl.verbs.power import see_through
from qsup.ctl.verbs.set import assignments
from qsup.errors import NoSuchDevice, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from qsup.api.wire import Operation, PluggedList, PluggedWire
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser

_NOUNS = {"disk": "disks", "nic": "nics", "device": "devices"}
#: Names of examples, by kind, and the keys whose value is a better one.
_NAMES = {"disk": "data", "nic": "dmz", "device": "random"}
_TELLING = ("path", "name", "type")
_HEADER = ("ID", "DRIVER", "BUS", "ADDRESS", "FOR", "STATE")


def options(parser: Parser, verb: str) -> None:
    """Declare ``attach NAME KIND KEY=VALUE...``, ``detach NAME ID``, ``devices NAME``."""
    add_name(parser)
    if verb == "devices":
        parser.add_argument("--tree", action="store_true", help="each device below the one it hangs on")
        return
    if verb == "attach":
        parser.add_argument("kind", choices=tuple(_NOUNS), metavar="KIND", help="disk, nic or device")
        parser.add_argument(
            "values", nargs="+", metavar="KEY=VALUE", help="as in a unit, such as path=data.img bus=scsi"
        )
    else:
        parser.add_argument("id", type=name_of_vm, metavar="ID", help="such as data, or disk.data")
        parser.add_argument("--force", action="store_true", help="also what the VM boots from")
        add_force_after(parser)
    add_lasting(parser)
    add_waiting(parser)


def run(client: Client, options: Options) -> int:
    """Show, or begin and wait."""
    if options.verb == "devices":
        return _show(client, options)
    if options.verb == "attach":
        path = instance_path(options.name, f"/{_NOUNS[options.kind]}{query(options)}")
        operation: Operation = client.post(path, {"keys": entry(options)}, key=new_token())
    else:
        wanted = ["force=1"] * options.force + force_after(options)
        operation = client.delete(_path(client, options) + query(options, *wanted), key=new_token())
    return see_through(client, {options.name: operation}, options, Deadline(options.timeout))


def add_waiting(parser: Parser) -> None:
    """Declare ``[--no-block] [--timeout TIME]``."""
    parser.add_argument("--no-block", action="store_true", help="do not wait for the end of the operation")
    parser.add_argument("--timeout", type=seconds, metavar="TIME", help="how long to wait for the end, such as 90s")


def entry(options: Options) -> dict[str, str]:
    """The texts of an entry's keys; the daemon knows what each means.

    Raises:
        UsageError: it has no name.
    """
    values = assignments(options.values, such_as="path=data.img")
    if not values.get("id"):
        words = f"attach: the {options.kind} needs an id, the name by which it is detached again"
        raise UsageError(words, hint=f"add one, such as id={_name(options.kind, values)}")
    return values


def _name(kind: str, values: Mapping[str, str]) -> str:
    """A name for an example, made from what is said."""
    said = next((values[key] for key in _TELLING if values.get(key)), "")
    stem = said.rpartition("/")[2].partition(".")[0]
    return stem if stem.isascii() and stem.replace("-", "").replace("_", "").isalnum() else _NAMES[kind]


def _path(client: Client, options: Options) -> str:
    """The path of what is named, by its section or, where that says enough, without."""
    section, dot, name = options.id.partition(".")
    if dot and section in _NOUNS:
        return instance_path(options.name, f"/{_NOUNS[section]}/{quote(name)}")
    found: PluggedList = client.get(instance_path(options.name, "/devices"))
    entries = {device["entry"] for device in found["devices"]}.union(found["absent"])
    known = [each for each in _NOUNS if f"{each}.{options.id}" in entries]
    if len(known) > 1:
        raise UsageError(
            f"{options.id!r} may be {' or '.join(f'{each}.{options.id}' for each in known)}", hint="say which"
        )
    if not known:
        words = f"it has no disk, NIC or device {options.id!r}"
        raise NoSuchDevice(words, instance=options.name, hint=f"qsupctl devices {options.name} shows what it has")
    return instance_path(options.name, f"/{_NOUNS[known[0]]}/{quote(options.id)}")


def _show(client: Client, options: Options) -> int:
    found: PluggedList = client.get(instance_path(options.name, "/devices"))
    if options.output != "table":
        sys.stdout.write(document(found, options.output))
        return EXIT_OK
    devices = found["devices"]
    rows = _tree(devices) if options.tree else [(device["id"], device) for device in devices]
    sys.stdout.write(table(_HEADER, [_row(label, device) for label, device in rows]))
    for entry in found["absent"]:
        sys.stdout.write(absent(options.name, entry))
    slots = found["slots"]
    sys.stdout.write(f"{slots['free']} of {slots['total']} hotplug slots free\n")
    return EXIT_OK


def absent(vm: str, entry: str) -> str:
    """What can be done about an entry that the unit has and QEMU has not."""
    vm, entry = clean(vm), clean(entry)
    words = f"qsupctl apply {vm} attaches it, qsupctl detach {vm} {entry} takes it out of the unit"
    return f"{entry} is in the unit and not in QEMU: {words}\n"


def _row(label: str, device: PluggedWire) -> tuple[str, ...]:
    columns = (device["driver"], device["bus"], device["address"], device["entry"], device["state"])
    return (clean(label), *(clean(column) or "-" for column in columns))


def _tree(devices: Sequence[PluggedWire], bus: str | None = None, depth: int = 0) -> Iterator[tuple[str, PluggedWire]]:
    """Each device below the one whose bus it is on: a bus is called as its device, mostly with a number behind."""
    ids = {device["id"] for device in devices}
    for device in devices:
        parent = next((name for name in (device["bus"], device["bus"].rpartition(".")[0]) if name in ids), None)
        if parent == bus:
            yield "  " * depth + device["id"], device
            yield from _tree(devices, device["id"], depth + 1)
