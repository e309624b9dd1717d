"""``cpus``: the threads of a VM's QEMU, and which CPUs of the host they run on.

Decides: what is shown of a thread.
Must not: judge where one should be; the daemon sees to that.
"""

from __future__ import annotations

import sys

from qsup.api.protocol import EXIT_OK, instance_path
from qsup.ctl.names import add_name
from qsup.ctl.render import clean, document, size, table
from qsup.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qsup.api.hostwire import Cpus, NodeMemoryWire, Thread
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser

EPILOG = """PIN is where a thread is to run ([cpu] pin, emulator-pin and helper-pin of its unit, pin of its
iothreads), ALLOWED where it may, ON where it ran last. SERVES names the device that a program beside QEMU is
for. WAITED is how long it was ready to run while others did: of a
vCPU, what its guest calls steal. MIGRATED is how often it went from one CPU to another, MOVED how often
somebody had moved it off its CPUs, and which one it had run on then; it was put back."""
_HEADER = (
    ">THREAD",
    "NAME",
    "VCPU",
    "IOTHREAD",
    "SERVES",
    "PIN",
    "ALLOWED",
    ">ON",
    ">SECONDS",
    ">WAITED",
    ">MIGRATED",
    "MOVED",
)


def options(parser: Parser, verb: str) -> None:
    """Declare ``cpus NAME [--explain]``."""
    add_name(parser)
    parser.add_argument("--explain", action="store_true", help="say why its CPUs were chosen")


def run(client: Client, options: Options) -> int:
    """Print its threads."""
    cpus: Cpus = client.get(instance_path(options.name, "/cpus"))
    if options.output != "table":
        sys.stdout.write(document(cpus, options.output))
        return EXIT_OK
    if options.explain:
        lines = cpus["explanation"] or ['nothing was chosen for it: its unit has no pin = "auto"']
        sys.stdout.write("".join(f"{clean(line)}\n" for line in lines))
        return EXIT_OK
    rows = [
        (
            str(thread["thread"]),
            thread["name"],
            ",".join(map(str, thread["vcpus"])),
            thread["iothread"],
            thread["helper"],
            thread["pin"],
            thread["allowed"],
            str(thread["cpu"]),
            f"{thread['seconds']:.2f}",
            "" if thread["waited"] is None else f"{thread['waited']:.2f}",
            "" if thread["migrations"] is None else str(thread["migrations"]),
            _moved(thread),
        )
        for thread in cpus["threads"]
    ]
    sys.stdout.write(table(_HEADER, rows))
    if left := cpus["count"] - len(rows):
        sys.stdout.write(f"and {left} more\n")
    if cpus["drifts"]:
        sys.stdout.write(f"Threads that were moved by somebody, and put back: {cpus['drifts']}\n")
    sys.stdout.write(_memory(client, options.name))
    return EXIT_OK


def _moved(thread: Thread) -> str:
    if not thread["drifts"]:
        return ""
    return str(thread["drifts"]) + ("" if thread["drift_cpu"] is None else f", on {thread['drift_cpu']}")


def _memory(client: Client, name: str) -> str:
    """Where its memory is, one line a node."""
    try:
        memory: NodeMemoryWire = client.get(instance_path(name, "/memory"))
    except HostError as error:
        return f"Memory by node is not known: {clean(error.message)}\n"
    rows = [
        (str(part["node"]), *(size(part[kind]) if part[kind] else "" for kind in ("anonymous", "huge", "file")))
        for part in memory["nodes"]
    ]
    return "\n" + table(("NODE", ">MEMORY", ">HUGE", ">SHARED"), rows)
