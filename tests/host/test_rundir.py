"""Tests of `qsup.host.rundir`: layouts, the lock, run directories."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import stat
from contextlib import closing
from pathlib import Path

import pytest
from attrs import evolve

from qsup.errors import AlreadyRunning, ConfigError, HostError, StateFileError
from qsup.host import proc
from qsup.host.claims import Claim
from qsup.host.records import RunRecord
from qsup.host.rundir import DaemonLock, InstanceDirectory, Layout
from tests.host.children import child

RECORD = RunRecord(
    name="web",
    uuid="0f5d0a3e-4d0c-4a5c-8f3f-2d8f6e1a7b11",
    boot_id="b",
    pid=4711,
    start_time=99,
    uid=720000,
    unit_digest="d",
    argv=("qemu", "-S"),
    machine="pc-q35-7.2",
    started=1.5,
    uptime=1.5,
    claims=(Claim(path="a.qcow2", st_dev=1, st_ino=2, writable=True, shareable=False),),
    state={"substate": "running", "restarts": [1.0, 2.0]},
)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A prepared layout's description; nothing is made yet."""
    return Layout.for_root(tmp_path / "top")


def test_root_layout_keeps_everything_below_one_directory(tmp_path: Path) -> None:
    """`--root DIR` has units/, state/, run/ with the socket, log/, and DIR as its pool."""
    layout = Layout.for_root(tmp_path)
    assert layout.unit_dirs[-1] == tmp_path / "units"
    assert (layout.state, layout.run, layout.log) == (tmp_path / "state", tmp_path / "run", tmp_path / "log")
    assert layout.socket == tmp_path / "run" / "api.sock"
    assert layout.pools == (tmp_path,)


def test_user_layout_follows_xdg() -> None:
    """`--user` uses the XDG directories, their defaults below HOME, and ignores relative ones."""
    layout = Layout.for_user({"HOME": "/home/ann", "XDG_RUNTIME_DIR": "/run/user/7", "XDG_CONFIG_HOME": "oops"})
    assert layout.unit_dirs == (
        Path("/home/ann/.local/share/qsup/units"),
        Path("/run/user/7/qsup/units"),
        Path("/home/ann/.config/qsup/units"),
    )
    # which vanishes at logout, and is not there for cron: whoever starts a daemon, its VMs are found by the next one
    assert layout.socket == Path("/home/ann/.local/state/qsup/run/api.sock")
    assert layout.pools == (Path("/home/ann/.local/share/qsup/images"),)


def test_user_layout_without_runtime_directory_or_home() -> None:
    """Without a runtime directory the state directory serves; without HOME the error says what to set."""
    assert Layout.for_user({"HOME": "/h"}).run == Path("/h/.local/state/qsup/run")
    with pytest.raises(ConfigError, match="neither XDG_CONFIG_HOME nor HOME is set"):
        Layout.for_user({})


def test_system_layout_has_systemds_order() -> None:
    """Units in /etc win over /run, and those over /usr/lib."""
    layout = Layout.for_system()
    assert [str(path).split("/")[1] for path in layout.unit_dirs] == ["usr", "run", "etc"]
    assert layout.tag == "qsup"


def test_tags_differ_between_daemons(tmp_path: Path) -> None:
    """Two roots never share a tag, and one root keeps its own."""
    tags = [Layout.for_root(tmp_path / name).tag for name in ("a", "b", "a")]
    assert tags[0] == tags[2] != tags[1]


def test_a_link_to_a_root_is_that_root(tmp_path: Path) -> None:
    """What a daemon made is given back by the next one, by whatever path that was told of it."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert Layout.for_root(tmp_path / "link").tag == Layout.for_root(tmp_path / "real").tag


def test_prepare_makes_private_directories(layout: Layout) -> None:
    """State, logs and run directories of VMs are the daemon's alone; others may reach the socket."""
    layout.prepare().close()
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (layout.state, layout.log, layout.instances)}
    assert set(modes.values()) == {0o700}
    assert stat.S_IMODE(layout.run.stat().st_mode) == 0o755
    assert layout.unit_dirs[-1].is_dir()


def test_long_socket_path_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    """A socket path over 107 bytes is a clear error, and no directory appears."""
    top = tmp_path / ("x" * 120)
    with pytest.raises(ConfigError, match=r"has \d+ bytes; Unix sockets allow 107"):
        Layout.for_root(top).prepare()
    assert not top.exists()


def test_second_daemon_is_told_who_is_there(layout: Layout) -> None:
    """A second daemon on the same directories is refused and told the first one's pid; then it may have them."""
    first = layout.prepare()
    with pytest.raises(AlreadyRunning, match=rf"pid {os.getpid()}") as caught:
        layout.prepare()
    assert caught.value.details["pid"] == str(os.getpid())
    first.close()
    layout.prepare().close()


def test_an_emptied_run_directory_lets_no_second_daemon_in(layout: Layout) -> None:
    """What outlives it is still the first one's."""
    first = layout.prepare()
    shutil.rmtree(layout.run)
    with pytest.raises(AlreadyRunning, match=rf"pid {os.getpid()}"):
        layout.prepare()
    first.close()
    layout.prepare().close()


def test_lock_is_not_inherited(layout: Layout) -> None:
    """The lock's descriptor is close-on-exec: a VM that outlives the daemon does not hold it."""
    lock = layout.prepare()
    flags = [
        fcntl.fcntl(int(name), fcntl.F_GETFD)
        for name in os.listdir("/proc/self/fd")
        if os.path.realpath(f"/proc/self/fd/{name}") == str(layout.run / "daemon.lock")
    ]
    lock.close()
    assert flags == [fcntl.FD_CLOEXEC]


