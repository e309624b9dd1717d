"""``stats``: what VMs use of the host, over a stretch of time.

Decides: the columns, and what two readings of counters say together.
Must not: say anything of a VM that is another one than it was at the first reading.
"""

from __future__ import annotations

import sys
import time

from qsup.api.protocol import EXIT_OK, instance_path
from qsup.ctl.names import add_names, expand, instances
from qsup.ctl.parser import seconds
from qsup.ctl.render import documents, size, table
from qsup.errors import DeniedError, NoSuchInstance

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from qsup.api.hostwire import Stats
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser

EPILOG = """CPU is what all threads of QEMU had of one CPU of the host between two readings: 200% are two CPUs.
STEAL is the share of that time in which its vCPUs were ready to run, and others did. MEMORY is what QEMU
has of the host's, huge pages included, of the limit that the kernel holds it to ([limits] memory) or else
of what the guest may have; SWAP what the host has swapped out. READ, WRITTEN, RECEIVED and SENT are bytes
of all disks and NICs since QEMU was started, NODES how much memory is on which NUMA node of the host. What
a column needs is read while somebody asks for it: disks and nodes may be empty at first. JSON is one
reading of the counters themselves."""
_HEADER = ("NAME", ">CPU", ">STEAL", ">MEMORY", ">OF", ">", ">SWAP", ">READ", ">WRITTEN", ">RECEIVED", ">SENT", "NODES")
_CLEAR = "\033[H\033[2J"


class Reading:
    """The counters of one VM.

    Attributes:
        name: the VM's.
        pid: QEMU's: another one is another life.
        memory: bytes that the guest may have.
    """

    __slots__ = ("memory", "name", "pid", "stats")

    def __init__(self, name: str, pid: int | None, memory: int, stats: Stats) -> None:
        self.name = name
        self.pid = pid
        self.memory = memory
        self.stats = stats


def options(parser: Parser, verb: str) -> None:
    """Declare ``stats [NAME...] [--interval TIME] [--watch]``."""
    add_names(parser, optional=True)
    meaning = "between two readings (default: 1s)"
    parser.add_argument("--interval", type=seconds, default=1.0, metavar="TIME", help=meaning)
    parser.add_argument("--watch", "-w", action="store_true", help="go on until interrupted, whatever ends meanwhile")


def run(client: Client, options: Options) -> int:
    """Print them once, or again and again."""
    before = _read(client, options)
    if options.output != "table" and not options.watch:
        sys.stdout.write(_document(before, options))
        return EXIT_OK
    while True:
        time.sleep(options.interval)
        now = _read(client, options, later=options.watch)
        if options.output != "table":
            sys.stdout.write(_document(now, options))
        else:
            former = {reading.name: reading for reading in before}
            rows = [row(former.get(reading.name), reading) for reading in now]
            sys.stdout.write(_CLEAR if options.watch and sys.stdout.isatty() else "")
            sys.stdout.write(table(_HEADER, rows) or "No VM runs.\n")
        if not options.watch:
            return EXIT_OK
        sys.stdout.flush()
        before = now


def _read(client: Client, options: Options, *, later: bool = False) -> list[Reading]:
    """The counters of those that were named, or of all that run.

    Args:
        later: they are watched: one that was named may have ended, and come back.
    """
    views = {view["name"]: view for view in instances(client)}
    named = expand(client, options.names)
    readings = []
    for name in named or views:
        view = views.get(name)
        if not named and (view is None or view["pid"] is None):
            continue
        try:
            stats: Stats = client.get(instance_path(name, "/stats"))
        except (DeniedError, NoSuchInstance):
            if named and not later:
                raise
            continue  # it has ended meanwhile
        pid, memory = (None, 0) if view is None else (view["pid"], view["memory"]["max"])
        readings.append(Reading(name, pid, memory, stats))
    return readings


def _document(readings: Iterable[Reading], options: Options) -> str:
    values = [{"instance": reading.name, **reading.stats} for reading in readings]
    return documents(values, options.output, "stats")


def row(before: Reading | None, now: Reading) -> tuple[str, ...]:
    """One VM's cells; what needs two readings is ``-`` where there is one.

    Args:
        before: the same VM, a while ago.
    """
    stats = now.stats
    memory = stats["memory_rss"] + stats["memory_huge"]
    most = stats["memory_limit"] or now.memory
    is_same = before is not None and before.pid == now.pid
    cpu, steal = _shares(before.stats, stats) if before is not None and is_same else (None, None)
    return (
        now.name,
        _percent(cpu, 1),
        _percent(steal, 1),
        size(memory),
        size(most) if most else "",
        _percent(memory / most, 0) if most else "",
        size(stats["memory_swapped"]) if stats["memory_swapped"] else "",
        *_totals(stats["disks"].values(), ("rd_bytes", "wr_bytes")),
        *_totals(stats["nics"].values(), ("rx_bytes", "tx_bytes")),
        _nodes(stats),
    )


def _shares(before: Stats, now: Stats) -> tuple[float | None, float | None]:
    """Of one CPU that it ran on, and of their time that its vCPUs had to wait."""
    passed = now["read_at"] - before["read_at"]
    if passed <= 0 or now["cpu_seconds"] < before["cpu_seconds"]:
        return None, None
    waited = {tuple(each["vcpus"]): each["waited"] for each in before["times"] if each["vcpus"]}
    shares = []
    for each in now["times"]:
        former = waited.get(tuple(each["vcpus"]))
        # a vCPU that has come meanwhile has no former one
        if former is not None and each["waited"] is not None and each["waited"] >= former:
            shares.append(min(1.0, (each["waited"] - former) / passed))
    steal = sum(shares) / len(shares) if shares else None
    return (now["cpu_seconds"] - before["cpu_seconds"]) / passed, steal


def _percent(share: float | None, digits: int) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f}%"


def _totals(counters: Iterable[dict[str, int]], names: Iterable[str]) -> Iterator[str]:
    """The sum of each counter, nothing where there is none of it."""
    found = list(counters)
    for name in names:
        amounts = [each[name] for each in found if name in each]
        yield size(sum(amounts)) if amounts else ""


def _nodes(stats: Stats) -> str:
    memory = stats["node_memory"]
    if memory is None:
        return ""
    parts = ((part["node"], part["anonymous"] + part["huge"] + part["file"]) for part in memory["nodes"])
    return " ".join(f"{node}:{size(amount)}" for node, amount in parts)
