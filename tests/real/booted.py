"""A host that systemd runs: a container that boots this machine's own files, with qsup not yet installed.

Decides: what such a host is made of, how it is switched on and off, and how commands and clients reach what is in it.
Must not: install qsup its own way; `docs/admin.md` says how that is done, and tests do it.

Its root is an overlay of this machine's in memory, which lives as long as the host does, however often that boots. One
process holds all of it: with that its mounts, processes and network are gone. Only cgroups are left, to be removed.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tests.guests import cache_directory
from tests.real.daemons import DEADLINE, Daemon
from tests.real.users import CHECKOUT
from tests.waiting import came_true, poll_until

#: Its root, as the process that holds it sees it; what systemd-nspawn itself keeps goes with that process.
PREPARE = """
if [ -d /run/systemd/system ]; then
    mkdir -p /run/systemd/nspawn
    mount -t tmpfs -o mode=755 qsup-booted /run/systemd/nspawn
else
    mount -t tmpfs -o mode=755 qsup-booted /run
fi
mount -t tmpfs -o mode=755 qsup-booted "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
"""
#: Nothing of what this machine itself would do when it boots: its services, its file systems, its identity.
STRIP = """
cd "$1/root"
rm -rf etc/systemd/system etc/systemd/system-generators etc/fstab etc/machine-id etc/qsup var/log/journal
mkdir -p etc/systemd/system etc/systemd/system-generators etc/systemd/journald.conf.d var/log/journal
for generator in usr/lib/systemd/system-generators/*; do
    ln -s /dev/null "etc/systemd/system-generators/${generator##*/}"
done
ln -s /usr/lib/systemd/system/multi-user.target etc/systemd/system/default.target
printf '[Journal]\\nForwardToConsole=yes\\nMaxLevelConsole=debug\\n' >etc/systemd/journald.conf.d/test.conf
echo 0123456789abcdef0123456789abcdef >etc/machine-id
"""
#: Join the cgroups given, say that all is ready, then boot once for each line that is read.
BOOT = """
root=$1/root
shift
for cgroup; do
    [ "$cgroup" != -- ] || break
    echo 0 >"$cgroup/cgroup.procs"
    shift
done
shift
echo ready
while read -r _; do
    status=0
    systemd-nspawn --directory="$root" "$@" </dev/null >&2 || status=$?
    echo "ended $status"
