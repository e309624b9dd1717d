"""What `/metrics` says, in Prometheus' words.

Decides: every metric's name, labels and source, and how requests are counted.
Must not: ask a VM anything (it shows what the supervisor knows), or load prometheus_client before the first scrape: the
daemon's resident size counts, and most daemons are never scraped.

A scrape takes a `Snapshot` in the daemon's own task, which is quick, and has the kernel's counters read and all of it
written by a worker thread, which is not: a thousand VMs make tens of thousands of lines, and no VM is to wait for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from attrs import frozen

from qsup.api.backend import Backend
from qsup.errors import QsupError
from qsup.instance.latency import LATENCY_BUCKETS, Histogram, Latencies
from qsup.instance.state import Level
from qsup.instance.view import InstanceView, StatsView
from qsup.unit.quantity import format_cpu_set

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

#: QAPI's BlockDeviceStats, as `StatsView.disks` names them: metric, factor to its unit, help.
DISK_COUNTERS: Mapping[str, tuple[str, float, str]] = {
    "rd_bytes": ("qsup_disk_read_bytes", 1, "Bytes the guest read."),
    "wr_bytes": ("qsup_disk_written_bytes", 1, "Bytes the guest wrote."),
    "rd_operations": ("qsup_disk_reads", 1, "Reads of the guest."),
    "wr_operations": ("qsup_disk_writes", 1, "Writes of the guest."),
    "flush_operations": ("qsup_disk_flushes", 1, "Flushes of the guest."),
    "rd_total_time_ns": ("qsup_disk_read_seconds", 1e-9, "Time spent in reads."),
    "wr_total_time_ns": ("qsup_disk_write_seconds", 1e-9, "Time spent in writes."),
    "flush_total_time_ns": ("qsup_disk_flush_seconds", 1e-9, "Time spent in flushes."),
    "failed_rd_operations": ("qsup_disk_failed_reads", 1, "Reads that failed."),
    "failed_wr_operations": ("qsup_disk_failed_writes", 1, "Writes that failed."),
}
#: The kernel's words for a network interface, as `StatsView.nics` names them, seen from the guest.
NIC_COUNTERS: Mapping[str, tuple[str, float, str]] = {
    "rx_bytes": ("qsup_nic_receive_bytes", 1, "Bytes the guest received."),
    "tx_bytes": ("qsup_nic_transmit_bytes", 1, "Bytes the guest sent."),
    "rx_packets": ("qsup_nic_receive_packets", 1, "Packets the guest received."),
    "tx_packets": ("qsup_nic_transmit_packets", 1, "Packets the guest sent."),
    "rx_errors": ("qsup_nic_receive_errors", 1, "Packets towards the guest that failed."),
    "tx_errors": ("qsup_nic_transmit_errors", 1, "Packets from the guest that failed."),
    "rx_dropped": ("qsup_nic_receive_dropped", 1, "Packets towards the guest that were dropped."),
    "tx_dropped": ("qsup_nic_transmit_dropped", 1, "Packets from the guest that were dropped."),
}

#: Of `StatsView.balloon`, bytes: metric and help.
GUEST_MEMORY: Mapping[str, tuple[str, str]] = {
    "total_memory": ("qsup_guest_memory_total_bytes", "Memory the guest counts."),
    "free_memory": ("qsup_guest_memory_free_bytes", "Memory the guest uses for nothing."),
    "available_memory": ("qsup_guest_memory_available_bytes", "Memory the guest could use without swapping."),
    "disk_caches": ("qsup_guest_memory_cache_bytes", "Memory the guest uses as a cache of its disks."),
}
#: The others that are counted up.
GUEST_COUNTERS: Mapping[str, tuple[str, str]] = {
    "swap_in": ("qsup_guest_swapped_in_bytes", "Bytes the guest read from its swap space."),
    "swap_out": ("qsup_guest_swapped_out_bytes", "Bytes the guest wrote to its swap space."),
    "major_faults": ("qsup_guest_major_faults", "Page faults of the guest that waited for a disk."),
    "minor_faults": ("qsup_guest_minor_faults", "Page faults of the guest that did not."),
}


#: Of `StatsView`: metric and help.
PROCESS_GAUGES: Mapping[str, tuple[str, str]] = {
    "memory_rss": ("qsup_instance_resident_memory_bytes", "Resident memory of a VM's QEMU, huge pages apart."),
    "memory_huge": ("qsup_instance_huge_memory_bytes", "Memory of a VM's QEMU in huge pages."),
    "memory_swapped": ("qsup_instance_swapped_memory_bytes", "Memory of a VM's QEMU that the host has swapped out."),
    "memory_limit": ("qsup_instance_memory_limit_bytes", "What the kernel holds a VM's memory to; none without limit."),
    "threads": ("qsup_instance_threads", "Threads of a VM's QEMU."),
}
#: The others that are counted up.
PROCESS_COUNTERS: Mapping[str, tuple[str, str]] = {
    "cpu_seconds": ("qsup_instance_cpu_seconds", "CPU time of a VM's QEMU, threads that have ended included."),
    "drifts": (
        "qsup_instance_pin_drifts",
        "Threads of a VM's QEMU that somebody had moved off their CPUs, and that were put back by this daemon.",
    ),
}
#: Of `Times`: end of the metric, and the beginning of its help.
THREAD_COUNTERS: Mapping[str, tuple[str, str]] = {
    "seconds": ("cpu_seconds", "CPU time of the thread of"),
    "waited": ("wait_seconds", "Time in wait for a CPU of the host, which a guest calls steal, of the thread of"),
}


class Traffic:
    """What was asked of the API. Routes are counted by their pattern, so a hostile path makes no new series."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, str, int], int] = {}
        self._durations: dict[tuple[str, str], Histogram] = {}

    def on_request(self, method: str, pattern: str, status: int, seconds: float) -> None:
        """Count one answered request; the HTTP server's hook."""
        key = method, pattern, status
        self._requests[key] = self._requests.get(key, 0) + 1
        histogram = self._durations.get((method, pattern))
        if histogram is None:
            histogram = self._durations[method, pattern] = Histogram()
        histogram.observe(seconds)

    @property
    def requests(self) -> Mapping[tuple[str, str, int], int]:
        """Requests by method, pattern and status, as they are now."""
        return dict(self._requests)

    @property
    def durations(self) -> Mapping[tuple[str, str], Latencies]:
        """Durations by method and pattern, as they are now."""
        return {key: (tuple(histogram.counts), histogram.total) for key, histogram in self._durations.items()}


