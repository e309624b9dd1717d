"""``edit``: a unit in an editor, written when it is valid, and applied to its VM as far as somebody wants that.

Decides: which file is edited, which editor is used, and what is asked.
Must not: check a unit or write a file of one; the daemon does, so that any of its administrators can edit.
"""

from __future__ import annotations

import os
import sys

from qsup.api.protocol import EXIT_OK, PREFIX, instance_path, quote
from qsup.ctl.client import error_from, new_token
from qsup.ctl.connection import Deadline
from qsup.ctl.failures import complain, report
from qsup.ctl.names import add_name
from qsup.ctl.render import clean
from qsup.ctl.verbs.power import wait_operation
from qsup.ctl.verbs.set import describe, keys_of
from qsup.errors import ClientError, NoSuchInstance, PreconditionFailed, QsupError, UnitError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qsup.api.wire import Instance, Operation, UnitFiles
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser

#: The drop-in of a unit whose own file is not the administrator's; what `qsupctl set` writes comes after it.
DROPIN = "80-local.toml"
_EDITORS = ("editor", "nano", "vi")
#: Seconds to wait for the VM to be as its unit says.
_APPLY_TIMEOUT = 120.0
EPILOG = (
    "The editor is $VISUAL, $EDITOR, editor, nano or vi. Edited is the unit's own file where it is in the\n"
    "administrator's directory, else its drop-in 80-local.toml there. What has errors is not written."
)


def options(parser: Parser, verb: str) -> None:
    """Declare ``edit NAME``."""
    add_name(parser)
    parser.add_argument("--drop-in", action="store_true", help="edit the drop-in, whatever else there is")
    parser.add_argument("--apply", action="store_true", help="apply what can be applied to the VM that runs, unasked")
    parser.add_argument("--no-apply", action="store_true", help="leave the VM as it is, unasked")


def run(client: Client, options: Options) -> int:
    """Edit until it is valid, or somebody has enough of it."""
    if options.apply and options.no_apply:
        raise UsageError("edit: --apply and --no-apply exclude each other", hint="without either it asks")
    path = f"{PREFIX}/units/{quote(options.name)}"
    unit: UnitFiles = client.get(f"{path}/files")
    own = None if options.drop_in else unit["own"]
    place = own or f"{options.name}.toml.d/{DROPIN}"
    texts = [source["text"] for source in unit["files"] if source["file"].endswith(place)]
    before = texts[0] if texts else ""
    text = edited(options.name, before or _heading(unit))
    while text != before and (before or text != _heading(unit)):
        try:
            client.put(path + ("" if own else f"?drop-in={DROPIN}"), text, etag=unit["etag"])
            break
        except UnitError as error:
            report(error)
            try:
                again = ask("Edit it again?")
            except KeyboardInterrupt:
                again = False
            if not again:
                complain(f"qsupctl: nothing was written; what you wrote is in {keep(options.name, text)}")
                raise
        except PreconditionFailed as error:
            error.hint = f"what you wrote is in {keep(options.name, text)}"
            raise
        except (QsupError, KeyboardInterrupt):
            complain(f"qsupctl: what you wrote is in {keep(options.name, text)}")
            raise
        text = edited(options.name, text)
    else:
        sys.stdout.write("Nothing was changed.\n")
        return EXIT_OK
    return _apply(client, options)


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


def ask(question: str) -> bool:
    """Whether somebody says yes; no answer is a no."""
    sys.stdout.flush()
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


# the VM


def _apply(client: Client, options: Options) -> int:
    """Show what the VM that runs has to do with it, and have it be so if that is wanted."""
    try:
        instance: Instance = client.get(instance_path(options.name))
    except NoSuchInstance:
        return EXIT_OK  # a template, or an instance that has yet to run
    if instance["pid"] is None:
        sys.stdout.write("Written; it counts at the next start.\n")
        return EXIT_OK
    # before the VM is asked, who may be busy: whatever is said of it, the unit has been changed
    sys.stdout.write("Written.\n")
    keys = keys_of(_ask_daemon(client, options.name, "?dry-run=1"))
    sys.stdout.write(describe(keys))
    possible = any(said["applied"] in ("live", "daemon", "reset") for said in keys.values())
    if not possible or options.no_apply or not (options.apply or ask("Apply now what counts now?")):
        return EXIT_OK
    _ask_daemon(client, options.name, "")
    return EXIT_OK


def _ask_daemon(client: Client, name: str, query: str) -> Operation:
    operation: Operation = client.post(instance_path(name, f"/apply{query}"), key=new_token())
    operation = wait_operation(client, operation, Deadline(_APPLY_TIMEOUT))
    if operation["error"] is not None:
        raise error_from(operation["error"], name)
    return operation
