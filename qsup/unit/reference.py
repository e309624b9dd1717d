"""The unit reference ``docs/units.md``, made from the model.

Decides: the reference's shape and the words around its tables.
Must not: say of a key what the model does not say.

``python -m qsup.unit.reference`` prints it; ``--check FILE`` compares.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import attrs

from qsup.unit.check import RULES, relations
from qsup.unit.document import MAX_BYTES
from qsup.unit.generated import print_or_check
from qsup.unit.keys import Applies, Key, keys_of, sections_of
from qsup.unit.model import Unit
from qsup.unit.specifier import SPECIFIERS
from qsup.unit.write import toml_value

_HEAD = """\
<!-- Made by `python -m qsup.unit.reference`; edit qsup/unit/sections or qsup/unit/reference.py instead. -->

# Unit files

A unit file says what one VM is. `web.toml` is the VM `web`:

```toml
#:schema ./unit.schema.json

[machine]
firmware = "uefi"

[cpu]
vcpus = 2

[memory]
size = "2G"

[[disk]]
id = "root"
path = "web.qcow2"
format = "qcow2"

[[nic]]
id = "lan"
forward = ["2222:22"]
```

Every key has a default except where the tables below say *required*.
`qsupctl verify FILE...` checks files without a daemon: a unit with the drop-ins beside it, a drop-in with its unit, an
instance by its template, a directory with all of that in it. All errors of all files are reported at once, each as
`FILE:LINE: KEY: MESSAGE`:

```
web.toml:7: cpu.vcpu: unknown key 'vcpu'; did you mean 'vcpus'?
```

## Where they are

Directories are searched in this order; a file in a later one replaces the file of the same name in an earlier one:

| Daemon | Directories |
|---|---|
| system | `/usr/lib/qsup/units`, `/run/qsup/units`, `/etc/qsup/units` |
| `--user` | `$XDG_DATA_HOME/qsup/units`, `$XDG_RUNTIME_DIR/qsup/units`, `$XDG_CONFIG_HOME/qsup/units` |
| `--root DIR` | `DIR/run/units`, `DIR/units` |

* **Names**: letters, digits, `_`, `.` and `-`, at most 48, starting with a letter or digit. Hidden files are passed
  over.
* **Drop-ins**: the files `web.toml.d/*.toml` of all directories are merged into `web.toml`, in the order of their file
  names; of several with one name, the one in the latest directory counts. They merge key by key, the later one wins.
  Arrays of tables (`[[disk]]`) merge by `id`: an entry with a known id changes that one, with a new id it adds one.
  `disk = []` drops what earlier files said of all disks. `[[disk.backing]]` has no ids and is replaced as a whole.
* **What is changed of a VM** (`qsupctl set`, `attach`, `detach`) is written to `web.toml.d/90-changes.toml` in the last
  of these directories, by `qsupd` alone: just what the other files do not say. What another file has, and is detached
  for good, it calls `present = false`.
* **Masking**: an empty file, or a symbolic link to `/dev/null`, makes a unit or a drop-in of that name absent.
* **Templates**: `web@.toml` is a template. `web@blue` comes from `web@blue.toml` where that exists, else from the
  template; the drop-ins of `web@.toml.d` and of `web@blue.toml.d` apply, the latter's winning over the same file name.
* **Files** are UTF-8, TOML 1.0, regular, and at most {kib} KiB.

## Specifiers

In every text, except where the value is one of a few words:

{specifiers}

## Values

| Kind | Written as |
|---|---|
| size | `"512M"`, `"1.5G"`, `"2GiB"`, `"1048576B"`: K, M, G and T are powers of 1024; never without a unit |
| time | `"90s"`, `"1min 30s"`, `"500ms"`, `"2h"` (systemd.time(7)): us, ms, s, min, h, d, w; never without a unit |
| CPU set | `"0-3,8"` |
| CPU quota | `"50%"` of one CPU, `"2"` or `"1.5"` CPUs |
| forward | `"[ADDRESS:]HOST-PORT:GUEST-PORT[/tcp\\|/udp]"`, such as `"2222:22"` or `"0.0.0.0:53:53/udp"` |
| path | relative paths of images and kernels resolve in the daemon's first pool |

## Sections and keys

*Applies* says when a changed key takes effect on a VM that runs: {applies}.
`qsupctl diff VM` compares the files with what the VM was started with, and `qsupctl reload` shows the same of units
that changed; neither restarts anything.
"""

_APPLIES = {
    Applies.SUPERVISOR: "as soon as the unit files are read again",
    Applies.LIVE: "while it runs",
    Applies.RESET: "at its guest's next reset",
    Applies.RESTART: "at its next start",
}


def reference() -> str:
    """The whole document."""
    head = _HEAD.format(
        kib=MAX_BYTES // 1024,
        specifiers="\n".join(f"* `{specifier}`: {meaning}" for specifier, meaning in SPECIFIERS.items()),
        applies="; ".join(f"*{applies.value}*: {words}" for applies, words in _APPLIES.items()),
    )
    return "\n".join([head, *_sections(Unit, ()), *_rules()]) + "\n"


def _sections(cls: type[Any], path: tuple[str, ...]) -> Iterator[str]:
    for name, (_, nested, section) in sections_of(cls).items():
        inner = (*path, name)
        dotted = ".".join(inner)
        yield f"### `[[{dotted}]]`\n" if section.many else f"### `[{dotted}]`\n"
        yield section.doc + (" There may be several.\n" if section.many else "\n")
        yield "| Key | Value | Default | Meaning | QEMU | Applies |\n|---|---|---|---|---|---|"
        for key, (attribute, facts) in keys_of(nested).items():
            yield _row(key, attribute, facts)
        yield ""
        yield from _sections(nested, inner)


def _row(name: str, attribute: attrs.Attribute[Any], facts: Key) -> str:
    if attribute.default is attrs.NOTHING:
        default = "*required*"
    else:
        value = facts.kind.format(attribute.default)
        default = f"`{toml_value(value)}`" if value != "" else ""
    cells = (f"`{name}`", _kind(facts.kind.word), default, facts.doc, facts.qemu and f"`{facts.qemu}`")
    # a bar inside code ends a cell too
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in (*cells, _applies(facts))) + " |"


def _applies(facts: Key) -> str:
    return f"{facts.applies.value} {facts.only}, else {Applies.RESTART.value}" if facts.only else facts.applies.value


def _kind(word: str) -> str:
    """A kind's word; the words of a choice as code."""
    if " | " not in word:
        return word
    array, choices = ("array of ", word.removeprefix("array of ")) if word.startswith("array of ") else ("", word)
    return array + ", ".join(f"`{choice}`" for choice in choices.split(" | "))


def _rules() -> Iterator[str]:
    yield "## Rules between keys\n"
    yield "A unit that breaks one of these is refused. What depends on the host or on QEMU is checked at a start.\n"
    for rule in (*RULES, relations):
        yield f"* {rule.__doc__}"


def main() -> int:
    """Print the reference, or compare it with a file."""
    return print_or_check(reference(), "qsup.unit.reference", sys.argv)


if __name__ == "__main__":
    sys.exit(main())