@frozen(kw_only=True)
class Snapshot:
    """Everything one scrape shows, taken at one moment.

    Args:
        counters: what reads those of each instance that has a process.
        qmp: latencies by QMP command.
        requests, durations: see `Traffic`.
        events: how many there were in this life of the daemon.
        problems: how many things are wrong with the daemon.
    """

    version: str
    uptime: float
    problems: int
    events: int
    instances: Sequence[InstanceView]
    counters: Mapping[str, Callable[[], StatsView]]
    qmp: Mapping[str, Latencies]
    requests: Mapping[tuple[str, str, int], int]
    durations: Mapping[tuple[str, str], Latencies]


def take_snapshot(backend: Backend, traffic: Traffic, *, version: str) -> Snapshot:
    """What is known now; waits for nothing."""
    views = backend.instances()
    health = backend.health()
    return Snapshot(
        version=version,
        uptime=health.uptime,
        problems=len(health.problems),
        events=backend.event_sequence(),
        instances=views,
        counters={view.name: read for view in views if (read := _counters_of(backend, view)) is not None},
        qmp=backend.qmp_latency(),
        requests=traffic.requests,
        durations=traffic.durations,
    )


def _counters_of(backend: Backend, view: InstanceView) -> Callable[[], StatsView] | None:
    if view.pid is None:
        return None
    try:
        return backend.counters(view.name)
    except QsupError:
        return None  # a VM without counters must not take the others' away