done
"""
HOLD = (
    "setpriv",
    "--pdeathsig",
    "KILL",
    "unshare",
    "--mount",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "--propagation",
    "private",
)
ENTER = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Host:
    """One host; `boot` switches it on.

    Args:
        root: a test's directory, where its console is logged.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        place = root / "host"
        place.mkdir()
        self._cgroups = [top / f"qsup-booted-{os.getpid()}" for top in _own_cgroups()]
        for cgroup in self._cgroups:
            cgroup.mkdir(exist_ok=True)
        self._console = (root / "console.log").open("ab")
        self._leader = 0
        seen = {str(path) for path in (CHECKOUT, sys.prefix, sys.base_prefix, cache_directory())} - {"/usr"}
        # CAP_SYS_MODULE and the like are not among what it has: what it is told to load, this machine would
        options = ["--quiet", "--boot", "--console=read-only", "--machine=qsup-booted", "--private-network"]
        options += ["--register=no", "--keep-unit", "--system-call-filter="]
        self._holder = subprocess.Popen(
            [
                *(*_scope(), *HOLD, "sh", "-euc", PREPARE + STRIP + BOOT, "sh", str(place)),
                *(*map(str, self._cgroups), "--"),
                *(*options, *(f"--bind-ro={path}" for path in sorted(seen))),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._console,
            text=True,
            # cgroups of version 2 alone, as today's distributions have them, whatever this machine has
            env=os.environ | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
        )
        self._hears("ready")

    def _hears(self, word: str) -> str:
        assert self._holder.stdout is not None
        line = self._holder.stdout.readline()
        assert line.startswith(word), f"{line!r}: {self.console()[-4000:]}"
        return line.removeprefix(word).strip()

    def console(self) -> str:
        """What it has written on its console: all of its journal, among others."""
        return (self.root / "console.log").read_text(errors="replace")

    @property
    def files(self) -> Path:
        """Its root directory: while it is on as its processes see it, else what is left on its disk."""
        return Path(f"/proc/{self._leader}/root") if self._leader else self._disk

    @property
    def _disk(self) -> Path:
        inside = next(_below(self._holder.pid))
        return Path(f"/proc/{inside}/root{self.root}/host/root")

    def boot(self) -> None:
        """Switch it on and wait until everything has been started that is to be."""
        assert self._holder.stdin is not None
        self._holder.stdin.write("boot\n")
        self._holder.stdin.flush()
        poll_until(self._has_leader, "systemd runs", seconds=DEADLINE)

        def is_up() -> bool:
            # one of this machine's own services may fail there: `failed` is about ours
            told = self.run("systemctl", "is-system-running", "--wait", check=False)
            return told.strip() in {"running", "degraded"}

        assert came_true(is_up, seconds=DEADLINE), self.console()[-4000:]

    def _has_leader(self) -> bool:
        self._leader = next(filter(_is_leader, _below(self._holder.pid)), 0)
        return self._leader != 0

    def wait_off(self) -> None:
        """Wait until it has switched itself off."""
        self._hears("ended")
        self._leader = 0

    def power_cut(self) -> None:
        """Switch it off without any warning."""
        fd = os.pidfd_open(self._leader)
        try:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        finally:
            os.close(fd)
        self.wait_off()

    def run(self, *command: str, check: bool = True, directory: Path | str = "/") -> str:
        """Run a command in it, and return what it printed."""
        enter = ("nsenter", "--target", str(self._leader), *ENTER)
        change = ("env", "-i", f"--chdir={directory}", f"PATH={PATH}", "LANG=C.UTF-8")
        done = subprocess.run(
            [*enter, *change, *command],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert not check or done.returncode == 0, f"{' '.join(command)} ({done.returncode}): {done.stdout}{done.stderr}"
        return done.stdout

    def property(self, unit: str, name: str) -> str:
        """What systemd says of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def failed(self) -> str:
        """Those of our units that have failed."""
        return self.run("systemctl", "list-units", "--failed", "--no-legend", "qsup*")

    def has_kvm(self) -> bool:
        """Whether its VMs can use KVM; it has a node of its own then, as closed to others as some hosts have it."""
        make = "mknod --mode=600 /dev/kvm c 10 232 && : <>/dev/kvm"
        return os.access("/dev/kvm", os.W_OK) and bool(self.run("sh", "-c", f"{make} && echo yes", check=False))

    def close(self) -> None:
        """Switch it off and remove it."""
        self._holder.kill()
        self._holder.wait(DEADLINE)
        for stream in (self._holder.stdin, self._holder.stdout):
            assert stream is not None
            stream.close()
        self._console.close()
        poll_until(lambda: all(_remove_tree(path) for path in self._cgroups), "its cgroups are empty", seconds=DEADLINE)


class HostsDaemon(Daemon):
    """The daemon that systemd runs on a host: reached through the host's files, started and ended by systemd alone."""

    def __init__(self, host: Host) -> None:
        super().__init__(host.root)
        self.host = host
        self.find()

    def find(self) -> None:
        """Look where it is after the host has booted."""
        self.run = self.host.files / "run/qsup"
        self.units = self.host.files / "etc/qsup/units"

    @property
    def pid(self) -> int:
        """Its process, by the host's own numbers."""
        return int(self.host.property("qsupd.service", "MainPID"))

    def log(self) -> str:
        """What the host has written on its console."""
        return self.host.console()

    def close(self) -> None:
        """Close what is the test's own; its VMs go with the host."""
        self._log.close()

    def process(self, pid: int) -> Path:
        """What the host's /proc says of one of its processes."""
        return self.host.files / f"proc/{pid}"


def why_not(root: Path) -> str:
    """Why this machine cannot run such a host, in one sentence, or ``""``.

    Args:
        root: a test's directory.
    """
    assert shutil.which("systemd-nspawn"), "systemd-nspawn is not installed: contrib/test.sh does it"
    if sealed := [str(top) for top in _own_cgroups() if not os.access(top / "cgroup.procs", os.W_OK)]:
        return f"no cgroup can be made here: {', '.join(sealed)}"
    place = root / "probe"
    place.mkdir()
    command = [*HOLD, "sh", "-euc", PREPARE, "sh", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    return f"no overlay of / can be mounted in a namespace here: {done.stderr.strip()}" if done.returncode else ""


def install(host: Host) -> None:
    """Put the programs where `pip install` would, as `docs/admin.md` has it."""
    top = host.files / "opt/qsup"
    write_programs(top, top / "lib", python=sys.executable, place="/opt/qsup/lib")


def write_programs(top: Path, library: Path, *, python: str, place: str) -> None:
    """Copy the package of this checkout, and write what runs it.

    Args:
        top: a directory; its ``bin`` is for the programs.
        library: where the package goes.
        python: what runs them on the host.
        place: where the library is on the host.
    """
    shutil.copytree(CHECKOUT / "qsup", library / "qsup", ignore=shutil.ignore_patterns("__pycache__"))
    (top / "bin").mkdir()
    for name, module in (("qsupd", "qsup.entry"), ("qsupctl", "qsup.ctl.main")):
        program = top / "bin" / name
        program.write_text(
            f"#!{python}\nimport sys\nsys.path.insert(0, '{place}')\nfrom {module} import main\nsys.exit(main())\n"
        )
        program.chmod(0o755)


def commands_of_the_guide() -> str:
    """How an administrator installs qsup, but for what needs the network; `install` does that."""
    section = (CHECKOUT / "docs/admin.md").read_text().partition("## Installation")[2]
    lines = section.partition("```sh\n")[2].partition("```")[0].splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["python3", "/opt/qsup/bin/pip"]
    return "\n".join(lines[2:])


def _scope() -> tuple[str, ...]:
    """How a cgroup is had where systemd runs this machine: by asking it."""
    if not Path("/run/systemd/system").is_dir():
        return ()
    return ("systemd-run", "--scope", "--quiet", "--collect", "--property=Delegate=yes")


def _own_cgroups() -> list[Path]:
    """Where this process's cgroups are, below which a host's are made; none where `_scope` does it."""
    if _scope():
        return []
    own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    tops = {
        Path("/sys/fs/cgroup"): "",
        Path("/sys/fs/cgroup/unified"): "",
        Path("/sys/fs/cgroup/systemd"): "name=systemd",
    }
    return [top / own[name].strip("/") for top, name in tops.items() if name in own and (top / "cgroup.procs").exists()]


def _remove_tree(top: Path) -> bool:
    """Whether a cgroup and all below it could be removed."""
    for directory, _, _ in os.walk(top, topdown=False):
        try:
            os.rmdir(directory)
        except OSError:  # EBUSY: the last of its processes is just ending
            return False
    return True


def _below(pid: int) -> Iterator[int]:
    """All that descend from a process, parents first."""
    with suppress(OSError):
        for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            yield child
            yield from _below(child)


def _is_leader(pid: int) -> bool:
    """Whether a process is systemd as the first of its namespace, and no longer about to be."""
    with suppress(OSError):
        process = Path(f"/proc/{pid}")
        numbers = re.search(r"^NSpid:.*", (process / "status").read_text(), re.MULTILINE)
        return bool(numbers and numbers[0].endswith("\t1")) and (process / "comm").read_text() == "systemd\n"
    return False