def test_lock_ignores_what_stood_in_the_file(tmp_path: Path) -> None:
    """A long leftover in the lock's file does not garble the new holder's pid."""
    (tmp_path / "lock").write_text("123456789 and more\n")
    lock = DaemonLock.take(tmp_path / "lock")
    assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    lock.close()


def test_instances_last_one_boot(layout: Layout) -> None:
    """A run directory survives a restarted daemon, and is gone once its record is of another boot."""
    layout.prepare().close()
    for name, boot in (("now", proc.boot_id()), ("then", "another boot")):
        with closing(layout.instance(name)) as directory:
            directory.write_record(evolve(RECORD, name=name, boot_id=boot))
    layout.prepare().close()
    assert layout.instance_names() == ["now"]


def test_what_is_not_certainly_of_another_boot_stays(layout: Layout) -> None:
    """No record, a torn one, another VM's, no directory at all, an output that somebody has open: all are left."""
    layout.prepare().close()
    for name in ("alive", "copied", "empty", "torn"):
        with closing(layout.instance(name)) as directory:
            if name in ("alive", "copied"):
                directory.write_record(evolve(RECORD, name="alive", boot_id="another boot"))
    (layout.instances / "torn" / "record.json").write_text("{")
    (layout.instances / "file").write_text("in the way")
    (layout.instances / "link").symlink_to("empty")
    os.mkfifo(layout.instances / "alive" / "output")
    with child("/bin/sh", "-c", 'exec 3<>"$1"; echo open; read _', "sh", str(layout.instances / "alive/output")) as it:
        assert it.stdout
        it.stdout.readline()
        layout.prepare().close()
    assert layout.instance_names() == ["alive", "copied", "empty", "file", "link", "torn"]
    layout.prepare().close()
    assert "alive" not in layout.instance_names()


@pytest.mark.root
def test_directory_of_another_user_is_refused(layout: Layout) -> None:
    """A state directory that another user could tamper with is refused."""
    layout.state.mkdir(parents=True)
    os.chown(layout.state, 65534, -1)
    with pytest.raises(ConfigError, match="belongs to uid 65534"):
        layout.prepare()


def test_unwritable_place_is_named(layout: Layout) -> None:
    """A directory that cannot be made gives the path and the kernel's words."""
    layout.run.parent.mkdir()
    layout.run.write_text("a file")
    with pytest.raises(HostError, match=r"could not prepare .*run: File exists"):
        layout.prepare()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b"])
def test_instance_name_is_one_file_name(tmp_path: Path, name: str) -> None:
    """A name that would leave the directory is refused, whoever let it through."""
    with pytest.raises(ConfigError, match="cannot be the name of a directory"):
        InstanceDirectory.open(tmp_path, name)


def test_instance_directory_is_no_link(tmp_path: Path) -> None:
    """A symbolic link in the place of a run directory is refused."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "web").symlink_to("elsewhere")
    with pytest.raises(HostError, match="could not open the run directory"):
        InstanceDirectory.open(tmp_path, "web")


@pytest.fixture
def deep(tmp_path: Path) -> InstanceDirectory:
    """A run directory whose path is far beyond 107 bytes."""
    parent = tmp_path / ("d" * 200)
    parent.mkdir()
    return InstanceDirectory.open(parent, "a" * 48 + "@" + "b" * 48)


def test_listener_in_a_directory_of_any_length(deep: InstanceDirectory) -> None:
    """A socket is bound 0600 whatever the length of its path, replaces a stale one, and takes connections."""
    os.close(deep.bind_listener("qmp"))
    listener = socket.socket(fileno=deep.bind_listener("qmp"))
    path = deep.path / "qmp"
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(deep.address("qmp"))
        accepted, _ = listener.accept()
        with accepted:
            client.sendall(b"hello")
            assert accepted.recv(5) == b"hello"
    deep.close()


def test_record_comes_back(tmp_path: Path) -> None:
    """A run record is read as it was written, and the later one replaces the earlier."""
    directory = InstanceDirectory.open(tmp_path, "web")
    directory.write_record(evolve(RECORD, pid=None, start_time=None))
    directory.write_record(RECORD)
    assert directory.read_record() == RECORD
    directory.close()


def test_record_of_another_vm_is_refused(tmp_path: Path) -> None:
    """A record that was copied from another VM's directory is not believed."""
    directory = InstanceDirectory.open(tmp_path, "mail")
    directory.write_record(RECORD)
    with pytest.raises(StateFileError, match="is the record of 'web'"):
        directory.read_record()
    directory.close()


def test_missing_record_is_told_from_a_bad_one(tmp_path: Path) -> None:
    """A run directory without a record says that it is missing."""
    directory = InstanceDirectory.open(tmp_path, "web")
    with pytest.raises(StateFileError) as caught:
        directory.read_record()
    assert caught.value.details["missing"] is True
    directory.close()


def test_remove_leaves_nothing(tmp_path: Path) -> None:
    """Sockets, FIFO and record go with the directory; removing it twice is no error."""
    directory = InstanceDirectory.open(tmp_path, "web")
    os.close(directory.bind_listener("qmp"))
    os.mkfifo(directory.path / "output")
    directory.write_record(RECORD)
    directory.remove()
    directory.remove()
    assert os.listdir(tmp_path) == []
