"""Tests of `qsup.host.image`: which paths are images, and which images are good."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from qsup.errors import HostError, ImageError, ImageInUse
from qsup.host.image import OpenImage, create_qcow2_copy, open_image


def qemu_img(*arguments: str | Path) -> str:
    """Run qemu-img."""
    done = subprocess.run(["qemu-img", *arguments], check=True, capture_output=True, text=True, timeout=30)
    return done.stdout


@pytest.fixture
def raw(pool: Path) -> Path:
    """A raw image of 1 MiB in the pool."""
    path = pool / "disk.raw"
    with open(path, "wb") as file:
        file.truncate(1 << 20)
    return path


@pytest.fixture
def base(pool: Path) -> Path:
    """A qcow2 image of 1 MiB in the pool."""
    qemu_img("create", "-q", "-f", "qcow2", pool / "base.qcow2", "1M")
    return pool / "base.qcow2"


def attempt(
    path: str,
    pool: Path,
    *,
    format: str = "raw",
    read_only: bool = False,
    backing: tuple[str, str] | None = None,
    devices: tuple[str, ...] = (),
) -> OpenImage:
    """Open an image in one pool and close it again."""
    image = open_image(
        path, pools=[pool], format=format, read_only=read_only, backing=backing, allow_block_devices=devices
    )
    image.close()
    return image


def rule_of(path: str, pool: Path, **options: object) -> str:
    """The rule for which an image is refused."""
    with pytest.raises(ImageError) as caught:
        attempt(path, pool, **options)  # type: ignore[arg-type] # options are passed on as they came
    assert caught.value.details["path"] == path
    return str(caught.value.details["rule"])


def test_opens_for_reading_and_writing(raw: Path, pool: Path) -> None:
    """A writable image comes with a descriptor for each way, both of the same file, close-on-exec."""
    image = open_image("disk.raw", pools=[pool], format="raw", read_only=False)
    assert image.fd_rw is not None
    assert os.get_inheritable(image.fd_ro) is os.get_inheritable(image.fd_rw) is False
    assert os.fstat(image.fd_ro).st_ino == os.fstat(image.fd_rw).st_ino == raw.stat().st_ino == image.st_ino
    os.pwrite(image.fd_rw, b"x", 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(image.fd_ro, b"x", 0)
    assert (image.size, image.virtual_size, image.location) == (1 << 20, 1 << 20, raw)
    image.close()


def test_opens_past_the_cache(base: Path, pool: Path) -> None:
    """Every descriptor of an image opened past the host's cache says so, as QEMU wants it."""
    image = open_image("base.qcow2", pools=[pool], format="qcow2", read_only=False, direct=True)
    assert all(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT for fd in image.fds)
    assert len(image.fds) == 2
    image.close()


def test_read_only_image_has_no_writable_descriptor(raw: Path, pool: Path) -> None:
    """What is opened read-only cannot be written, and need not be writable."""
    image = attempt("disk.raw", pool, read_only=True)
    assert image.fd_rw is None
    assert image.fds == (image.fd_ro,)


def test_absolute_path_inside_a_pool(raw: Path, pool: Path, tmp_path: Path) -> None:
    """An absolute path may lie in any pool, also through a pool that is a symbolic link."""
    (tmp_path / "link").symlink_to(pool)
    for pools in ([pool], [tmp_path / "elsewhere", pool], [tmp_path / "link"]):
        open_image(str(raw), pools=pools, format="raw", read_only=True).close()
    open_image(str(tmp_path / "link" / "disk.raw"), pools=[tmp_path / "link"], format="raw", read_only=True).close()


def test_relative_path_is_in_the_first_pool(raw: Path, pool: Path, tmp_path: Path) -> None:
    """A relative path is looked for in the first pool only."""
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ImageError, match=r"could not open disk image disk\.raw: No such file or directory"):
        open_image("disk.raw", pools=[other, pool], format="raw", read_only=True)


def test_links_within_the_pool_are_followed(raw: Path, pool: Path) -> None:
    """A relative link that stays in the pool is as good as the file."""
    (pool / "sub").mkdir()
    (pool / "sub" / "alias").symlink_to("../disk.raw")
    assert attempt("sub/alias", pool).st_ino == raw.stat().st_ino
    assert attempt("sub/../disk.raw", pool).st_ino == raw.stat().st_ino


def test_paths_out_of_the_pool_are_refused(raw: Path, pool: Path, tmp_path: Path) -> None:
    """`..`, absolute paths elsewhere, links that lead out and magic links are refused, and the rule is named."""
    (tmp_path / "secret").write_bytes(bytes(512))
    (pool / "out").symlink_to("../secret")
    (pool / "absolute").symlink_to(tmp_path / "secret")
    (pool / "directory").symlink_to(tmp_path)
    (pool / "magic").symlink_to("/proc/self/fd/0")
    outside = ["../secret", f"{pool}/../secret", str(tmp_path / "secret"), "out", "absolute", "directory/secret"]
    for path in [*outside, "magic", "/dev/fdset/1", "/proc/version", f"{pool}-not/x"]:
        assert rule_of(path, pool) == "outside-pools"


