"""Disks that come and go, beside a bare script's own QMP on the very same QEMU.

Decides: both open the image, hand it over by descriptor and add the same nodes and the same device to a Linux guest
that lets it go; an API call is one request on a kept connection.
Must not: count the guest's own time for one of the two alone: they take turns.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.bench.figures import Figure, Limit, at_most, milliseconds, plus
from tests.bench.kept import Kept
from tests.bench.twin import Twin
from tests.bench.workshop import Workshop, clock, in_turns, power
from tests.guests import linux_guest
from tests.waiting import poll_until

#: Disks that come at once, and cycles after which nothing may be left.
AT_ONCE, CYCLES = 16, 100
_SIZE = 1 << 20


def measure(shop: Workshop, repeat: int) -> Iterator[Figure]:
    """Attach and detach one disk, sixteen at once, and one a hundred times."""
    (shop.daemon.units / "vm.toml").write_text(_unit())
    shop.daemon.post("/v1/reload")
    connection = shop.connect()
    power(connection, "vm", "start")
    images = [_image(shop.daemon.root / f"d{number}.img") for number in range(AT_ONCE)]
    twin = Twin(shop.argv("vm"), shop.directory)
    twin.start()
    try:
        # its guest has to be up to let anything go, and says so by the same agent
        poll_until(lambda: _port_is_open(twin), "the bare guest is up", seconds=60)
        yield from _one(connection, twin, images[0], repeat)
        yield _many(connection, twin, images, max(1, repeat // 5))
        yield from _cycles(shop, connection)
    finally:
        twin.quit()
    connection.close()


def _unit() -> str:
    guest = linux_guest()
    return f"""\
[service]
ready = "agent"
stop-methods = ["quit", "term", "kill"]
[machine]
accel = "tcg"
kernel = "{guest.kernel}"
initrd = "{guest.initrd}"
append = "{guest.append}"
hotplug-slots = {AT_ONCE}
[memory]
size = "128M"
"""


def _image(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(_SIZE)
    return path


def _port_is_open(twin: Twin) -> bool:
    assert twin.monitor is not None
    return any(port["frontend-open"] for port in twin.monitor.ask("query-chardev") if port["label"] == "agent")


def _one(connection: Kept, twin: Twin, image: Path, repeat: int) -> Iterator[Figure]:
    def bare() -> tuple[float, float]:
        return clock(_bare_attach, twin, image, 0), clock(_bare_detach, twin, 0)

    def qsup() -> tuple[float, float]:
        return clock(_attach, connection, image), clock(_detach, connection)

    theirs, ours = in_turns(repeat, bare, qsup)
    for number, (name, limit) in enumerate((("attach", plus(1.5, "ms")), ("detach", plus(5, "ms")))):
        yield _figure(f"{name} a virtio disk, live guest", ours[number], theirs[number], limit)


def _figure(name: str, ours: Sequence[float], bare: Sequence[float], limit: Limit | None) -> Figure:
    return Figure(
        name=name,
        unit="ms",
        qsup=milliseconds(ours),
        bare=milliseconds(bare),
        reference="bare QMP sequence",
        limit=limit,
    )


def _attach(connection: Kept, image: Path) -> None:
    body = {"id": "data", "path": image.name}
    _done(connection.ask("POST", "/v1/instances/vm/disks?wait=30&persist=0", body))


def _detach(connection: Kept, name: str = "data") -> None:
    _done(connection.ask("DELETE", f"/v1/instances/vm/disks/{name}?wait=30&persist=0"))


def _done(operation: dict[str, object]) -> None:
    assert operation["state"] == "succeeded", operation


def _bare_attach(twin: Twin, image: Path, number: int) -> None:
    """What a script does that hands images over as qsup does: both descriptors, the file, the format, the device."""
    assert twin.monitor is not None
    fdset, node = 100 + number, f"d{number}"
    for flags in (os.O_RDWR, os.O_RDONLY):
        fd = os.open(image, flags | os.O_CLOEXEC)
        _ok(twin.monitor.command("add-fd", {"fdset-id": fdset}, fds=[fd]))
        os.close(fd)
    file: dict[str, object] = {"driver": "file", "node-name": f"f{number}", "filename": f"/dev/fdset/{fdset}"}
    _ok(twin.monitor.command("blockdev-add", file))
    _ok(twin.monitor.command("blockdev-add", {"driver": "raw", "node-name": node, "file": f"f{number}"}))
    device: dict[str, object] = {"driver": "virtio-blk-pci", "id": node, "bus": f"port-free-{number}", "drive": node}
    _ok(twin.monitor.command("device_add", device))


def _bare_detach(twin: Twin, number: int) -> None:
    assert twin.monitor is not None
    node = f"d{number}"
    _ok(twin.monitor.command("device_del", {"id": node}))
    while twin.monitor.event("DEVICE_DELETED")["data"].get("device") != node:  # type: ignore[attr-defined]  # of the backend
        pass
    for name in (node, f"f{number}"):
        _ok(twin.monitor.command("blockdev-del", {"node-name": name}))
    _ok(twin.monitor.command("remove-fd", {"fdset-id": 100 + number}))


def _ok(answer: dict[str, object]) -> None:
    assert "return" in answer, answer


def _many(connection: Kept, twin: Twin, images: Sequence[Path], repeat: int) -> Figure:
    """Sixteen in one request, against a script that adds them one after the other."""
    entries = [{"id": f"d{number}", "path": image.name} for number, image in enumerate(images)]

    def bare() -> tuple[float]:
        def attach() -> None:
            for number, image in enumerate(images):
                _bare_attach(twin, image, number)

        seconds = clock(attach)
        for number in range(len(images)):
            _bare_detach(twin, number)
        return (seconds,)

    def qsup() -> tuple[float]:
        def attach() -> None:
            _done(connection.ask("PATCH", "/v1/instances/vm?wait=30&persist=0", {"changes": {"disk": entries}}))

        seconds = clock(attach)
        for entry in entries:
            _detach(connection, str(entry["id"]))
        return (seconds,)

    (theirs,), (ours,) = in_turns(repeat, bare, qsup)
    return _figure(f"attach {AT_ONCE} disks by one PATCH", ours, theirs, None)


def _cycles(shop: Workshop, connection: Kept) -> Iterator[Figure]:
    """What is left of descriptors and memory after many cycles, of QEMU and of the daemon."""
    pids = {"QEMU": shop.daemon.view("vm")["pid"], "the daemon": shop.daemon.pid}
    before = {who: (_descriptors(pid), _resident(pid)) for who, pid in pids.items()}
    for _ in range(CYCLES):
        _attach(connection, shop.daemon.root / "d0.img")
        _detach(connection)
    for who, pid in pids.items():
        descriptors, memory = before[who]
        left, grown = abs(_descriptors(pid) - descriptors), _resident(pid) - memory
        yield _left(f"descriptors of {who} after {CYCLES} attaches and detaches", "more or fewer", left, at_most(2, ""))
        yield _left(f"memory of {who} after {CYCLES} attaches and detaches", "MiB more", grown / (1 << 20), None)


def _left(name: str, unit: str, value: float, limit: Limit | None) -> Figure:
    return Figure(name=name, unit=unit, qsup=[value], limit=limit)


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
