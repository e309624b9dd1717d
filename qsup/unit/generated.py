"""Files of the repository that are made from the model: printed, or compared with what is there.

Decides: the command line that the makers share.
Must not: write into the repository itself; ``> FILE`` does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path


def print_or_check(text: str, module: str, argv: Sequence[str]) -> int:
    """Print ``text``, or with ``--check FILE`` compare it with that file.

    Returns:
        The exit code: 0, 1 when the file differs or cannot be read, 2 for a wrong command line.
    """
    match argv[1:]:
        case []:
            sys.stdout.write(text)
            return 0
        case ["--check", file]:
            return _check(text, module, Path(file))
    sys.stderr.write(f"usage: python -m {module} [--check FILE]\n")
    return 2


def _check(text: str, module: str, file: Path) -> int:
    try:
        if file.read_text(encoding="utf-8") == text:
            return 0
        problem = "is out of date"
    except OSError as error:
        problem = str(error.strerror)
    sys.stderr.write(f"{file}: {problem}: python -m {module} > {file}\n")
    return 1