def _read(counters: Mapping[str, Callable[[], StatsView]]) -> Mapping[str, StatsView]:
    """The counters, but those of VMs that have just ended: a counter that is 0 again would count for a new one."""
    found = {}
    for name, read in counters.items():
        try:
            stats = read()
        except (QsupError, OSError):
            continue
        if stats.threads:
            found[name] = stats
    return found


def exposition(snapshot: Snapshot, accept: str) -> tuple[bytes, str]:
    """The text of a scrape. Slow, and needs nothing but its arguments: for a worker thread.

    Args:
        accept: the request's Accept header; OpenMetrics is chosen where it is asked for.

    Returns:
        The text and its media type.
    """
    from prometheus_client import CollectorRegistry, ProcessCollector
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry(auto_describe=False)
    # the daemon's own CPU time, memory and descriptors, by the names that every Prometheus client uses
    ProcessCollector(registry=registry)
    registry.register(_Collector(snapshot))
    encode, media = choose_encoder(accept)
    return encode(registry), media


class _Collector:
    """prometheus_client's custom collector over one snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        yield from _daemon(self._snapshot)
        yield from _states(self._snapshot)
        stats = _read(self._snapshot.counters)
        yield from _processes(stats)
        yield from _times(stats)
        yield from _node_memory(stats)
        yield from _counters(DISK_COUNTERS, "disk", {name: view.disks for name, view in stats.items()})
        yield from _counters(NIC_COUNTERS, "nic", {name: view.nics for name, view in stats.items()})
        yield from _guest(stats)
        yield from _latencies(self._snapshot)


def _daemon(snapshot: Snapshot) -> Iterator[Metric]:
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

    yield InfoMetricFamily("qsup", "The daemon.", value={"version": snapshot.version})
    yield GaugeMetricFamily("qsup_uptime_seconds", "How long the daemon has been up.", value=snapshot.uptime)
    yield GaugeMetricFamily("qsup_problems", "What is wrong with the daemon; see /v1/health.", value=snapshot.problems)
    yield CounterMetricFamily("qsup_events", "Events since the daemon's start.", value=snapshot.events)
    requests = CounterMetricFamily(
        "qsup_api_requests", "Requests to the API by route and status.", labels=("method", "route", "status")
    )
    for (method, route, status), number in snapshot.requests.items():
        requests.add_metric((method, route, str(status)), number)
    yield requests


def _states(snapshot: Snapshot) -> Iterator[Metric]:
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

    total = GaugeMetricFamily("qsup_instances", "VMs by state.", labels=("state",))
    state = GaugeMetricFamily("qsup_instance_state", "1 for the state a VM is in.", labels=("instance", "state"))
    restarts = CounterMetricFamily("qsup_instance_restarts", "Automatic restarts of a VM.", labels=("instance",))
    for level in Level:
        total.add_metric((level.value,), sum(view.state.level is level for view in snapshot.instances))
    for view in snapshot.instances:
        for level in Level:
            state.add_metric((view.name, level.value), float(view.state.level is level))
        restarts.add_metric((view.name,), view.restarts)
    yield from (total, state, restarts)


def _processes(stats: Mapping[str, StatsView]) -> Iterator[Metric]:
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

    for key, (metric, text) in PROCESS_GAUGES.items():
        gauge = GaugeMetricFamily(metric, text, labels=("instance",))
        for name, view in stats.items():
            if (value := getattr(view, key)) is not None:
                gauge.add_metric((name,), value)
        yield gauge
    for key, (metric, text) in PROCESS_COUNTERS.items():
        counter = CounterMetricFamily(metric, text, labels=("instance",))
        for name, view in stats.items():
            counter.add_metric((name,), getattr(view, key))
        yield counter


def _times(stats: Mapping[str, StatsView]) -> Iterator[Metric]:
    """Of threads that have a name that lasts: each vCPU, or those that share a thread, and each iothread."""
    from prometheus_client.metrics_core import CounterMetricFamily

    for key, (metric, text) in THREAD_COUNTERS.items():
        vcpus = CounterMetricFamily(f"qsup_vcpu_{metric}", f"{text} a vCPU.", labels=("instance", "vcpu"))
        iothreads = CounterMetricFamily(
            f"qsup_iothread_{metric}", f"{text} an iothread.", labels=("instance", "iothread")
        )
        for name, view in stats.items():
            for each in view.times:
                if (value := getattr(each.times, key)) is None:
                    continue
                if each.vcpus:
                    vcpus.add_metric((name, format_cpu_set(each.vcpus)), value)
                else:
                    iothreads.add_metric((name, each.iothread), value)
        yield from (vcpus, iothreads)


def _node_memory(stats: Mapping[str, StatsView]) -> Iterator[Metric]:
    from prometheus_client.metrics_core import GaugeMetricFamily

    memory = GaugeMetricFamily(
        "qsup_instance_node_memory_bytes",
        "Memory of a VM's QEMU on a NUMA node of the host: its own (anonymous), in huge pages, or of files and shared.",
        labels=("instance", "node", "kind"),
    )
    age = GaugeMetricFamily(
        "qsup_instance_node_memory_age_seconds",
        "How long ago it was read where a VM's memory is.",
        labels=("instance",),
    )
    for name, view in stats.items():
        if view.node_memory is None:
            continue
        age.add_metric((name,), max(0.0, view.read_at - view.node_memory.read_at))
        for node, part in view.node_memory.nodes.items():
            for kind in ("anonymous", "huge", "file"):
                memory.add_metric((name, str(node), kind), getattr(part, kind))
    yield from (memory, age)


def _counters(
    table: Mapping[str, tuple[str, float, str]],
    noun: str,
    counters: Mapping[str, Mapping[str, Mapping[str, int]]],
) -> Iterator[Metric]:
    """One family per row of ``table``, from counters by instance, then by disk or NIC, then by the row's key."""
    from prometheus_client.metrics_core import CounterMetricFamily

    for key, (metric, factor, text) in table.items():
        family = CounterMetricFamily(metric, text, labels=("instance", noun))
        for name, things in counters.items():
            for thing, values in things.items():
                if key in values:
                    family.add_metric((name, thing), values[key] * factor)
        yield family


