"""``status``: VMs in detail, as systemctl shows services.

Decides: which facts are shown in which order, and the exit code for a VM that is not active.
Must not: change anything.
"""

from __future__ import annotations

import sys

from qsup.api.protocol import EXIT_NOT_ACTIVE, EXIT_OK, PREFIX, instance_path
from qsup.ctl.failures import for_each
from qsup.ctl.names import add_names, expand
from qsup.ctl.render import (
    age,
    bold,
    clean,
    document,
    documents,
    fields,
    is_named_by_cause,
    local_time,
    paint,
    size,
)
from qsup.ctl.verbs.about import show_health
from qsup.ctl.verbs.operations import subject
from qsup.errors import QsupError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from qsup.api.hostwire import Stats
    from qsup.api.wire import DiskWire, Instance, Log, NicWire, Operation
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser

_BULLETS = {"inactive": "○", "failed": "\N{MULTIPLICATION SIGN}"}
EPILOG = "Exit code: 0 active, 3 not active, 4 no such VM. Without a name it shows the daemon."


def options(parser: Parser, verb: str) -> None:
    """Declare ``status [NAME...] [-n LINES]``."""
    add_names(parser, optional=True)
    parser.add_argument("-n", "--lines", type=int, default=10, metavar="N", help="log lines to show (default: 10)")


def run(client: Client, options: Options) -> int:
    """Show each; the exit code is the worst."""
    if not options.names:
        return show_health(client, options.output)
    shown: list[Instance] = []
    lasting = _lasting(client) if options.output == "table" else {}

    def show(name: str) -> int:
        instance: Instance = client.get(instance_path(name))
        if options.output == "table":
            sys.stdout.write("\n" * bool(shown) + describe(instance, _guest_memory(client, instance), lasting))
            sys.stdout.write(_log(client, name, options.lines) + _last_console(instance, options.lines))
        elif options.output == "jsonl":
            sys.stdout.write(document(instance, "jsonl"))
        shown.append(instance)
        return EXIT_OK if instance["state"] == "active" else EXIT_NOT_ACTIVE

    code = for_each(expand(client, options.names), show)
    if options.output == "json":
        sys.stdout.write(documents(shown, "json", "instances"))
    return code


def _lasting(client: Client) -> Mapping[str, Sequence[Operation]]:
    """What guests have yet to do, by the names of their VMs: such an operation holds no VM."""
    found: dict[str, list[Operation]] = {}
    for operation in client.pages(f"{PREFIX}/operations", "operations"):
        if operation["state"] == "running" and operation["cancellable"]:
            found.setdefault(operation["target"], []).append(operation)
    return found


def describe(instance: Instance, guest: Mapping[str, int], lasting: Mapping[str, Sequence[Operation]]) -> str:
    """The facts of one VM, a line each.

    Args:
        guest: what its guest says of its memory.
        lasting: what guests have yet to do, by the names of their VMs.
    """
    bullet = _BULLETS.get(instance["state"], "●")
    unit = instance["unit"]
    title = f"{clean(instance['name'])} - {clean(unit['description'])}" if unit["description"] else instance["name"]
    return f"{paint(bullet, instance['state'])} {title}\n" + fields(
        [*_facts(instance, guest), *_under_way(lasting.get(instance["name"], ())), *_warnings(instance)]
    )


def _under_way(operations: Sequence[Operation]) -> Iterator[tuple[str, str]]:
    for operation in operations:
        what = f"{operation['kind']} {subject(operation['arguments'])}".rstrip()
        yield "Under way", clean(f"{what}: {operation['progress']} (operation {operation['id']})")


def _warnings(instance: Instance) -> Iterator[tuple[str, str]]:
    for warning in instance["warnings"]:
        yield "Warning", clean(warning)


