"""What a key of a unit file is: its kind, default and meaning, QEMU's name for it, and when a change of it counts.

Decides: how sections declare keys and tables, and how whoever reads the model finds them.
Must not: know any key (`qsup.unit.sections`).

A field's TOML name is its Python name with ``-`` for ``_``; plural fields that hold arrays of tables give theirs
explicitly (``disks`` is ``[[disk]]``). Values are in base units: bytes and seconds.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any

import attrs
from attrs import field, frozen

from qsup.unit import kinds
from qsup.unit.kinds import Kind

MIB = 1 << 20


class Applies(enum.Enum):
    """What makes a changed key count for a VM that runs."""

    SUPERVISOR = "at once"  # the daemon alone acts on it, by what the files say; QEMU is not concerned
    LIVE = "live"  # `qsupctl set` or `apply` does it
    RESET = "guest reset"
    RESTART = "restart"


def _always(before: Any, after: Any) -> bool:
    return True


@frozen(kw_only=True)
class Key:
    """What is known of one key besides its value.

    Args:
        kind: which values it takes.
        doc: its meaning, in the words of the unit reference.
        qemu: QEMU's name for it, such as ``-smp maxcpus=``, or ``""``.
        applies: when a change takes effect.
        only: of which entries of its section it does so, in words; of the others a restart is needed.
        holds: whether it does, by the entry before and after the change.
    """

    kind: Kind
    doc: str
    qemu: str = ""
    applies: Applies = Applies.RESTART
    only: str = ""
    holds: Callable[[Any, Any], bool] = _always

    def needs(self, before: Any, after: Any) -> Applies:
        """When a change takes effect that makes an entry of its section ``after``."""
        return self.applies if self.holds(before, after) else Applies.RESTART


@frozen(kw_only=True)
class Section:
    """What is known of one table of a unit file.

    Args:
        name: the TOML table's name.
        many: ``True`` for an array of tables, whose entries merge by ``id``.
        doc: its meaning.
    """

    name: str
    many: bool
    doc: str


_KEY = "qsup.key"
_SECTION = "qsup.section"


def key(
    kind: Kind,
    doc: str,
    *,
    default: Any = attrs.NOTHING,
    qemu: str = "",
    applies: Applies = Applies.RESTART,
    only: str = "",
    holds: Callable[[Any, Any], bool] = _always,
) -> Any:
    """Declare a key of a section, whose default is in base units; for the rest see `Key`."""
    known = Key(kind=kind, doc=doc, qemu=qemu, applies=applies, only=only, holds=holds)
    return field(default=default, metadata={_KEY: known})


def section(cls: type[Any], doc: str, *, name: str = "") -> Any:
    """Declare a table of the class ``cls``; with a ``name`` it is an array of tables, which is called so."""
    many = bool(name)
    default: Any = () if many else attrs.Factory(cls)
    return field(default=default, metadata={_SECTION: (cls, Section(name=name, many=many, doc=doc))})


def key_name(attribute: attrs.Attribute[Any]) -> str:
    """The TOML name of a model field."""
    return attribute.name.strip("_").replace("_", "-")


def keys_of(cls: type[Any]) -> Mapping[str, tuple[attrs.Attribute[Any], Key]]:
    """The keys of one section class, by TOML name, in the order of the model."""
    if (known := _KEYS.get(cls)) is None:
        known = _KEYS[cls] = {key_name(a): (a, a.metadata[_KEY]) for a in attrs.fields(cls) if _KEY in a.metadata}
    return known


def sections_of(cls: type[Any]) -> Mapping[str, tuple[attrs.Attribute[Any], type[Any], Section]]:
    """The tables nested in ``cls`` (`Unit` itself, or a section with sub-tables), by TOML name."""
    if (known := _SECTIONS.get(cls)) is None:
        known = _SECTIONS[cls] = {}
        for a in attrs.fields(cls):
            if _SECTION in a.metadata:
                nested, table = a.metadata[_SECTION]
                name = table.name or key_name(a)
                known[name] = (a, nested, attrs.evolve(table, name=name))
    return known


# looked up once: each unit that is parsed asks for all of them
_KEYS: dict[type[Any], dict[str, tuple[attrs.Attribute[Any], Key]]] = {}
_SECTIONS: dict[type[Any], dict[str, tuple[attrs.Attribute[Any], type[Any], Section]]] = {}


def present(by: str = " (`qsupctl detach --persist`)") -> Any:
    """Declare the key by which an entry says that it is not there; ``by``: how one makes it say so."""
    what = "`false`: the VM does not have it, as if no file named it. A drop-in says so of what another file has"
    return key(kinds.BOOLEAN, f"{what}{by}.", default=True)
