"""Requests of a VM, from the inbox to the end of their operations.

Decides: what each request begins, and when the operation that holds the VM is over.
Must not: judge by more than the state (`qsup.instance.state.judge`, `qsup.instance.settle`), or wait for QEMU.
"""

from __future__ import annotations

from attrs import evolve

from qsup.errors import DeniedError, QsupError
from qsup.instance import adopt
from qsup.instance.body import Body
from qsup.instance.cause import Cause, CauseKind
from qsup.instance.course import Course
from qsup.instance.ended import Ended
from qsup.instance.hold import Hold
from qsup.instance.inbox import Inbox
from qsup.instance.messages import Asked, Finished, Hasten, Message
from qsup.instance.pending import Pending
from qsup.instance.position import Position
from qsup.instance.services import Services
from qsup.instance.settle import DOWN, Holder, Remains, Standing, Unfinished, settle, take_up, unheard
from qsup.instance.shown import Shown
from qsup.instance.state import BEING_STARTED, Event, Request, State, Verdict, judge


class Fulfilment:
    """What is asked of one VM.

    Args:
        course: on which requests send it.
        pending: what may stand against one.

    Attributes:
        failure: of the last launch.
    """

    def __init__(
        self,
        shown: Shown,
        position: Position,
        hold: Hold,
        course: Course,
        pending: Pending,
        services: Services,
        inbox: Inbox[Message],
    ) -> None:
        self.failure: QsupError | None = None
        self._shown = shown
        self._position = position
        self._hold = hold
        self._course = course
        self._pending = pending
        self._services = services
        self._inbox = inbox
        self._unfinished: Unfinished | None = None

    # what an earlier daemon left

    def resume(self, unfinished: Unfinished) -> None:
        """Go on with an operation that an earlier daemon left unfinished, once it is known what is left of the VM."""
        self._unfinished = unfinished
        operation, request = unfinished.operation, unfinished.request
        self._hold.holder = Holder(operation=operation, request=request, timeout=unfinished.timeout)

    def take_up(self, body: Body, found: Remains) -> Cause | None:
        """Go on with what an earlier daemon left unfinished; the cause, when for that the process is to end."""
        unfinished, self._unfinished = self._unfinished, None
        if unfinished is None or self._hold.operation != unfinished.operation:
            return None
        taken = take_up(unfinished, found)
        self._hold.holder = taken.holder
        if taken.holder.left is not None:
            body.limit_left(unfinished.operation, unheard(unfinished, self._shown.name))
        if taken.ask:
            self._inbox.post(Asked(operation=unfinished.operation, request=unfinished.request))
        return _ordered(unfinished.request) if taken.stopping else None

    # beginning

    async def on_request(self, body: Body, asked: Asked) -> None:
        """Begin it, or say why not."""
        if self._hold.operation != asked.operation:
            return  # overtaken while it was on its way
        judgement = judge(self._shown.state, asked.request)
        if judgement.verdict is Verdict.DENIED:
            words = f"cannot {asked.request.value}: {judgement.reason}"
            await self._refuse(asked, DeniedError(words, instance=self._shown.name, hint=judgement.hint))
        elif judgement.verdict is Verdict.NEEDLESS:
            self._hold.end(asked.operation, {"changed": False})
        else:
            try:
                await self._begin(body, asked)
            except QsupError as error:
                await self._refuse(asked, error)
            self.settle(body)

    async def _refuse(self, asked: Asked, error: QsupError) -> None:
        """End an operation of which nothing has been done. A later daemon must not do it after all: that is on record
        before anybody hears it.
        """
        await self._services.operations.foretell(asked.operation, error=error)
        self._hold.end(asked.operation, error=error)

    async def _begin(self, body: Body, asked: Asked) -> None:
        joins = asked.request is Request.START and self._shown.state in BEING_STARTED
        if asked.request in (Request.START, Request.RESTART) and not joins:
            # what is started is what the files say now, and what is broken or does not fit stops nothing
            loaded = asked.loaded or await self._services.load(self._shown.name)
            if asked.request is Request.RESTART and self._shown.state.level not in DOWN:
                await self._services.placements.take_next(self._shown.name, loaded.unit)
                await self._services.memory.check_named(self._shown.name, loaded.unit)
                await self._services.capacity.take_next(self._shown.name, loaded.unit)
            self._shown.set_unit(loaded)
        holder = self._hold.holder
        if holder is None or holder.operation != asked.operation:
            return  # overtaken while the files were read
        if asked.request is Request.SET and self._shown.state.level in DOWN:
            body.file(asked)
            return
        if asked.request in (Request.STOP, Request.RESTART) and not asked.in_turn:
            if self._shown.state.level not in DOWN and not self._services.turns.may_stop(self._shown.name):
                body.await_stop_turn(asked)
                return
        elif asked.request is Request.KILL:
            body.cancel_turn()
        is_unasked = self._shown.state is State.UNREACHABLE and body.is_reaching and not asked.tried
        if is_unasked and asked.request in (Request.STOP, Request.RESTART):
            # its guest can be asked in a moment, as every one's can of whom a daemon has just begun to know
            body.await_reach(asked)
            return
        self._hold.holder = evolve(holder, begun=True, start_next=asked.request is Request.RESTART)
        operator = _ordered(asked.request)
        match asked.request:
            case Request.START if joins:
                self._course.apply(body, Event.START)  # its policy has begun it, and this operation ends as that does
            case Request.START:
                self._begin_start(body)
            case Request.STOP:
                self._course.apply(body, Event.STOP, operator)
                self._keep_stop()
            case Request.KILL:
                self._course.apply(body, Event.KILL, operator)
                self._keep_stop()
            case Request.RESET_FAILED:
                self._position.forget_restarts()
                self._course.apply(body, Event.RESET_FAILED, operator)
                self._course.keep_end()
                # its state tells a later daemon nothing of it
                await self._services.operations.foretell(asked.operation, result={"changed": True})
            case Request.RESTART:
                if judge(self._shown.state, Request.STOP).verdict is Verdict.ALLOWED:
                    self._course.apply(body, Event.STOP, operator)
            case _:
                self._begin_control(body, asked)

    def _begin_control(self, body: Body, asked: Asked) -> None:
        if asked.request is Request.DETACH:
            self._pending.check(self._services.operations.get(asked.operation).arguments["entry"])
        if asked.request in (Request.PAUSE, Request.RESUME):
            self._position.held = asked.request is Request.PAUSE
            if self._shown.state is State.IO_ERROR and self._position.held:
                self._course.apply(body, Event.HELD, adopt.held_by(self._position.cause))
            self._course.save()  # before it is told as done: a later daemon must not let the guest go on
        body.control(asked, self._shown.state, self._shown.wait_state)

    def _begin_start(self, body: Body) -> None:
        """A start that somebody asked for; automatic restarts are counted from here."""
        self._position.forget_restarts()
        self.failure = None
        at_once = self._services.turns.try_start(self._shown.name, self._hold.operation or "")
        self._course.apply(body, Event.START if at_once else Event.QUEUED)

    def _keep_stop(self) -> None:
        """What was stopped before it ran ends at once, and is no longer what was kept of its last end."""
        if self._shown.state is State.DEAD:
            self._course.keep_end()

    async def on_hasten(self, body: Body, message: Hasten) -> None:
        """A stop is to wait no more."""
        holder = self._hold.holder
        if holder is None or holder.operation != message.operation or holder.request is not Request.STOP:
            return  # it was overtaken, or has ended
        waited = not holder.begun
        if waited:
            body.cancel_turn()
            await self._begin(body, Asked(operation=message.operation, request=Request.STOP, in_turn=True, tried=True))
        asked = self._shown.state is State.STOPPING_GUEST
        if asked:
            self._course.apply(body, Event.STAGE_TIMEOUT)
        if waited or asked:
            message.cut_short()
        self.settle(body)

    # ending

    def on_finished(self, message: Finished) -> None:
        """A request that needs no state of its own was carried out, or failed."""
        holder = self._hold.holder
        paused = holder is not None and holder.request is Request.PAUSE
        if paused and message.error is not None and self._shown.state is not State.PAUSED:
            self._position.held = False  # it was wanted, and has not come true
        self._hold.end(message.operation, message.result, message.error)

    def settle(self, body: Body) -> None:
        """End the holder's operation when the state says that it is done."""
        holder, life = self._hold.holder, self._shown.life
        if holder is None:
            return
        standing = Standing(
            name=self._shown.name,
            state=self._shown.state,
            cause=self._position.cause,
            was_ready=self._position.was_ready,
            stopping=self._position.ending is not None,
            failure=self.failure,
            pid=life.process.pid if life else None,
        )
        settled = settle(holder, standing)
        if settled is None:
            return
        if settled.start:
            self._hold.holder = evolve(holder, start_next=False)
            self._begin_start(body)
        elif settled.ask:
            self._hold.holder = evolve(holder, begun=False, left=None)
            self._inbox.post(Asked(operation=holder.operation, request=holder.request))
        else:
            self._hold.end(holder.operation, settled.result, settled.error)

    def keep_promise(self) -> None:
        """What it has and was promised of the host is its own until it is down, and nothing has it start again."""
        if self._shown.state.level in DOWN:
            self._services.placements.release(self._shown.name)
            self._services.capacity.release(self._shown.name)
        elif self._hold.holder is None or self._hold.holder.request is not Request.RESTART:
            # it goes on as it is, or stays down
            self._services.placements.forgo(self._shown.name)
            self._services.capacity.forgo(self._shown.name)

    def restore_promise(self, found: Ended | None) -> None:
        """It waits for its restart, and an earlier daemon has kept its place until then."""
        if found is not None and found.plan is not None:
            name, unit = self._shown.name, self._shown.ran.unit
            self._services.placements.restore(name, unit, found.chosen)
            self._services.capacity.restore(name, unit, found.plan)


def _ordered(request: Request) -> Cause:
    return Cause(kind=CauseKind.OPERATOR, detail=f"{request.value} requested")
