"""The daemon's own configuration: ``qsupd.toml``.

Decides: its keys, their defaults, and that a wrong one stops the daemon before it does anything.
Must not: hold anything that belongs to a single VM.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import evolve, fields, frozen

from qsup.errors import ConfigError
from qsup.log import LEVELS
from qsup.plan.capacity import Bounds
from qsup.unit.quantity import parse_size

_UID_MAX = (1 << 32) - 2
_RATIO_MAX = 1000


@frozen(kw_only=True)
class Config:
    """What ``qsupd.toml`` can say.

    Args:
        pools: directories for images, in place of the layout's own; the first resolves relative paths.
        block_devices: globs of block devices that units may use, such as ``/dev/vg0/*``.
        uid_first, uid_last: the uids for QEMU processes.
        operate_group: members may operate VMs.
        start_concurrency: how many VMs that are started together start at the same time.
        shutdown_timeout: seconds that stopping all VMs may take; what is left then is killed.
        log_level: the least that is logged.
        memory_ceiling: MiB of the daemon's own memory beyond which API clients are turned out; 0 for none.
        capacity: how much of the host may be promised to VMs.
    """

    pools: tuple[Path, ...] = ()
    block_devices: tuple[str, ...] = ()
    uid_first: int = 720_000
    uid_last: int = 729_999
    operate_group: str = "qsup"
    start_concurrency: int = 4
    shutdown_timeout: int = 300
    log_level: str = "info"
    memory_ceiling: int = 1024
    capacity: Bounds = Bounds()


def _paths(value: Any) -> tuple[Path, ...]:
    paths = tuple(Path(text) for text in _texts(value))
    for path in paths:
        if not path.is_absolute():
            raise ValueError(f"{path} is not absolute")
    return paths


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("must be an array of strings")
    return tuple(value)


def _devices(value: Any) -> tuple[str, ...]:
    globs = _texts(value)
    for glob in globs:
        if not glob.startswith("/dev/"):
            raise ValueError(f"{glob!r} does not begin with /dev/, where block devices are")
    return globs


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a string that is not empty")
    return value


def _level(value: Any) -> str:
    if value not in LEVELS:
        raise ValueError(f"must be one of {', '.join(LEVELS)}")
    return str(value)


def _number(low: int, high: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"must be an integer from {low} to {high}")
        return value

    return parse


def _size(value: Any) -> int:
    return parse_size(_text(value))


def _ratio(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= _RATIO_MAX:
        raise ValueError(f"must be a number from 0 to {_RATIO_MAX}")
    return float(value)


_Parsers = Mapping[str, Callable[[Any], Any]]
_CAPACITY: _Parsers = {
    "memory": _size,
    "memory_reserve": _size,
    "memory_overcommit": _ratio,
    "cpu_overcommit": _ratio,
}
assert set(_CAPACITY) == {attribute.name for attribute in fields(Bounds)}, "every key of the table has a parser"


def _capacity(value: Any) -> Bounds:
    if not isinstance(value, dict):
        raise ValueError("must be a table")
    found, wrong = _parse(value, _CAPACITY)
    if wrong:
        raise ValueError("; ".join(wrong))
    return Bounds(**found)


_PARSERS: _Parsers = {
    "pools": _paths,
    "block_devices": _devices,
    "uid_first": _number(1000, _UID_MAX),
    "uid_last": _number(1000, _UID_MAX),
    "operate_group": _text,
    "start_concurrency": _number(1, 1000),
    "shutdown_timeout": _number(1, 3600),
    "log_level": _level,
    "memory_ceiling": _number(0, 1 << 20),
    "capacity": _capacity,
}
assert set(_PARSERS) == {attribute.name for attribute in fields(Config)}, "every key has a parser"


def load_config(path: Path) -> Config:
    """Read a configuration file.

    Raises:
        ConfigError: it cannot be read, or says something wrong; every wrong key is named.
    """
    if path.exists() and not path.is_file():
        raise ConfigError(f"could not read {path}: it is not a regular file")  # a FIFO would hold the start up for ever
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"could not read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    found, wrong = _parse(values, _PARSERS)
    config = evolve(Config(), **found)
    if config.uid_first > config.uid_last:
        wrong.append("uid-first is above uid-last")
    if wrong:
        raise ConfigError(f"{path}: {'; '.join(wrong)}")
    return config


def _parse(values: Mapping[str, Any], parsers: _Parsers) -> tuple[dict[str, Any], list[str]]:
    """What a table says, and what is wrong with it."""
    found: dict[str, Any] = {}
    wrong: list[str] = []
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in parsers or "_" in key:
            wrong.append(f"unknown key {key!r}{_suggestion(key, parsers)}")
            continue
        try:
            found[name] = parsers[name](value)
        except ValueError as error:
            wrong.append(f"{key}: {error}")
    return found, wrong


def _suggestion(key: str, parsers: _Parsers) -> str:
    known = [name.replace("_", "-") for name in parsers]
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