def test_names_that_qemu_would_read_otherwise_are_refused(pool: Path) -> None:
    """Protocols, options and control characters are no part of an image's path, even if such a file exists."""
    for path in ("json:{}", "nbd:localhost:10809", "nbd+unix://x", "file:disk.raw", "rbd:pool/image"):
        assert rule_of(path, pool) == "protocol"
    (pool / "a,readonly=off").write_bytes(bytes(512))
    for path in ("a,readonly=off", "a\nb", "a\0b", "a\x7f"):
        assert rule_of(path, pool) == "characters"
    assert rule_of("", pool) == "empty"


def test_only_regular_files_are_images(pool: Path) -> None:
    """A directory, a FIFO and a socket are refused without being opened."""
    (pool / "directory").mkdir()
    os.mkfifo(pool / "fifo")
    for path in ("directory", "fifo", "."):
        assert rule_of(path, pool) == "file-type"


@pytest.mark.root
def test_device_nodes_in_a_pool_are_refused(pool: Path) -> None:
    """A device node is no image because somebody put it into a pool."""
    os.mknod(pool / "node", 0o60600, os.makedev(7, 0))
    assert rule_of("node", pool) == "file-type"


def test_qcow2_by_its_header(base: Path, pool: Path) -> None:
    """A qcow2 image gives its virtual size from the header of the descriptor handed over."""
    image = attempt("base.qcow2", pool, format="qcow2")
    assert image.virtual_size == 1 << 20
    assert image.size == base.stat().st_size


def test_declared_format_is_never_questioned(base: Path, raw: Path, pool: Path) -> None:
    """Raw stays raw, whatever the guest wrote on it; declared qcow2 must be one."""
    assert attempt("base.qcow2", pool).virtual_size == base.stat().st_size
    assert rule_of("disk.raw", pool, format="qcow2") == "qcow2-magic"
    assert rule_of("disk.raw", pool, format="vmdk") == "format"


@pytest.mark.parametrize("target", ["/etc/passwd", "json:{}", "nbd://127.0.0.1:9/x", "../secret", "base.qcow2"])
def test_undeclared_backing_file_is_refused(base: Path, pool: Path, target: str) -> None:
    """A backing file that the unit does not declare is refused, whatever it is, and its name is told."""
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", target, "-F", "raw", pool / "top.qcow2", "1M")
    assert rule_of("top.qcow2", pool, format="qcow2") == "undeclared-backing"


def test_declared_backing_file(base: Path, pool: Path) -> None:
    """A declared backing file is accepted by any spelling of the same place."""
    (pool / "sub").mkdir()
    for directory, name in (("", "base.qcow2"), ("sub", "../base.qcow2"), ("sub", str(base))):
        top = pool / directory / "top.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", "qcow2", top, "1M")
        for declared in ("base.qcow2", str(base), "sub/../base.qcow2"):
            attempt(str(top.relative_to(pool)), pool, format="qcow2", backing=(declared, "qcow2"))


def test_other_backing_file_than_declared_is_refused(base: Path, pool: Path) -> None:
    """Another file, another format, a protocol or none at all is not what was declared."""
    assert rule_of("base.qcow2", pool, format="qcow2", backing=("other.raw", "raw")) == "backing-mismatch"
    for name, declared in (
        ("base.qcow2", ("other.qcow2", "qcow2")),
        ("base.qcow2", ("base.qcow2", "raw")),
        ("json:{}", ("base.qcow2", "qcow2")),
    ):
        qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", "qcow2", pool / "top.qcow2", "1M")
        assert rule_of("top.qcow2", pool, format="qcow2", backing=declared) == "backing-mismatch"


def test_external_data_file_is_refused(pool: Path) -> None:
    """An image that keeps its data elsewhere is refused."""
    options = f"data_file={pool}/data,data_file_raw=on"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, pool / "top.qcow2", "1M")
    assert rule_of("top.qcow2", pool, format="qcow2") == "external-data-file"


def test_backing_target_is_never_opened(pool: Path, tmp_path: Path) -> None:
    """Refusing an image opens nothing that its header names."""
    os.mkfifo(tmp_path / "trap")
    reader = os.open(tmp_path / "trap", os.O_RDONLY | os.O_NONBLOCK)
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", tmp_path / "trap", "-F", "raw", pool / "top.qcow2", "1M")
    before = (tmp_path / "trap").stat().st_atime_ns
    assert rule_of("top.qcow2", pool, format="qcow2") == "undeclared-backing"
    assert (tmp_path / "trap").stat().st_atime_ns == before
    os.close(reader)


