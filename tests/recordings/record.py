"""Record conversations with a real QEMU and a real guest agent: ``python -m tests.recordings.record [NAME...]``.

Decides: which conversations the fakes can play.
Must not: be needed by any test.

Needs qemu-system-x86_64 and qemu-ga, and root for the network namespace that the agent reports on.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.bare import DEADLINE, DELIMITER, BareConnection, bare_agent, bare_qemu
from tests.recordings.recording import Entry, Recording

BASE = ("-nodefaults", "-no-user-config", "-accel", "tcg", "-display", "none", "-S", "-no-shutdown")
NAMED = ("-name", "web", "-uuid", "6d1ff6f6-6f2e-4b0c-9b5c-6d1f6f2e4b0c")
DISK = ("-blockdev", "driver=raw,node-name=disk0,file.driver=file,file.filename=disk.img")
FAILING_DISK = (
    "-blockdev",
    "driver=blkdebug,node-name=broken,image.driver=null-co,image.size=1048576,"
    "inject-error.0.event=none,inject-error.0.errno=5",
    "-device",
    "virtio-blk-pci,id=disk0,drive=broken,rerror=stop,werror=stop,bootindex=0",
)
CAPABILITIES: dict[str, object] = {"enable": ["oob"]}


class Recorder:
    """Collects what is said on any number of connections.

    Args:
        directory: an empty one, for sockets and images.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.entries: list[Entry] = []
        self.command: tuple[str, ...] = ()
        self._connections = 0

    def connect(self, path: Path) -> BareConnection:
        """Connect, and record all that is said from now on."""
        self._connections += 1
        number = self._connections
        return BareConnection(
            path, lambda side, text: self.entries.append(Entry(connection=number, side=side, text=text))
        )

    def monitor(self) -> BareConnection:
        """Connect to QEMU's monitor and read its greeting."""
        connection = self.connect(self.directory / "qmp.sock")
        connection.read()
        return connection

    def negotiated(self) -> BareConnection:
        """Connect to QEMU's monitor and negotiate."""
        connection = self.monitor()
        connection.command("qmp_capabilities", CAPABILITIES)
        return connection

    def qemu(self, *options: str) -> tuple[str, ...]:
        """Note QEMU's command line."""
        self.command = ("qemu-system-x86_64", *options)
        return options


def record_session(recorder: Recorder) -> None:
    """Every verb once, on a paused machine without a guest, and the end by ``quit``."""
    (recorder.directory / "disk.img").write_bytes(bytes(1 << 20))
    options = recorder.qemu("-machine", "q35", *BASE, *NAMED, *DISK, "-device", "virtio-blk-pci,id=root,drive=disk0")
    with bare_qemu(recorder.directory, *options), recorder.negotiated() as monitor:
        for command in (
            "query-status query-kvm query-name query-uuid query-cpus-fast query-block query-blockstats query-chardev "
            "query-jobs query-balloon query-commands query-machines inject-nmi no-such-command"
        ).split():
            monitor.command(command)
        monitor.command("query-named-block-nodes", {"flat": True})
        monitor.command("qom-list", {"path": "/machine/peripheral"})
        monitor.command("screendump", {"filename": "screen"})
        monitor.command("query-yank", oob=True)
        monitor.command("cont", until=["RESUME"])
        monitor.command("query-status")
        monitor.command("stop", until=["STOP"])
        monitor.command("system_reset", until=["RESET"])
        monitor.command("cont", until=["RESUME"])
        monitor.command("system_powerdown", until=["POWERDOWN"])
        monitor.command("human-monitor-command", {"command-line": "info version"})
        monitor.command("human-monitor-command", {"wrong": 1})
        monitor.command("qom-list-types", {"implements": "watchdog", "abstract": False})
        monitor.command("quit", until=["SHUTDOWN"])
        monitor.read()


def record_schema(recorder: Recorder) -> None:
    """The longest answer there is."""
    with bare_qemu(recorder.directory, *recorder.qemu("-machine", "none", *BASE)), recorder.negotiated() as monitor:
        monitor.command("query-qmp-schema")


