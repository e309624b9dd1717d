"""The daemon's configuration file: every key, and every mistake named at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qsup.config import Config, load_config
from qsup.errors import ConfigError
from qsup.plan.capacity import Bounds


def written(tmp_path: Path, text: str) -> Path:
    """A configuration file."""
    path = tmp_path / "qsupd.toml"
    path.write_text(text)
    return path


def test_every_key_is_read(tmp_path: Path) -> None:
    """What a file says stands in place of the default, and what it does not say stays."""
    text = """
pools = ["/srv/vm", "/var/lib/qsup/images"]
block-devices = ["/dev/vg0/*"]
uid-first = 500000
uid-last = 500999
operate-group = "wheel"
start-concurrency = 2
shutdown-timeout = 90
log-level = "debug"
memory-ceiling = 64

[capacity]
memory = "64G"
memory-reserve = "2G"
memory-overcommit = 1.5
cpu-overcommit = 4
"""
    assert load_config(written(tmp_path, text)) == Config(
        pools=(Path("/srv/vm"), Path("/var/lib/qsup/images")),
        block_devices=("/dev/vg0/*",),
        uid_first=500_000,
        uid_last=500_999,
        operate_group="wheel",
        start_concurrency=2,
        shutdown_timeout=90,
        log_level="debug",
        memory_ceiling=64,
        capacity=Bounds(memory=64 << 30, memory_reserve=2 << 30, memory_overcommit=1.5, cpu_overcommit=4.0),
    )
    assert load_config(written(tmp_path, "")) == Config()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('pool = ["/srv"]', "unknown key 'pool'; did you mean 'pools'?"),
        ("log_level = 'info'", "unknown key 'log_level'; did you mean 'log-level'?"),
        ('pools = ["srv"]', "pools: srv is not absolute"),
        ("pools = '/srv'", "pools: must be an array of strings"),
        ('block-devices = ["/srv/disk"]', "block-devices: '/srv/disk' does not begin with /dev/"),
        ("uid-first = 0", "uid-first: must be an integer from 1000 to"),
        ("uid-first = 2000\nuid-last = 1999", "uid-first is above uid-last"),
        ("operate-group = ''", "operate-group: must be a string that is not empty"),
        ("start-concurrency = true", "start-concurrency: must be an integer from 1 to 1000"),
        ("memory-ceiling = '64M'", "memory-ceiling: must be an integer from 0 to"),
        ("log-level = 'loud'", "log-level: must be one of"),
        ("capacity = 4", "capacity: must be a table"),
        (
            "[capacity]\nmemory = 4\nmemory-reserve = '4'\nmemory-overcomit = 1\ncpu-overcommit = -1",
            "capacity: memory: must be a string that is not empty; memory-reserve: '4' is not a size: write \"4M\", or "
            "\"4B\" for bytes; unknown key 'memory-overcomit'; did you mean 'memory-overcommit'?; cpu-overcommit: must "
            "be a number from 0 to 1000",
        ),
        ("pools = [", "qsupd.toml: "),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, words: str) -> None:
    """The file, the key, and what it must be."""
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert caught.value.message.startswith(f"{path}: ")
    assert words in caught.value.message


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    """A second one is not found only after the first was mended."""
    with pytest.raises(ConfigError, match=r"pool.*; log-level: must be"):
        load_config(written(tmp_path, "pool = 1\nlog-level = 1"))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Missing, a directory, a FIFO, or no text: one sentence, at once."""
    with pytest.raises(ConfigError, match=r"could not read .*No such file or directory"):
        load_config(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match=r"could not read .*not a regular file"):
        load_config(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match=r"could not read .*not a regular file"):
        load_config(tmp_path / "fifo")
    (tmp_path / "qsupd.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"qsupd\.toml: "):
        load_config(tmp_path / "qsupd.toml")
