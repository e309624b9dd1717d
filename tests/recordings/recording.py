"""Recordings: files of JSON lines, the first saying what was recorded, the others who said what.

Decides: the files' shape.
Must not: interpret what was said.

::

    {"recording": "session", "about": "...", "of": "QEMU 7.2.22 (...)", "command": ["qemu-system-x86_64", ...]}
    {"connection": 1, "server": "{\\"QMP\\": ...}"}
    {"connection": 1, "client": "{\\"execute\\": \\"qmp_capabilities\\", ...}"}
    {"connection": 1, "server": ""}                                    the server ended the connection
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import attrs

DIRECTORY = Path(__file__).parent


@attrs.frozen(kw_only=True)
class Entry:
    """One line of a conversation: which connection, which side (``client`` or ``server``), the line without its end."""

    connection: int
    side: str
    text: str

    @property
    def data(self) -> bytes:
        """The line as bytes; one that is not UTF-8 is held as surrogateescape (PEP 383) makes it."""
        return self.text.encode(errors="surrogateescape")


@attrs.frozen(kw_only=True)
class Recording:
    """One recorded conversation.

    Args:
        name: the file's name without its suffix.
        about: one sentence on how it came about.
        of: what was recorded, with its version.
        command: the command line of that.
        entries: everything said, in order.
    """

    name: str
    about: str
    of: str
    command: tuple[str, ...]
    entries: tuple[Entry, ...]

    @property
    def greeting(self) -> bytes:
        """The first line the server said."""
        return next(entry.data for entry in self.entries if entry.side == "server")

    def answers(self, command: str) -> tuple[tuple[bytes, ...], ...]:
        """What the server said after each ``command``, until the client's next line, as lines without their ends."""
        found: list[list[bytes]] = []
        listening = False
        for entry in self.entries:
            if entry.side == "client":
                listening = command_of(entry.data) == command
                found += [[]] if listening else []
            elif listening and entry.text:
                found[-1].append(entry.data)
        assert found, f"{command} is not in the recording {self.name}"
        return tuple(tuple(lines) for lines in found)

    @property
    def commands(self) -> tuple[str, ...]:
        """The commands the client sent, in order."""
        sent = (command_of(entry.data) for entry in self.entries if entry.side == "client")
        return tuple(command for command in sent if command)

    def dump(self) -> None:
        """Write the recording's file."""
        head = {"recording": self.name, "about": self.about, "of": self.of, "command": self.command}
        lines = [head, *({"connection": entry.connection, entry.side: entry.text} for entry in self.entries)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (DIRECTORY / f"{self.name}.jsonl").write_text(text)


def command_of(line: bytes) -> str:
    """The command's name in a client's line, or ``""`` in one that is not JSON."""
    try:
        message = json.loads(line.lstrip(b"\xff"))
    except ValueError:
        return ""
    return str(message.get("execute") or message.get("exec-oob"))


@functools.cache
def load(name: str) -> Recording:
    """Read the recording ``name``."""
    head, *lines = [json.loads(line) for line in (DIRECTORY / f"{name}.jsonl").read_text().splitlines()]
    entries = []
    for line in lines:
        connection = line.pop("connection")
        ((side, text),) = line.items()
        entries.append(Entry(connection=connection, side=side, text=text))
    assert head["recording"] == name
    return Recording(
        name=name, about=head["about"], of=head["of"], command=tuple(head["command"]), entries=tuple(entries)
    )