def record_stale(recorder: Recorder) -> None:
    """A client leaves while its command runs; the next one gets the answer."""
    options = recorder.qemu("-machine", "q35", "-m", "512", *BASE)
    with bare_qemu(recorder.directory, *options):
        arguments = {"paging": False, "protocol": "file:dump"}
        with recorder.negotiated() as first:
            first.write(json.dumps({"execute": "dump-guest-memory", "id": "OLD", "arguments": arguments}))
            # the dump has begun when its file is there
            while not (recorder.directory / "dump").exists():
                os.sched_yield()
        with recorder.negotiated() as second:
            second.command("query-status")


def record_unreadable(recorder: Recorder) -> None:
    """Commands that QEMU cannot read get errors that name none."""
    with bare_qemu(recorder.directory, *recorder.qemu("-machine", "none", *BASE)), recorder.negotiated() as monitor:
        for text in (
            '{"execute": }',
            '{"execute": "query-status", "id": "a", "arguments": {"x": "\\ud800"}}',
            '{"execute": "query-status", "id": "b", "arguments": {"x": "\\uffff"}}',
            '{"execute": "query-status", "id": "c", "arguments": {"x": NaN}}',
        ):
            monitor.write(text)
            monitor.read()
        monitor.command("query-status")


def record_dead(recorder: Recorder) -> None:
    """A wrong option: QEMU ends before it greets."""
    options = recorder.qemu("-machine", "q35", *BASE, "-no-such-option")
    with bare_qemu(recorder.directory, *options), recorder.monitor():
        pass


def record_stillborn(recorder: Recorder) -> None:
    """A device that cannot be made: QEMU greets and ends."""
    options = recorder.qemu("-machine", "q35", *BASE, "-device", "no-such-device")
    with bare_qemu(recorder.directory, *options), recorder.monitor() as monitor:
        monitor.read()


def record_panic(recorder: Recorder) -> None:
    """A guest panics by pvpanic's port, and its watchdog expires; both ports are written by the human monitor."""
    devices = ("-device", "pvpanic", "-device", "ib700", "-action", "watchdog=pause")
    with (
        bare_qemu(recorder.directory, *recorder.qemu("-machine", "pc", *BASE, *devices)),
        recorder.negotiated() as monitor,
    ):
        monitor.command("cont", until=["RESUME"])
        monitor.command("human-monitor-command", {"command-line": "o /b 0x505 1"}, until=["GUEST_PANICKED", "STOP"])
        monitor.command("query-status")
        monitor.command("system_reset", until=["RESET"])
        monitor.command("cont", until=["RESUME"])
        monitor.command("human-monitor-command", {"command-line": "o /b 0x443 15"}, until=["WATCHDOG", "STOP"])
        monitor.command("query-status")


def record_io_error(recorder: Recorder) -> None:
    """The firmware reads from a disk that always fails, and the machine stands in io-error."""
    options = recorder.qemu("-machine", "q35", *BASE, *FAILING_DISK)
    with bare_qemu(recorder.directory, *options), recorder.negotiated() as monitor:
        monitor.command("cont", until=["RESUME", "BLOCK_IO_ERROR", "STOP"])
        monitor.command("query-status")
        monitor.command("query-block")


def record_devices(recorder: Recorder) -> None:
    """A USB device is unplugged, a job runs to its end."""
    options = recorder.qemu("-machine", "q35", *BASE, "-device", "qemu-xhci", "-device", "usb-tablet,id=tablet")
    with bare_qemu(recorder.directory, *options), recorder.negotiated() as monitor:
        monitor.command("cont", until=["RESUME"])
        monitor.command("device_del", {"id": "tablet"}, until=["DEVICE_DELETED"])
        create = {"driver": "file", "filename": "new.img", "size": 1 << 20}
        monitor.command("blockdev-create", {"job-id": "create", "options": create}, until=["JOB_STATUS_CHANGE"] * 4)
        monitor.command("query-jobs")
        monitor.command("job-dismiss", {"id": "create"}, until=["JOB_STATUS_CHANGE"])


