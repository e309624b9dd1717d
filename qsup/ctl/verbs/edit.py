"""``edit``: a unit in an editor; what would become of each key is shown before anything is written or applied.

Decides: which file is edited, which editor is used, and what is asked.
Must not: check a unit or write a file of one; the daemon does, so that any of its administrators can edit.
"""

from __future__ import annotations

import os
import sys

from qsup.api.protocol import EXIT_FAILURE, EXIT_OK, PREFIX, instance_path, quote
from qsup.ctl.client import error_from, new_token
from qsup.ctl.connection import Deadline
from qsup.ctl.failures import complain, report
from qsup.ctl.names import add_name
from qsup.ctl.render import clean
from qsup.ctl.verbs.power import wait_operation
from qsup.ctl.verbs.set import describe, keys_of
from qsup.errors import ClientError, QsupError, UnitError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from qsup.api.wire import Operation, Preview, UnitFiles
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser

#: The drop-in of a unit whose own file is not the administrator's; what `qsupctl set` writes comes after it.
DROPIN = "80-local.toml"
_EDITORS = ("editor", "nano", "vi")
#: Seconds to wait for the VM to be as its unit says.
_APPLY_TIMEOUT = 120.0
#: What may be done with what was edited; the letter in brackets is what is typed.
_APPLY, _WRITE, _EDIT, _QUIT = "[a]pply now and write", "[w]rite only", "[e]dit again", "[q]uit"
_WRITING = (_APPLY, _WRITE)
EPILOG = (
    "The editor is $VISUAL, $EDITOR, editor, nano or vi. Edited is the unit's own file where it is in the\n"
    "administrator's directory, else its drop-in 80-local.toml there. What has errors is not written. What differs,\n"
    "and what would become of each key, is shown before anything is; then it asks, unless it is told what to do.\n"
    "Exit code: 0 it was written, or nothing was changed; 1 it was not, 2 nobody could be asked, 4 no such unit."
)


def options(parser: Parser, verb: str) -> None:
    """Declare ``edit NAME``."""
    add_name(parser)
    parser.add_argument("--drop-in", action="store_true", help="edit the drop-in, whatever else there is")
    parser.add_argument(
        "--apply", action="store_true", help="write it, and apply what counts now to a VM that runs, unasked"
    )
    parser.add_argument("--no-apply", action="store_true", help="only write it, unasked")


def run(client: Client, options: Options) -> int:
    """Edit until somebody is content with what becomes of it, or has enough of it."""
    if options.apply and options.no_apply:
        raise UsageError("edit: --apply and --no-apply exclude each other", hint="without either it asks")
    path = f"{PREFIX}/units/{quote(options.name)}"
    unit: UnitFiles = client.get(f"{path}/files")
    own = None if options.drop_in else unit["own"]
    place = own or f"{options.name}.toml.d/{DROPIN}"
    query = "" if own else f"?drop-in={DROPIN}"
    texts = [source["text"] for source in unit["files"] if source["file"].endswith(place)]
    before = texts[0] if texts and texts[0] else _heading(unit)
    text = edited(options.name, before)
    while text != before:
        code = EXIT_FAILURE
        try:
            preview: Preview = client.post_text(f"{path}/preview{query}", text, etag=unit["etag"])
            answer = _decide(options, preview, before, text, place)
            if answer in _WRITING:
                client.put(f"{path}{query}", text, etag=unit["etag"])
        except UnitError as error:
            code, answer = report(error), choose(_EDIT, _QUIT)
        except (QsupError, KeyboardInterrupt):
            complain(f"qsupctl: what you wrote is in {keep(options.name, text)}")
            raise
        else:
            if answer in _WRITING:
                return _written(client, options.name, preview, apply=answer == _APPLY)
        if answer == _QUIT:
            complain(f"qsupctl: nothing was written; what you wrote is in {keep(options.name, text)}")
            return code
        text = edited(options.name, text)
    sys.stdout.write("Nothing was changed.\n")
    return EXIT_OK


def _heading(unit: UnitFiles) -> str:
    """What stands in a new drop-in: what it changes, to look it up."""
    lines = [line for source in unit["files"] for line in (source["file"], *source["text"].splitlines())]
    return f"# {unit['name']}: keys that differ from those below; nothing is written if there are none\n\n" + "".join(
        f"# {clean(line)}\n" for line in lines
    )


# the editor


