"""What Prometheus sees."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest
from attrs import evolve
from prometheus_client.parser import text_string_to_metric_families

from qsup.api.metrics import Traffic, exposition, take_snapshot
from qsup.errors import DeniedError
from qsup.host.usage import Times
from qsup.instance.latency import LATENCY_BUCKETS
from qsup.instance.state import State
from qsup.instance.view import StatsView, TimesView
from tests.api.calling import daemon
from tests.api.fake import FakeBackend, make_view

Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(backend: FakeBackend, traffic: Traffic | None = None, *, accept: str = "") -> Samples:
    """All samples by name and sorted labels, read by Prometheus' own parser."""
    text, _ = exposition(take_snapshot(backend, traffic or Traffic(), version="0.0.1"), accept)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def labels(**values: str) -> tuple[tuple[str, str], ...]:
    """Labels as `scrape` has them."""
    return tuple(sorted(values.items()))


def test_states_and_restarts_are_shown() -> None:
    """Each VM is in exactly one state, and each state is counted, those without a VM too."""
    backend = FakeBackend("a", "b")
    backend.set_state("b", State.CRASHED, pid=None, restarts=4)
    samples = scrape(backend)
    assert samples["qsup_instance_state", labels(instance="b", state="failed")] == 1
    assert samples["qsup_instance_state", labels(instance="b", state="active")] == 0
    assert samples["qsup_instances", labels(state="active")] == 1
    assert samples["qsup_instances", labels(state="activating")] == 0
    assert samples["qsup_instance_restarts_total", labels(instance="b")] == 4
    assert samples["qsup_events_total", ()] == 1


def test_processes_disks_and_nics_are_counted() -> None:
    """CPU time, memory, and each disk's and NIC's counters, times in seconds; unknown counters are left out."""
    samples = scrape(FakeBackend("web"))
    assert samples["qsup_instance_cpu_seconds_total", labels(instance="web")] == 12.5
    assert samples["qsup_instance_memory_limit_bytes", labels(instance="web")] == 96 << 20
    assert samples["qsup_instance_resident_memory_bytes", labels(instance="web")] == 40 << 20
    assert samples["qsup_disk_read_bytes_total", labels(instance="web", disk="root")] == 4096
    assert samples["qsup_guest_memory_free_bytes", labels(instance="web")] == 100 << 20
    assert samples["qsup_guest_major_faults_total", labels(instance="web")] == 7
    assert samples["qsup_disk_read_seconds_total", labels(instance="web", disk="root")] == 1.5
    assert samples["qsup_nic_transmit_bytes_total", labels(instance="web", nic="lan")] == 200
    assert not [name for name, _ in samples if name.startswith("qsup_disk_flush")]


def test_time_of_each_vcpu_and_iothread_is_counted() -> None:
    """What it ran and what it waited, where the kernel counts that."""
    samples = scrape(FakeBackend("web"))
    assert [samples["qsup_vcpu_cpu_seconds_total", labels(instance="web", vcpu=vcpu)] for vcpu in "01"] == [6.25, 6.25]
    assert samples["qsup_vcpu_wait_seconds_total", labels(instance="web", vcpu="1")] == 1.125
    assert samples["qsup_iothread_cpu_seconds_total", labels(instance="web", iothread="fast")] == 0.25
    assert ("qsup_iothread_wait_seconds_total", labels(instance="web", iothread="fast")) not in samples


def test_vcpus_that_share_a_thread_are_one_series() -> None:
    """Nobody knows how much of its time each of them had."""

    class OneThread(FakeBackend):
        def counters(self, name: str) -> Callable[[], StatsView]:
            """As under TCG without MTTCG."""
            times = TimesView(vcpus=(0, 1, 2), times=Times(seconds=3.0, waited=0.5))
            return partial(evolve, super().counters(name)(), times=(times,), node_memory=None)

    samples = scrape(OneThread("web"))
    found = {dict(names)["vcpu"]: value for (name, names), value in samples.items() if name.startswith("qsup_vcpu_cpu")}
    assert found == {"0-2": 3.0}
    assert not [name for name, _ in samples if "node_memory" in name]