def record_descriptors(recorder: Recorder) -> None:
    """Descriptors are passed, used and taken back; a picture of the screen is written through one."""
    options = recorder.qemu("-machine", "q35", *BASE, "-device", "VGA", "-vnc", "none")
    with bare_qemu(recorder.directory, *options), recorder.negotiated() as monitor:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            monitor.command("getfd", {"fdname": "vnc"}, fds=[theirs.fileno()])
            monitor.command("add_client", {"protocol": "vnc", "fdname": "vnc", "skipauth": True})
            monitor.command("getfd", {"fdname": "unused"}, fds=[theirs.fileno()])
            monitor.command("closefd", {"fdname": "unused"})
            monitor.command("getfd", {"fdname": "missing"})
        with (recorder.directory / "screen").open("wb") as screen:
            monitor.command("add-fd", fds=[screen.fileno()])
        monitor.command("screendump", {"filename": "/dev/fdset/0"})
        monitor.command("remove-fd", {"fdset-id": 0})
        monitor.command("remove-fd", {"fdset-id": 0})


AGENT_NETWORK = (
    "ip link set lo up && ip tuntap add guest0 mode tap && ip link set guest0 address 52:54:00:12:34:56 && "
    'ip address add 192.0.2.7/24 dev guest0 && exec "$@"'
)


def record_agent(recorder: Recorder) -> None:
    """A guest agent that runs on this host, in a network namespace of its own, instead of in a guest."""
    launcher = ("unshare", "--net", "sh", "-c", AGENT_NETWORK, "sh")
    recorder.command = ("qemu-ga", "--method=unix-listen", "--block-rpcs=guest-shutdown,...")
    with bare_agent(recorder.directory, *launcher) as path, recorder.connect(path) as agent:
        agent.command("guest-sync-delimited", {"id": 4711}, prefix=DELIMITER)
        agent.command("guest-ping")
        agent.command("guest-info")
        agent.command("guest-network-get-interfaces")
        os.mkfifo(recorder.directory / "go")
        script = f"cat; echo oops >&2; cat {recorder.directory}/go; exit 3"
        run = {"path": "/bin/sh", "arg": ["-c", script], "input-data": "aGVsbG8K", "capture-output": True}
        started = agent.command("guest-exec", run)["return"]
        assert isinstance(started, dict)
        agent.command("guest-exec-status", {"pid": started["pid"]})
        ended = os.pidfd_open(started["pid"])
        (recorder.directory / "go").write_text("gone\n")
        select.select([ended], [], [], DEADLINE)
        os.close(ended)
        while not _exited(agent.command("guest-exec-status", {"pid": started["pid"]})):
            os.sched_yield()
        agent.command("guest-exec-status", {"pid": started["pid"]})
        agent.command("guest-exec", {"path": "/no/such/program"})
        agent.command("guest-shutdown", {"mode": "powerdown"})
        agent.command("guest-no-such-command")


def _exited(answer: dict[str, object]) -> bool:
    status = answer["return"]
    return isinstance(status, dict) and status["exited"] is True


RECORDERS: dict[str, Callable[[Recorder], None]] = {
    "session": record_session,
    "schema": record_schema,
    "stale": record_stale,
    "unreadable": record_unreadable,
    "dead": record_dead,
    "stillborn": record_stillborn,
    "panic": record_panic,
    "io-error": record_io_error,
    "devices": record_devices,
    "descriptors": record_descriptors,
    "agent": record_agent,
}


def main(names: list[str]) -> None:
    """Record the conversations named, or all."""
    for name in names or RECORDERS:
        record = RECORDERS[name]
        with tempfile.TemporaryDirectory(prefix="qsup-record-") as directory:
            recorder = Recorder(Path(directory))
            record(recorder)
        program = recorder.command[0]
        version = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout
        recording = Recording(
            name=name,
            about=(record.__doc__ or "").strip(),
            of=version.splitlines()[0],
            command=recorder.command,
            entries=tuple(recorder.entries),
        )
        recording.dump()
        print(f"{name}: {len(recording.entries)} lines")


if __name__ == "__main__":
    main(sys.argv[1:])
