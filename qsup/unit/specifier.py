"""Specifiers: ``%i`` and its like in the strings of a unit file.

Decides: which specifiers exist and what each stands for.
Must not: ask the host; what is host-dependent comes in a `SpecifierContext`.

The letters are systemd.unit(5)'s.
"""

from __future__ import annotations

import re
from typing import Any

from attrs import frozen

from qsup.unit.quantity import shown

SPECIFIERS = {
    "%i": "the instance: what stands after `@` in the VM's name, empty without one",
    "%n": "the VM's full name",
    "%p": "the name before `@`",
    "%H": "the host's name",
    "%t": "the runtime directory",
    "%S": "the state directory",
    "%%": "a percent sign",
}
_SPECIFIER = re.compile(r"%(.?)", re.DOTALL)
# far beyond any key's value; what is deeper is refused before it can exhaust the stack
_MAX_NESTING = 8


@frozen(kw_only=True)
class SpecifierContext:
    """What the specifiers of one VM stand for.

    Args:
        name: the VM's name; ``web@`` is the template itself, in which ``%i`` stands for ``%i``.
        hostname: the host's name.
        runtime_dir: where the daemon keeps sockets and run records.
        state_dir: where the daemon keeps what outlives a boot.
    """

    name: str
    hostname: str = "localhost"
    runtime_dir: str = "/run/qsup"
    state_dir: str = "/var/lib/qsup"

    @property
    def is_template(self) -> bool:
        """Whether the instance is not known yet."""
        return self.name.endswith("@")

    def table(self) -> dict[str, str]:
        """What each letter stands for."""
        prefix, at, instance = self.name.partition("@")
        if self.is_template:
            instance = "%i"
        return {
            "i": instance,
            "n": prefix + at + instance,
            "p": prefix,
            "H": self.hostname,
            "t": self.runtime_dir,
            "S": self.state_dir,
            "%": "%",
        }


def expand(value: Any, context: SpecifierContext) -> Any:
    """A TOML value with the specifiers of all its strings expanded.

    Raises:
        ValueError: an unknown specifier, or a value nested beyond any that a key takes.
    """
    return _expand(value, context.table(), 0)


def _expand(value: Any, table: dict[str, str], depth: int) -> Any:
    if depth > _MAX_NESTING:
        raise ValueError("nested too deeply")
    if isinstance(value, str):
        return _SPECIFIER.sub(lambda match: _stands_for(match, table), value) if "%" in value else value
    if isinstance(value, list):
        return [_expand(entry, table, depth + 1) for entry in value]
    if isinstance(value, dict):
        return {name: _expand(entry, table, depth + 1) for name, entry in value.items()}
    return value


def _stands_for(match: re.Match[str], table: dict[str, str]) -> str:
    if match[1] not in table:
        raise ValueError(f"unknown specifier {shown(match[0])}; write %% for a percent sign")
    return table[match[1]]


def escape(text: str) -> str:
    """The text that expands to ``text``."""
    return text.replace("%", "%%")


def awaits_instance(value: Any, context: SpecifierContext) -> bool:
    """Whether an expanded value is not known before the template has an instance."""
    return context.is_template and "%i" in str(value)
