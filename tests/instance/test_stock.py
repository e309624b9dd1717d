"""What is said of a QEMU that is no longer as it was started."""

from __future__ import annotations

from attrs import evolve

from qsup.instance.stock import missing, under_way
from qsup.plan.spec import DiskPlan, PartPlan, PlanSummary
from qsup.qmp.results import JobInfo


def disk(name: str, node: str) -> DiskPlan:
    """One disk of a plan."""
    return DiskPlan(
        id=name, path="", format="raw", type="disk", bus="virtio", read_only=False, node=node, device=f"disk-{name}"
    )


SUMMARY = PlanSummary(
    emulator="",
    machine="",
    accel="",
    cpu_model="",
    disks=(disk("root", "format-root"), disk("tray", ""), disk("data", "format-data"), disk("gone", "format-gone")),
)


def job(number: int) -> JobInfo:
    """A job whose words are as long as a hostile QEMU makes them."""
    long = "x" * 10_000
    return JobInfo(id=f"{number}", type="commit", status=long, current_progress=0, total_progress=1, error=long)


def test_nothing_is_said_of_what_is_there() -> None:
    """All nodes are there, an empty tray has none, and there are no jobs."""
    assert list(missing(SUMMARY, {disk.node for disk in SUMMARY.disks})) == []
    assert list(under_way(())) == []


def test_what_is_gone_is_named() -> None:
    """An image under a device that may still be there."""
    said = list(missing(SUMMARY, {"format-root", "format-gone"}))
    assert said == ["disk data: its image was removed since the start"]


def test_what_comes_or_goes_is_not_missed() -> None:
    """An attach that QEMU never heard of has its disk on its way out until QEMU says that it has none."""
    parts = (
        PartPlan(entry="disk.root", devices=(), state="coming"),
        PartPlan(entry="disk.data", devices=(), state="leaving"),
        PartPlan(entry="disk.gone", devices=()),
    )
    said = list(missing(evolve(SUMMARY, parts=parts), set()))
    assert said == ["disk gone: its image was removed since the start"]


def test_jobs_are_named_within_bounds() -> None:
    """A few by name, of more the number, none at any length."""
    said = list(under_way(tuple(map(job, range(1000)))))
    assert said[0].startswith("QEMU has a job 0 (commit, xxx")
    assert said[-1] == "QEMU has 992 further jobs"
    assert max(map(len, said)) < 1000
