"""The power verbs: ``start stop restart kill pause resume reset powerdown nmi reset-failed``.

Decides: that VMs whose order counts are named in one request, that operations of several run side by side, and that a
command waits for them unless told otherwise.
Must not: judge whether a VM may be started or stopped.
"""

from __future__ import annotations

import sys

from qsup.api.protocol import EXIT_FAILURE, EXIT_OK, NAMES_MAX, ORDERED_VERBS, PREFIX, instance_path
from qsup.ctl.client import ANSWER_TIMEOUT, error_from, new_token
from qsup.ctl.connection import Deadline
from qsup.ctl.failures import complain, for_each
from qsup.ctl.names import add_names, instances, targets
from qsup.ctl.parser import seconds
from qsup.ctl.render import clean, documents
from qsup.errors import ClientError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from qsup.api.wire import BegunOperations, Operation, Problem, StartNamesRequest, StartRequest, StopAllRequest
    from qsup.ctl.client import Client
    from qsup.ctl.parser import Options, Parser

#: Verbs whose ``--timeout`` is the guest's time to shut down rather than ours to wait.
_STOPPING = ("stop", "restart")
#: Seconds that one request waits; the next one goes on.
_WAIT_STEP = 60.0
#: Seconds between two looks at how far an operation is that somebody at a terminal waits for.
_TELL_STEP = 2.0


def options(parser: Parser, verb: str) -> None:
    """Declare ``VERB NAME...|--all [--no-block] [--timeout TIME]``; of ``start`` ``--force``, too."""
    add_names(parser)
    if verb == "start":
        parser.add_argument("--force", action="store_true", help="even if more of the host is promised than may be")
    parser.add_argument("--no-block", action="store_true", help="do not wait for the end of the operation")
    parser.add_argument("--wait", action="store_true", help="wait for it; this is the default")
    meaning = "how long the guest has to shut down" if verb in _STOPPING else "how long to wait for the end"
    meaning += "; --all: all guests together" if verb == "stop" else ""
    parser.add_argument("--timeout", type=seconds, metavar="TIME", help=f"{meaning}, such as 90s")


def run(client: Client, options: Options) -> int:
    """Begin all operations, then wait for each."""
    if options.wait and options.no_block:
        raise UsageError(f"{options.verb}: --wait and --no-block exclude each other", hint="without either it waits")
    if options.verb == "stop" and options.all and not options.names:
        return _stop_all(client, options)
    operations: dict[str, Operation] = {}
    stopping = options.verb in _STOPPING
    body: StartRequest = {}
    if stopping and options.timeout is not None:
        body["timeout"] = options.timeout
    if options.verb == "start" and options.force:
        body["force"] = True

    def begin(name: str) -> None:
        path = instance_path(name, f"/{options.verb}")
        operations[name] = client.post(path, body or None, key=new_token())

    names = _names(client, options)
    if options.verb in ORDERED_VERBS and len(names) > 1:
        code = _begin_together(client, options.verb, names, body, operations)
    else:
        code = for_each(names, begin)
    return max(code, see_through(client, operations, options, Deadline(None if stopping else options.timeout)))


def _names(client: Client, options: Options) -> list[str]:
    """Those the command is about; ``reset-failed`` is about those that have failed, where it names none."""
    if options.verb == "reset-failed" and not options.names:
        return [instance["name"] for instance in instances(client) if instance["state"] == "failed"]
    return targets(client, options)


def _begin_together(
    client: Client, verb: str, names: list[str], body: StartRequest, operations: dict[str, Operation]
) -> int:
    """Have the daemon begin all of them in their order; what it refuses is reported. Returns the exit code."""
    refused: dict[str, Problem] = {}
    for first in range(0, len(names), NAMES_MAX):
        request: StartNamesRequest = {"names": names[first : first + NAMES_MAX], **body}
        begun: BegunOperations = client.post(f"{PREFIX}/{verb}", request, key=new_token())
        operations.update((operation["target"], operation) for operation in begun["operations"])
        refused |= begun["refused"]

    def tell(name: str) -> None:
        raise error_from(refused[name], name)

    return for_each((name for name in names if name in refused), tell)


def _stop_all(client: Client, options: Options) -> int:
    """Have the daemon stop all of them: it knows the order, and goes on when we are gone."""
    body: StopAllRequest | None = {"timeout": options.timeout} if options.timeout is not None else None
    operation: Operation = client.post(f"{PREFIX}/stop-all", body, key=new_token())
    if not options.no_block:
        try:
            operation = wait_operation(client, operation, Deadline(None))
        except KeyboardInterrupt:
            complain("qsupctl: interrupted; the VMs are stopped all the same (qsupctl operations)")
            raise
    if options.output != "table":
        sys.stdout.write(documents([operation], options.output, "operations"))
    killed = told(operation, "killed")
    complain(*(f"qsupctl: {clean(name)}: killed: it was not down in time" for name in killed))
    left = told(operation, "quarantined")
    complain(*(f"qsupctl: {clean(name)}: left as it is: a record of it cannot be read" for name in left))
    if operation["error"] is not None:
        raise error_from(operation["error"])
    return EXIT_FAILURE if left or killed else EXIT_OK


def told(operation: Operation, what: str) -> list[str]:
    """The VMs that its end names as ``killed``, or as ``quarantined``."""
    result: Mapping[str, object] = operation["result"] or operation["error"] or {}
    found = result.get(what)
    return [str(name) for name in found] if isinstance(found, list) else []


def see_through(client: Client, operations: dict[str, Operation], options: Options, deadline: Deadline) -> int:
    """Wait for operations, by VM, where that is wanted, and print them where documents are; the exit code."""
    code = EXIT_OK
    if not options.no_block:
        try:
            code = finish(client, operations, deadline)
        except KeyboardInterrupt:
            complain("qsupctl: interrupted; what was begun goes on (qsupctl operations)")
            raise
    if options.output != "table":
        sys.stdout.write(documents(operations.values(), options.output, "operations"))
    return code


def finish(client: Client, operations: dict[str, Operation], deadline: Deadline) -> int:
    """Wait for operations, by VM, and put their last state in their place; failures are reported."""

    def end(name: str) -> None:
        operations[name] = operation = wait_operation(client, operations[name], deadline)
        if operation["state"] != "succeeded":
            error = operation["error"]
            if error is not None:
                raise error_from(error, name)
            raise ClientError(f"the {operation['kind']} was {operation['state']}", instance=name)

    return for_each(list(operations), end)


def wait_operation(client: Client, operation: Operation, deadline: Deadline) -> Operation:
    """The operation once it is final; `ClientError` when the deadline comes first.

    At a terminal, what takes seconds says how far it is.
    """
    words, is_watched = "", sys.stderr.isatty()
    while operation["state"] == "running":
        left = deadline.left()
        if left == 0.0:
            ends = ", and with --cancel ends it" if operation["cancellable"] else ""
            raise ClientError(
                f"the {operation['kind']} is still under way: {operation['progress'] or 'no progress told'}",
                instance=operation["target"],
                hint=f"it goes on; qsupctl operations {operation['id']} shows how far it is{ends}",
            )
        longest = _TELL_STEP if is_watched else _WAIT_STEP
        step = longest if left is None else min(left, longest)
        path = f"{PREFIX}/operations/{operation['id']}/wait?timeout={step:g}"
        operation = client.get(path, timeout=step + ANSWER_TIMEOUT, outlast=True)
        if is_watched and operation["state"] == "running" and operation["progress"] not in ("", words):
            words = operation["progress"]
            complain(f"{clean(operation['target'] or operation['kind'])}: {clean(words)}")
    return operation
