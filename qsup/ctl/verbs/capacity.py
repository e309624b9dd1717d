"""``capacity``: what of the host may be promised to VMs, what is, and to whom.

Decides: the tables.
Must not: work anything out; the daemon keeps the account.
"""

from __future__ import annotations

import sys

from qsup.api.protocol import EXIT_OK, PREFIX
from qsup.ctl.render import document, size, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from qsup.api.hostwire import Capacity, CapacityInstance, CapacityMemory, CapacityPages
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser

EPILOG = """PROMISED is what VMs may come to use, LIMIT how much that may be ([capacity] in qsupd.toml; empty: any
amount). USED and FREE are what the kernel says of the host, whoever uses it. Of a node what is bound to it
counts; of CPUs the vCPUs of all VMs that have no CPUs of their own, and RESERVED are those of the others."""
_HEADER = ("", ">TOTAL", ">RESERVED", ">LIMIT", ">PROMISED", ">LEFT", ">USED", ">FREE")
_VMS_HEADER = ("NAME", ">MEMORY", ">QEMU", "PAGES", "NODES", ">VCPUS", "CPUS")


def options(parser: Parser, verb: str) -> None:
    """Declare ``capacity [--vms]``."""
    parser.add_argument("--vms", action="store_true", help="say what each VM was promised, too")


def run(client: Client, options: Options) -> int:
    """Print the account."""
    account: Capacity = client.get(f"{PREFIX}/capacity")
    if options.output != "table":
        sys.stdout.write(document(account, options.output))
        return EXIT_OK
    sys.stdout.write(table(_HEADER, list(_rows(account))))
    if options.vms:
        vms = table(_VMS_HEADER, [_vm(each) for each in account["instances"]])
        sys.stdout.write(f"\n{vms}" if vms else "\nNo VM was promised anything.\n")
    return EXIT_OK


def _rows(account: Capacity) -> Iterator[tuple[str, ...]]:
    yield _memory("memory", account["memory"])
    yield from map(_pages, account["hugepages"])
    cpus = account["cpus"]
    yield (
        "CPUs",
        str(cpus["total"]),
        str(cpus["exclusive"] or ""),
        _known(cpus["limit"]),
        str(cpus["promised"]),
        _known(cpus["left"]),
        "",
        "",
    )
    nodes = account["nodes"]
    for node in nodes if len(nodes) > 1 else []:
        yield _memory(f"node {node['number']}: memory", node["memory"])
        for pages in node["hugepages"]:
            yield _pages(pages, f"node {node['number']}: ")
        yield f"node {node['number']}: CPUs", str(node["cpus"]), str(node["exclusive"] or ""), "", "", "", "", ""


def _memory(name: str, memory: CapacityMemory) -> tuple[str, ...]:
    limit, left = memory["limit"], memory["left"]
    return (
        name,
        size(memory["total"]),
        size(memory["reserved"]) if memory["reserved"] else "",
        "" if limit is None else size(limit),
        size(memory["promised"]),
        "" if left is None else size(left) if left >= 0 else f"-{size(-left)}",
        size(memory["used"]),
        size(memory["free"]),
    )


def _pages(pages: CapacityPages, where: str = "") -> tuple[str, ...]:
    total, promised, left = str(pages["total"]), str(pages["promised"]), str(pages["left"])
    name = f"{where}huge pages of {size(pages['size'])}"
    return name, total, "", total, promised, left, str(pages["total"] - pages["free"]), str(pages["free"])


def _known(limit: int | None) -> str:
    return "" if limit is None else str(limit)


def _vm(promised: CapacityInstance) -> tuple[str, ...]:
    return (
        promised["name"],
        size(promised["memory"]),
        size(promised["own"]),
        size(promised["page"]) if promised["page"] else "",
        ",".join(map(str, promised["nodes"])),
        str(promised["vcpus"]),
        "own" if promised["exclusive"] else "shared",
    )