@pytest.mark.root
def test_unreadable_image_is_named(pool: Path) -> None:
    """An image that cannot be opened for writing says so in the kernel's words."""
    path = pool / "immutable"
    path.write_bytes(bytes(512))
    subprocess.run(["mount", "--bind", "-o", "ro", path, path], check=True, timeout=10)
    try:
        with pytest.raises(ImageError, match="could not open disk image immutable: Read-only file system"):
            attempt("immutable", pool)
        attempt("immutable", pool, read_only=True)
    finally:
        subprocess.run(["umount", path], check=True, timeout=10)


def test_own_files_are_outside_the_pools_rules(pool: Path, tmp_path: Path) -> None:
    """The daemon's own images, such as UEFI variables, need no pool, and are checked like any other."""
    variables = tmp_path / "variables.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", variables, "64K")
    open_image(str(variables), pools=[pool], format="qcow2", read_only=False, own=True).close()


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[str]:
    """A block device with a file system on it."""
    with open(tmp_path / "loop.img", "wb") as file:
        file.truncate(1 << 20)
    subprocess.run(["mkfs.ext2", "-q", tmp_path / "loop.img"], check=True, timeout=10)
    done = subprocess.run(
        ["losetup", "--find", "--show", tmp_path / "loop.img"], check=True, capture_output=True, text=True, timeout=10
    )
    device = done.stdout.strip()
    yield device
    subprocess.run(["losetup", "--detach", device], check=True, timeout=10)


@pytest.mark.root
def test_allowed_block_device(loop: str, pool: Path, tmp_path: Path) -> None:
    """A block device is an image where the configuration allows it, by whatever node it is reached."""
    assert rule_of(loop, pool) == "outside-pools"
    image = attempt(loop, pool, devices=("/dev/loop*",))
    assert image.size == image.virtual_size == 1 << 20
    os.mknod(tmp_path / "other", 0o60600, os.stat(loop).st_rdev)
    other = attempt(str(tmp_path / "other"), pool, devices=(f"{tmp_path}/*",))
    assert (image.st_dev, image.st_ino) == (other.st_dev, other.st_ino)


@pytest.mark.root
def test_mounted_block_device_is_refused(loop: str, pool: Path, tmp_path: Path) -> None:
    """A block device that the host has mounted is refused, also for reading, until it is unmounted."""
    mountpoint = tmp_path / "mounted"
    mountpoint.mkdir()
    subprocess.run(["mount", loop, mountpoint], check=True, timeout=10)
    try:
        with pytest.raises(ImageInUse, match="is mounted or otherwise used by the host"):
            attempt(loop, pool, devices=("/dev/loop*",), read_only=True)
    finally:
        subprocess.run(["umount", mountpoint], check=True, timeout=10)
    attempt(loop, pool, devices=("/dev/loop*",))


@pytest.mark.root
def test_allowed_devices_are_block_devices(pool: Path) -> None:
    """A glob that is too wide still lets no character device or file through."""
    assert rule_of("/dev/null", pool, devices=("/dev/*",)) == "file-type"
    assert rule_of("/dev/../etc/passwd", pool, devices=("/dev/*",)) == "outside-pools"


async def test_copy_of_a_template(pool: Path, tmp_path: Path) -> None:
    """UEFI variables become a private qcow2 image with the template's content, and nothing is left beside it."""
    source, target = tmp_path / "VARS.fd", pool / "web.qcow2"
    write(source, b"variables" * 1000)
    with trio.fail_after(20):
        await create_qcow2_copy(source, target)
        assert mode(target) == 0o600
        attempt("web.qcow2", pool, format="qcow2")
        qemu_img("convert", "-f", "qcow2", "-O", "raw", target, tmp_path / "back")
        assert read(tmp_path / "back")[:9000] == b"variables" * 1000
        assert os.listdir(pool) == ["web.qcow2"]
        await create_qcow2_copy(target, pool / "mail.qcow2", source_format="qcow2")


async def test_failed_copy_leaves_nothing(pool: Path, tmp_path: Path) -> None:
    """A missing template or a copy that takes too long leaves no half image, and qemu-img's words are told."""
    with pytest.raises(HostError, match=r"qemu-img failed \(exit code 1\): .*No such file or directory"):
        await create_qcow2_copy(tmp_path / "absent", pool / "web.qcow2")
    write(tmp_path / "VARS.fd", bytes(1 << 20))
    with pytest.raises(HostError, match="took longer than 0 s"):
        await create_qcow2_copy(tmp_path / "VARS.fd", pool / "web.qcow2", seconds=0)
    assert os.listdir(pool) == []


def write(path: Path, data: bytes) -> None:
    """Make a file."""
    path.write_bytes(data)


def read(path: Path) -> bytes:
    """A file's content."""
    return path.read_bytes()


def mode(path: Path) -> int:
    """A file's permissions."""
    return path.stat().st_mode & 0o777