def _guest(stats: Mapping[str, StatsView]) -> Iterator[Metric]:
    """What guests say of their memory, while somebody asks."""
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

    for table, kind in ((GUEST_MEMORY, GaugeMetricFamily), (GUEST_COUNTERS, CounterMetricFamily)):
        for key, (metric, text) in table.items():
            family = kind(metric, text, labels=("instance",))
            for name, view in stats.items():
                if key in view.balloon:
                    family.add_metric((name,), view.balloon[key])
            yield family


def _latencies(snapshot: Snapshot) -> Iterator[Metric]:
    from prometheus_client.metrics_core import HistogramMetricFamily

    qmp = HistogramMetricFamily(
        "qsup_qmp_command_duration_seconds", "From sending a QMP command to its answer.", labels=("command",)
    )
    for command, (counts, total) in snapshot.qmp.items():
        qmp.add_metric((command,), _cumulative(counts), sum_value=total)
    api = HistogramMetricFamily(
        "qsup_api_request_duration_seconds",
        "From a request's header to its answer; to the answer's header for streams.",
        labels=("method", "route"),
    )
    for labels, (counts, total) in snapshot.durations.items():
        api.add_metric(labels, _cumulative(counts), sum_value=total)
    yield from (qmp, api)


def _cumulative(counts: Sequence[int]) -> list[tuple[str, float]]:
    """Prometheus' buckets: each holds all that took no longer than its bound."""
    bounds = [*map(str, LATENCY_BUCKETS), "+Inf"]
    return [(bound, sum(counts[: index + 1])) for index, bound in enumerate(bounds)]
