"""Requests of one VM or several: what somebody asked for, judged and begun.

Decides: whether a request may begin, for which of the VMs that were named, and which operation answers it.
Must not: carry anything out, or wait for a VM.

All VMs of one request are one transaction: their operations hold the VMs before any of them is begun, so that their
order counts among them. A VM for which the request cannot be begun is refused, and the others are not kept by it, as
with systemctl. What excludes each other among those that are named refuses all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from attrs import evolve, field, frozen

from qsup.errors import DeniedError, DependencyError, QsupError
from qsup.instance.driver import Driver
from qsup.instance.operation import Batch, Begun, KeyUse
from qsup.instance.services import Services
from qsup.instance.state import Request, Verdict, judge
from qsup.order.shutdown import Shutdown
from qsup.order.transaction import STARTING, Read, Step, Transactions, check_free

#: Requests that may overtake the operation that holds a VM.
PREEMPTING = frozenset({Request.STOP, Request.KILL})


@frozen(kw_only=True)
class _Lot:
    """What is to become of the VMs of one request.

    Args:
        names: all of them, in their order.
        roots: those on which something is to be done.
        joined: the operations of those on which it is being done already.
        refused: why it cannot be done on others. What is in none of these is as wanted.
    """

    names: Mapping[str, None]
    roots: dict[str, None] = field(factory=dict)
    joined: dict[str, str] = field(factory=dict)
    refused: dict[str, QsupError] = field(factory=dict)

    def refuse(self, errors: Mapping[str, QsupError]) -> None:
        """Do nothing on these after all."""
        self.refused.update(errors)
        for name in errors:
            del self.roots[name]


class Requests:
    """Judges and begins requests.

    Args:
        find: the driver of a VM that is named in a request; `NoSuchInstance`, `UnitError`.
    """

    def __init__(
        self,
        services: Services,
        transactions: Transactions,
        shutdown: Shutdown,
        find: Callable[[str, Request], Driver],
    ) -> None:
        self._operations = services.operations
        self._transactions = transactions
        self._shutdown = shutdown
        self._find = find

    async def begin(self, names: Sequence[str], use: KeyUse) -> Begun:
        """Begin a request of these VMs, each named once.

        Args:
            use: who asks for what, and the key that may be known already.

        Raises:
            KeyReusedError: the key came with another request before.
            DependencyError: VMs that are named exclude each other, or wait for each other.
            NoSpaceError: the operations could not be written ahead.
        """
        request = Request(use.kind)
        read = await self._transactions.read(names) if request in STARTING else {}
        # from here on nothing else comes in between, until the operations hold their VMs
        if (known := self._operations.repeated_all(names, use)) is not None:
            return known
        lot = self._judge_all(names, request)
        along = self._along(lot, request, read)
        if len(names) == 1 and lot.joined:
            return Begun(operations=(await self._operations.join(lot.joined[names[0]], use),))
        found = {name: self._operations.get(operation) for name, operation in lot.joined.items()}
        steps = [*along, *_named(lot, use)]
        # of a VM that is to stay as it is the unit does, too
        fresh = {name: loaded for name, loaded in read.items() if name in lot.roots or name not in lot.names}
        found |= {each.target: each for each in await self._transactions.begin(steps, fresh, uid=use.uid)}
        return Begun(operations=tuple(found[name] for name in names if name in found), refused=lot.refused)

    def _judge_all(self, names: Sequence[str], request: Request) -> _Lot:
        lot = _Lot(names=dict.fromkeys(names))
        for name in names:
            try:
                driver, verdict = self._judge(name, request)
            except QsupError as error:
                lot.refused[name] = error
                continue
            if verdict is None and driver.holder is not None:
                lot.joined[name] = driver.holder.operation
            elif verdict is Verdict.ALLOWED:
                lot.roots[name] = None
        return lot

    def _judge(self, name: str, request: Request) -> tuple[Driver, Verdict | None]:
        """Whether a request of one VM may begin; ``None``: the operation that holds it is what was asked for.

        Raises:
            NoSuchInstance, UnitError: there is no such VM.
            DeniedError: its state does not allow it.
            BusyError: another operation holds it.
        """
        if request in STARTING and self._shutdown.is_under_way:
            hint = "`qsupctl operations` shows how far that is"
            raise DeniedError("all VMs are being stopped", instance=name, hint=hint)
        driver = self._find(name, request)
        holder = driver.holder
        if holder is not None and request in PREEMPTING and holder.request in (request, Request.KILL):
            return driver, None  # a stop joins a kill, and never softens it
        if request not in PREEMPTING:
            check_free(driver, request)
        judgement = judge(driver.state, request)
        if judgement.verdict is Verdict.DENIED:
            raise DeniedError(f"cannot {request.value}: {judgement.reason}", instance=name, hint=judgement.hint)
        return driver, judgement.verdict

    def _along(self, lot: _Lot, request: Request, read: Read) -> list[Step]:
        """What the request brings along on VMs that are not named; those are refused for which that cannot be.

        Raises:
            DependencyError: each can be begun by itself, and not all of them together.
        """
        try:
            steps = self._transactions.along(tuple(lot.roots), request, read)
        except QsupError:
            # somebody is in the way; each by itself tells who
            alone = {name: self._refusal(name, request, read) for name in lot.roots}
            if not any(alone.values()):
                raise
            lot.refuse({name: error for name, error in alone.items() if error is not None})
            steps = self._transactions.along(tuple(lot.roots), request, read)
        for step in steps:
            if step.name in lot.names and step.request is Request.STOP and request in STARTING:
                raise DependencyError(
                    f"{step.name} would be stopped for what conflicts with it, and is to run, too",
                    hint="`qsupctl list-dependencies` shows what conflicts",
                )
        return [step for step in steps if step.name not in lot.names]

    def _refusal(self, name: str, request: Request, read: Read) -> QsupError | None:
        """Why the request of this VM by itself cannot be begun."""
        try:
            self._transactions.along([name], request, read)
        except QsupError as error:
            if isinstance(error, DependencyError):
                error.instance = error.instance or name
            return error
        return None


def _named(lot: _Lot, use: KeyUse) -> list[Step]:
    """The steps of the VMs that are named; the first of them answers for the key."""
    own = (name for name in lot.names if name not in lot.refused and name not in lot.joined)
    request = Request(use.kind)
    steps = [Step(name=name, request=request, timeout=use.timeout, arguments=use.arguments) for name in own]
    if not steps:
        return []
    batch = None
    if use.key and len(lot.names) > 1:
        ids = {step.name: step.operation for step in steps} | lot.joined
        kept = tuple(ids[name] for name in lot.names if name in ids)
        batch = Batch(names=tuple(lot.names), operations=kept, refused=lot.refused)
    return [evolve(steps[0], key=use.key, batch=batch), *steps[1:]]