def edited(name: str, text: str) -> str:
    """A text as somebody leaves it in an editor."""
    path = keep(name, text)
    try:
        _run_editor(path)
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            found = file.read()
    finally:
        os.unlink(path)
        os.rmdir(os.path.dirname(path))
    try:
        found.encode()
    except UnicodeEncodeError:
        raise ClientError("what the editor wrote is not UTF-8", instance=name, hint="nothing was written") from None
    return found


def keep(name: str, text: str) -> str:
    """Write a text to a file that only its author reads, in a folder of its own: the file's path."""
    from tempfile import mkdtemp

    path = os.path.join(mkdtemp(prefix="qsupctl-"), f"{name.replace('/', '_')}.toml")
    with open(path, "w", encoding="utf-8", errors="replace") as file:
        file.write(text)
    return path


def _run_editor(path: str) -> None:
    import shlex
    import subprocess

    chosen = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    for words in [shlex.split(chosen)] if chosen else [[editor] for editor in _EDITORS]:
        try:
            status = subprocess.run([*words, path], check=False).returncode
        except FileNotFoundError:
            continue
        if status:
            raise ClientError(f"the editor {words[0]} ended with {status}", hint="nothing was written")
        return
    tried = chosen or ", ".join(_EDITORS)
    raise ClientError(f"there is no editor: {tried}", hint="set EDITOR to the one you want")


# what becomes of it


def _decide(options: Options, preview: Preview, before: str, text: str, place: str) -> str:
    """Show what differs and what would become of it: what is wanted then."""
    keys = preview["keys"]
    sys.stdout.write(difference(before, text, place))
    sys.stdout.write(describe(keys) if keys else "No key has another value by that.\n")
    if options.apply or options.no_apply:
        return _APPLY if options.apply else _WRITE
    if not sys.stdin.isatty():
        hint = "--apply writes it and has the VM be so as far as it can be now, --no-apply only writes it"
        raise UsageError("edit: nobody can be asked, for standard input is no terminal", hint=hint)
    now = preview["running"] and any(said["applied"] in ("live", "reset") for said in keys.values())
    return choose(*([_APPLY] if now else []), _WRITE, _EDIT, _QUIT)


def difference(before: str, text: str, place: str) -> str:
    """What differs between two texts of a file, as diff -u shows it."""
    from difflib import unified_diff

    lines = unified_diff(before.splitlines(), text.splitlines(), place, f"{place}, edited", lineterm="")
    return "".join(f"{clean(line)}\n" for line in lines)


def choose(*answers: str) -> str:
    """Which of some answers, such as ``[w]rite``, somebody gives by its letter; without a terminal, the last."""
    letters = {answer.partition("[")[2][:1]: answer for answer in answers}
    while sys.stdin.isatty():
        sys.stdout.flush()
        sys.stderr.write(f"{', '.join(answers)}? ")
        sys.stderr.flush()
        typed = sys.stdin.readline()
        if not typed:
            sys.stderr.write("\n")
            break
        if (letter := typed.strip().lower()) in letters:
            return letters[letter]
    return answers[-1]


def _written(client: Client, name: str, preview: Preview, *, apply: bool) -> int:
    """Say that it is, and have the VM that runs be so if that is wanted."""
    if not preview["running"]:
        sys.stdout.write("Written; it counts at the next start.\n")
        return EXIT_OK
    # before the VM is asked, who may be busy: whatever is said of it, the unit has been changed
    sys.stdout.write("Written.\n")
    if not apply:
        return EXIT_OK
    operation: Operation = client.post(instance_path(name, "/apply"), key=new_token())
    try:
        operation = wait_operation(client, operation, Deadline(_APPLY_TIMEOUT))
    except KeyboardInterrupt:
        complain("qsupctl: interrupted; what was begun goes on (qsupctl operations)")
        raise
    keys = keys_of(operation)
    if keys != preview["keys"]:
        sys.stdout.write(describe(keys))  # the VM was changed meanwhile, or something was not possible after all
    if operation["error"] is not None:
        raise error_from(operation["error"], name)
    sys.stdout.write(_applied(keys))
    return EXIT_OK


def _applied(keys: Mapping[str, Mapping[str, Any]]) -> str:
    """That it was applied, and what of it was not."""
    late = [said.get("applied") == "start" for said in keys.values()]
    if not any(late):
        return "Applied.\n"
    return "It counts at the next start.\n" if all(late) else "Applied; the rest counts at the next start.\n"