def _facts(instance: Instance, guest: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    yield from _unit_facts(instance)
    yield "Active", _active(instance)
    cause = instance["cause"]
    if cause is not None and cause["detail"]:
        yield "Cause", clean(cause["detail"])
    if cause is not None and cause["nospace"] and instance["substate"] == "io-error":
        yield "Note", "it goes on by itself once there is room, or by qsupctl resume"
    if instance["waits_for"]:
        yield "Waits for", clean(instance["waits_for"])
    if instance["restarts"]:
        yield "Restarts", str(instance["restarts"])
    if instance["resets"]:
        yield "Resets", f"{instance['resets']}, by the guest itself"
    if instance["pid"] is not None:
        yield "Main PID", f"{instance['pid']} (uid {instance['uid']})"
    yield from _machine_facts(instance)
    if limits := _limits(instance):
        yield "Limits", limits
    if "total_memory" in guest:
        total = guest["total_memory"]
        used = max(total - guest.get("available_memory", guest.get("free_memory", 0)), 0)  # a guest says what it likes
        yield "Guest", f"{size(used)} of {size(total)} in use, as it says"
    for disk in instance["disks"]:
        yield "Disk", clean(_disk(disk))
    for nic in instance["nics"]:
        yield "NIC", clean(_nic(nic))
    for device in instance["devices"]:
        socket = f", at {device['socket']}" if device["socket"] else ""
        yield "Device", clean(f"{device['id']}: {device['type']}{socket}{_leaving(device['state'])}")
    if instance["slots"] is not None and instance["slots"]["total"]:
        yield "Slots", f"{instance['slots']['free']} of {instance['slots']['total']} hotplug slots free"
    if instance["pid"] is not None:
        yield from _channel_facts(instance)
    if instance["operation"]:
        yield "Operation", clean(instance["operation"])


def _guest_memory(client: Client, instance: Instance) -> Mapping[str, int]:
    """Nothing where its balloon has no driver, or nobody has asked of late: then the next `status` shows it."""
    if instance["pid"] is None:
        return {}
    try:
        stats: Stats = client.get(instance_path(instance["name"], "/stats"))
    except QsupError:
        return {}  # it has just ended
    return stats["balloon"]


def _unit_facts(instance: Instance) -> Iterator[tuple[str, str]]:
    unit = instance["unit"]
    start = "enabled" if unit["autostart"] else "disabled"
    files = [clean(file) for file in unit["files"]]
    yield "Loaded", f"{files[0]} ({start})" if files else "no unit file any more"
    for drop_in in files[1:]:
        yield "Drop-In", drop_in
    if unit["needs_restart"]:
        name = clean(instance["name"])
        yield (
            "Note",
            f"the unit changed since the VM was started; a restart applies it (qsupctl diff {name} shows what)",
        )


def _active(instance: Instance) -> str:
    level, cause = instance["state"], instance["cause"]
    inner = instance["substate"]
    if cause is not None and is_named_by_cause(instance):
        inner = cause["text"] if level in ("inactive", "failed") else f"{inner}: {cause['text']}"
    text = paint(f"{level} ({clean(inner)})", level)
    since = instance["since"]
    return f"{text} since {local_time(since)}; {age(since)} ago" if since else text


def _machine_facts(instance: Instance) -> Iterator[tuple[str, str]]:
    machine, cpus, memory = instance["machine"], instance["cpus"], instance["memory"]
    parts = [machine["type"], machine["accel"], machine["cpu_model"], machine["firmware"]]
    yield "Machine", clean(", ".join(part for part in parts if part))
    limit = f" (at most {cpus['max_vcpus']})" if cpus["max_vcpus"] > cpus["vcpus"] else ""
    yield "CPUs", f"{cpus['vcpus']}{limit}"
    actual = memory["actual"]
    told = [f"at most {size(memory['max'])}"] if memory["max"] > memory["size"] else []
    told += [f"{size(actual)} left by the balloon"] if actual is not None and actual != memory["size"] else []
    told += [f"in huge pages of {size(memory['page'])}"] if memory["page"] else []
    told += _on_nodes(memory["nodes"])
    yield "Memory", size(memory["size"]) + (f" ({', '.join(told)})" if told else "")
    for number, node in enumerate(memory["guest_nodes"]):
        vcpus = f", vCPUs {node['vcpus']}" if node["vcpus"] else ", no vCPU"
        on = "".join(f", {words} of the host" for words in _on_nodes(node["nodes"]))
        yield "NUMA node", clean(f"{number} ({node['id']}): {size(node['size'])}{vcpus}{on}")


def _on_nodes(numbers: Sequence[int]) -> list[str]:
    """``["on nodes 0, 1"]``; nothing for none."""
    return [f"on node{'s' if numbers[1:] else ''} {', '.join(map(str, numbers))}"] if numbers else []


def _limits(instance: Instance) -> str:
    limits = instance["limits"]
    if limits is None:
        return ""
    shares = {"CPU": limits["cpu"], "vCPUs' CPU": limits["vcpu_cpu"], "emulator's CPU": limits["emulator_cpu"]}
    told = [f"{what} {share * 100:g}%" for what, share in shares.items() if share is not None]
    told += [f"CPU weight {limits['cpu_weight']}"] if limits["cpu_weight"] not in (None, 100) else []
    told += [f"on CPUs {limits['cpuset_cpus']} alone"] if limits["cpuset_cpus"] is not None else []
    told += [f"memory of nodes {limits['cpuset_mems']} alone"] if limits["cpuset_mems"] is not None else []
    told += [f"memory {size(limits['memory'])}"] if limits["memory"] is not None else []
    told += [f"slowed down from {size(limits['memory_high'])}"] if limits["memory_high"] is not None else []
    told += [f"{limits['pids']} threads"] if limits["pids"] is not None else []
    told += [f"swap {size(limits['swap'])}"] if limits["swap"] is not None else []
    told += [f"I/O weight {limits['io_weight']}"] if limits["io_weight"] not in (None, 100) else []
    for device, amount in (limits["io_read_bps"] or {}).items():
        told.append(f"reads {size(amount)}/s of {device}")
    for device, amount in (limits["io_write_bps"] or {}).items():
        told.append(f"writes {size(amount)}/s of {device}")
    for device, amount in (limits["io_read_iops"] or {}).items():
        told.append(f"{amount} reads/s of {device}")
    for device, amount in (limits["io_write_iops"] or {}).items():
        told.append(f"{amount} writes/s of {device}")
    told += [f"OOM score {limits['oom_score_adjust']:+}"] if limits["oom_score_adjust"] is not None else []
    told += [f"{limits['nofile']} open files"] if limits["nofile"] is not None else []
    return ", ".join(told)


def _disk(disk: DiskWire) -> str:
    extra = [disk["type"], disk["format"], disk["bus"], "read-only" if disk["read_only"] else ""]
    extra += [
        f"tray {disk['tray']}" if disk["tray"] else "",
        f"iothread {disk['iothread']}" if disk["iothread"] else "",
    ]
    extra += [f"{name} {limit}" for name, limit in disk["throttle"].items()]
    details = ", ".join(part for part in extra if part)
    return f"{disk['id']}: {disk['path'] or 'empty'} ({details}){_leaving(disk['state'])}"


def _leaving(state: str) -> str:
    """What is said of an entry that is not simply there."""
    return {"leaving": ", leaving: the guest has yet to let it go", "coming": ", just coming"}.get(state, "")


def _nic(nic: NicWire) -> str:
    link = f"{nic['type']} {nic['bridge']}".rstrip()
    forwards = "".join(f", {forward}" for forward in nic["forward"])
    address = f", {nic['mac']}" if nic["mac"] else ""  # not known before the first start
    unplugged = ", link down" if nic["link"] == "down" else ""
    return f"{nic['id']}: {link}, {nic['model']}{address}{forwards}{unplugged}{_leaving(nic['state'])}"


def _channel_facts(instance: Instance) -> Iterator[tuple[str, str]]:
    agent, console, display = instance["agent"], instance["console"], instance["display"]
    if agent["enabled"]:
        yield "Agent", "connected" if agent["connected"] else "not connected"
    if console["type"] != "none":
        typing = ", one types" if console["has_writer"] else ""
        yield "Console", f"{clean(console['type'])}, {console['watchers']} attached{typing}"
    if display["type"] != "none":
        yield "Display", clean(display["type"])


def _last_console(instance: Instance, lines: int) -> str:
    """What the guest wrote last before the VM came into its state, where that was kept."""
    cause = instance["cause"]
    found = cause["console"][-lines:] if cause is not None and lines > 0 else []
    text = "".join(f"{clean(line)}\n" for line in found)
    return f"\n{bold('Last lines of the console:')}\n{text}" if text else ""


def _log(client: Client, name: str, lines: int) -> str:
    if lines <= 0:
        return ""
    try:
        log: Log = client.get(instance_path(name, f"/log?lines={lines}"))
    except QsupError as error:
        return f"\n(no log: {clean(error.message)})\n"
    text = "".join(f"{clean(line)}\n" for line in log["lines"])
    return f"\n{bold('Log of QEMU:')}\n{text}" if text else ""