def test_memory_is_shown_by_node_and_with_its_age() -> None:
    """As it was last read."""
    samples = scrape(FakeBackend("web"))
    found = {
        (dict(names)["node"], dict(names)["kind"]): value
        for (name, names), value in samples.items()
        if name == "qsup_instance_node_memory_bytes"
    }
    mib = {key: value / (1 << 20) for key, value in found.items() if value}
    assert mib == {("0", "anonymous"): 32, ("0", "huge"): 8, ("0", "file"): 1, ("2", "anonymous"): 7}
    assert samples["qsup_instance_node_memory_age_seconds", labels(instance="web")] == 1.0


def test_a_vm_without_counters_hides_no_other() -> None:
    """A VM that is down, or whose counters cannot be read, is shown without them."""

    class Shy(FakeBackend):
        def counters(self, name: str) -> Callable[[], StatsView]:
            """Refuse one, and fail to read another."""
            if name == "shy":
                raise DeniedError("its counters cannot be read", instance=name)
            read = super().counters(name)
            return partial(evolve, read(), threads=0, cpu_seconds=0.0) if name == "ended" else read

    backend = Shy("shy", "ended", "web")
    backend.views["down"] = make_view("down", state=State.DEAD, pid=None)
    samples = scrape(backend)
    counted = {dict(names)["instance"] for name, names in samples if name == "qsup_instance_cpu_seconds_total"}
    assert counted == {"web"}


def test_histograms_are_cumulative() -> None:
    """A duration counts in every bucket whose bound is not below it, and in the one without a bound."""
    backend = FakeBackend()
    for seconds in (0.0001, 0.003, 99.0):
        backend.latency.observe("query-status", seconds)
    samples = scrape(backend)
    bucket = "qsup_qmp_command_duration_seconds_bucket"
    counts = [samples[bucket, labels(command="query-status", le=str(bound))] for bound in LATENCY_BUCKETS]
    assert counts == [1 if bound < 0.005 else 2 for bound in LATENCY_BUCKETS]
    assert samples[bucket, labels(command="query-status", le="+Inf")] == 3
    assert samples["qsup_qmp_command_duration_seconds_sum", labels(command="query-status")] == pytest.approx(99.0031)


def test_requests_are_counted_by_route() -> None:
    """Counts by method, route and status, durations by method and route."""
    traffic = Traffic()
    for status in (200, 200, 404):
        traffic.on_request("GET", "/v1/instances/{instance}", status, 0.002)
    samples = scrape(FakeBackend(), traffic)
    where = {"method": "GET", "route": "/v1/instances/{instance}"}
    assert samples["qsup_api_requests_total", labels(**where, status="200")] == 2
    assert samples["qsup_api_requests_total", labels(**where, status="404")] == 1
    assert samples["qsup_api_request_duration_seconds_count", labels(**where)] == 3


def test_a_snapshot_does_not_move() -> None:
    """What happens while a scrape is written is part of the next one."""
    backend, traffic = FakeBackend("web"), Traffic()
    traffic.on_request("GET", "/", 200, 0.001)
    snapshot = take_snapshot(backend, traffic, version="0.0.1")
    traffic.on_request("GET", "/", 200, 0.001)
    backend.set_state("web", State.PAUSED)
    assert snapshot.requests == {("GET", "/", 200): 1}
    assert sum(snapshot.durations["GET", "/"][0]) == 1
    assert snapshot.events == 0


def test_odd_names_cannot_break_the_text() -> None:
    """Quotes, backslashes and newlines in a label come back as they were."""
    backend = FakeBackend()
    name = 'a"b\\c\nd'
    backend.views[name] = evolve(make_view("x"), name=name)
    assert scrape(backend)["qsup_instance_restarts_total", labels(instance=name)] == 1


async def test_openmetrics_where_it_is_asked_for(tmp_path: Path) -> None:
    """The media type follows ``Accept``; both texts end whole."""
    async with daemon(tmp_path, "web") as qsupd:
        caller = await qsupd.connect()
        plain = await caller.get("/metrics")
        await caller.client.send(
            b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n"
        )
        modern = await caller.client.reply()
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert modern.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert modern.body.endswith(b"# EOF\n")
    assert b"process_resident_memory_bytes" in plain.body


def test_the_library_is_loaded_by_the_first_scrape_alone() -> None:
    """A daemon that nobody scrapes does not pay for it."""
    program = "import sys, qsup.api.routes.table; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
