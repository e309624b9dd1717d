"""Completion at the QMP prompt, from the VM's own schema.

Decides: what may stand at a place of the line.
Must not: fail loudly: a completion that cannot be had is none.
"""

from __future__ import annotations

import re

from qsup.errors import QsupError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# QAPI names: a guest-independent, QEMU-supplied string still does not reach the terminal unchecked
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")


class Completer:
    """Knows a VM's commands and their arguments; asks for each once, when it is first needed.

    Args:
        ask: sends one QMP command without arguments and returns its result; may raise `QsupError`.
    """

    def __init__(self, ask: Callable[[str], Any]) -> None:
        self._ask = ask
        self._commands: list[str] | None = None
        self._schema: dict[tuple[bool, str], Any] | None = None

    def candidates(self, before: str, word: str) -> list[str]:
        """What the word may become.

        Args:
            before: the line up to the word.
            word: what is typed of it so far.
        """
        try:
            words = before.split()
            if not words:
                return [f"{name} " for name in self.commands() if name.startswith(word)]
            return [f"{key}=" for key in self.argument_names(words[0]) if key.startswith(word)]
        except (QsupError, LookupError, TypeError, AttributeError):
            return []

    def commands(self) -> list[str]:
        """All commands that this VM's QEMU knows (``query-commands``), sorted."""
        if self._commands is None:
            self._commands = sorted(_names(self._ask("query-commands")))
        return self._commands

    def argument_names(self, command: str) -> list[str]:
        """The names of a command's arguments (``query-qmp-schema``: its ``arg-type``'s members), in QEMU's order."""
        if self._schema is None:
            entries = self._ask("query-qmp-schema")
            # a command and a type may share a name
            self._schema = {(entry["meta-type"] == "command", entry["name"]): entry for entry in entries}
        argument_type = self._schema[True, command]["arg-type"]
        return _names(self._schema[False, argument_type].get("members", []))


def _names(entries: list[dict[str, Any]]) -> list[str]:
    return [entry["name"] for entry in entries if _NAME.fullmatch(entry["name"])]
