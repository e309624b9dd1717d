"""What is said of a QEMU that is no longer as it was started."""

from __future__ import annotations

from qsup.instance.stock import missing, under_way
from qsup.plan.spec import DiskPlan, NicPlan, PlanSummary
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
    nics=(
        NicPlan(id="lan", type="user", model="virtio", mac=""),
        NicPlan(id="dmz", type="user", model="virtio", mac=""),
    ),
)


def job(number: int) -> JobInfo:
    """A job whose words are as long as a hostile QEMU makes them."""
    long = "x" * 10_000
    return JobInfo(id=f"{number}", type="commit", status=long, current_progress=0, total_progress=1, error=long)


def test_nothing_is_said_of_what_is_there() -> None:
    """All devices and nodes are there, an empty tray has no node, and there are no jobs."""
    devices = {*(disk.device for disk in SUMMARY.disks), "nic-lan", "nic-dmz", "agent"}
    assert list(missing(SUMMARY, {disk.node for disk in SUMMARY.disks}, devices)) == []
    assert list(under_way(())) == []


def test_what_is_gone_is_named() -> None:
    """A device, and an image under a device that is still there."""
    said = list(missing(SUMMARY, {"format-root"}, {"disk-root", "disk-tray", "disk-data", "nic-lan"}))
    assert said == [
        "disk data: its image was removed since the start",
        "disk gone: its device was removed since the start",
        "NIC dmz: its device was removed since the start",
    ]


def test_jobs_are_named_within_bounds() -> None:
    """A few by name, of more the number, none at any length."""
    said = list(under_way(tuple(map(job, range(1000)))))
    assert said[0].startswith("QEMU has a job 0 (commit, xxx")
    assert said[-1] == "QEMU has 992 further jobs"
    assert max(map(len, said)) < 1000
