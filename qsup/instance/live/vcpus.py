"""``cpu.vcpus`` while a VM runs: vCPUs that come, are brought online by the guest, and go.

Decides: which places vCPUs come to and leave, in what order, and where QEMU cannot be trusted with it.
Must not: remember what QEMU has; it is asked each time, so that whoever comes after a killed daemon goes on from there.

A vCPU comes to the first free place of the topology and leaves the last, so that the guest numbers them alike. That it
is there is QEMU's to say; that it works is the guest's: its agent brings it online. One goes when the guest has let it
go, which only shows by its place being empty (QEMU sends no DEVICE_DELETED of a vCPU under TCG).

Under TCG each vCPU that QEMU makes takes one of ``maxcpus`` places that it never gives back, and one more aborts the
process (``tcg_register_thread`` in tcg/tcg.c; seen on 7.2 and 10.0). So they are counted, over the VM's whole life.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import structlog
import trio
from attrs import evolve, frozen

from qsup.errors import (
    AgentError,
    ChangeError,
    GuestRefused,
    MonitorError,
    QmpCommandError,
    QsupError,
    UnsupportedError,
)
from qsup.instance import watch
from qsup.instance.context import Changes, Context, Goal
from qsup.instance.hardware import Attached, Hardware
from qsup.instance.hotplug import STEP_TIMEOUT
from qsup.plan.part import Part
from qsup.qmp import commands
from qsup.qmp.results import HotpluggableCpu
from qsup.unit.compare import Change
from qsup.unit.effective import effective_max_vcpus
from qsup.unit.model import Unit

_log = structlog.get_logger()

VCPUS: Final = "cpu.vcpus"
_MAX: Final = "cpu.max-vcpus"
#: What came with QEMU 10.0, the oldest one that was seen to unplug vCPUs under TCG without damage. Nothing tells of
#: that itself: on 7.2 the heap is corrupt afterwards, and the next vCPU ends the process.
_SOUND_UNPLUG = "blockdev-set-active"
#: What QEMU says before the guest has switched from its old way of plugging vCPUs, which has no unplug (hw/acpi/ich9.c,
#: piix4.c); Linux does so as it boots.
_NO_ACPI = "unplug request for not supported device type"
#: Seconds for one call of the agent, for the guest to notice and take all vCPUs that came, and between two looks.
_AGENT_TIMEOUT, _ONLINE_TIMEOUT, _POLL = 2.0, 5.0, 0.1
#: Seconds after which QEMU asks the guest once more to let a vCPU go.
_ASK_AGAIN = 10.0


@frozen(kw_only=True)
class Place:
    """One place for a vCPU.

    Args:
        index: its number in the order of the topology.
        cpu: what QEMU says of it.
    """

    index: int
    cpu: HotpluggableCpu

    @property
    def entry(self) -> str:
        """What the vCPU that is plugged there is called among the VM's parts."""
        return f"cpu.{self.index}"

    @property
    def removable(self) -> str:
        """What QEMU is told to have it removed: its id, or of one that was there at the start its path."""
        return self.cpu.qom_path.removeprefix("/machine/peripheral/")

    def part(self) -> Part:
        """The vCPU that may come there."""
        device = {"driver": self.cpu.type, "id": f"cpu-{self.index}", **self.cpu.props}
        return Part(subject=f"vCPU {self.index}", entry=self.entry, devices=(device,))


class Vcpus:
    """Carries out changes of ``cpu.vcpus``."""

    def concerns(self, key: str) -> bool:
        """``cpu.vcpus``, and ``cpu.max-vcpus`` where that follows it."""
        return key in (VCPUS, _MAX)

    def check(self, change: Change, unit: Unit, context: Context) -> None:
        """See that the machine can have that many, and that QEMU survives the way there."""
        hardware, present = context.hardware, context.hardware.unit.cpu
        most, wanted = effective_max_vcpus(hardware.unit), unit.cpu.vcpus
        if change.key == _MAX and (present.max_vcpus or unit.cpu.max_vcpus):
            raise ChangeError(f"{_MAX} cannot be changed while it runs", hint="change the unit, and restart the VM")
        if wanted > most:
            raise ChangeError(
                f"it was started for at most {most} vCPUs, not {wanted}",
                hint="raise [cpu] max-vcpus in its unit, and restart the VM",
            )
        if wanted != present.vcpus:
            _check_machine(hardware, context)
        if hardware.summary.accel == "tcg" and wanted < present.vcpus:
            _check_unplug(hardware, context)
        if hardware.summary.accel == "tcg" and wanted > present.vcpus:
            _check_threads(hardware, most, wanted - present.vcpus - len(_coming(hardware)))

    async def apply(self, changes: Sequence[Change], unit: Unit, context: Context) -> Mapping[str, Any]:
        """Plug what is missing and have the guest take it, or ask the guest for what is too much."""
        await context.overtake(VCPUS)
        hardware, wanted = context.hardware, unit.cpu.vcpus
        if not hardware.unit.cpu.max_vcpus:
            # what QEMU was started with stays the most, however many there are
            cpu = evolve(hardware.unit.cpu, max_vcpus=effective_max_vcpus(hardware.unit))
            hardware.set_unit(evolve(hardware.unit, cpu=cpu))
        places = await _places(context)
        if len(_taken(places)) > wanted:
            goal = fewer_vcpus(unit, hardware)
            if await goal.step(context):
                context.goals.append(goal)
                return {}
            return {VCPUS: await goal.result(context)}
        await context.services.capacity.take_more(context.name, vcpus=wanted)
        try:
            await _plug(places, wanted, context)
        except QsupError:
            context.services.capacity.settle(context.name, vcpus=hardware.unit.cpu.vcpus)
            raise
        return {VCPUS: await _tell(context, wanted)}


def _check_machine(hardware: Hardware, context: Context) -> None:
    known = {machine.name: machine for machine in context.capabilities.machines}
    machine = known.get(hardware.summary.machine)
    if machine is not None and not machine.hotpluggable_cpus:
        words = f"a {machine.name} machine takes and gives no vCPU while it runs"
        raise UnsupportedError(words, hint="change the unit, and restart the VM")


def _check_unplug(hardware: Hardware, context: Context) -> None:
    hint = "change the unit, and restart the VM"
    if _SOUND_UNPLUG not in context.capabilities.commands:
        raise UnsupportedError(
            f"QEMU {context.capabilities.version} cannot be trusted to remove a vCPU under TCG: its memory is corrupt "
            "afterwards (10.0 was seen to do it well)",
            hint=hint,
        )
    if "-icount" in hardware.unit.qemu.extra_args:
        raise UnsupportedError("all vCPUs share one thread (-icount), and QEMU dies when one is removed", hint=hint)


def _coming(hardware: Hardware) -> list[str]:
    """What is counted already, and may not be there yet."""
    return [part.entry for part in hardware.in_state("coming") if part.entry.startswith("cpu.")]


def _check_threads(hardware: Hardware, most: int, more: int) -> None:
    made = hardware.summary.vcpus_made
    if made + more > most:
        left = max(most - made, 0)
        words = f"under TCG QEMU can make {most} vCPUs in its life, those that went again included, and has made {made}"
        raise UnsupportedError(f"{words}: {left} more can come, not {more}", hint="restart the VM")


async def _places(context: Context) -> list[Place]:
    found = await commands.query_hotpluggable_cpus(context.monitor, timeout=STEP_TIMEOUT)
    return [Place(index=index, cpu=cpu) for index, cpu in enumerate(found)]


def _taken(places: Sequence[Place]) -> list[Place]:
    return [place for place in places if place.cpu.qom_path]


# more


async def _plug(places: Sequence[Place], wanted: int, context: Context) -> None:
    """Plug vCPUs until there are as many as wanted.

    Raises:
        MonitorError: QEMU refused one, or did not answer; the unit says how many there are.
    """
    hardware, count = context.hardware, len(_taken(places))
    for place in _taken(places):
        if place.entry in _coming(hardware):
            hardware.mark(place.entry, "there")  # an earlier daemon was killed between QEMU's answer and its own note
    missing = [place for place in places if not place.cpu.qom_path][: max(wanted - count, 0)]
    if hardware.summary.accel == "tcg":
        uncounted = [place for place in missing if place.entry not in _coming(hardware)]
        _check_threads(hardware, effective_max_vcpus(hardware.unit), len(uncounted))
    for place in missing:
        try:
            await _plug_one(place, context)
        except MonitorError as error:
            _keep_count(hardware, count)
            error.message = f"{place.part().subject}: {error.message}; it has {count} vCPUs now"
            raise
        count += 1
        _keep_count(hardware, count)
        context.progress(f"{count} of {wanted} vCPUs")


async def count_vcpus(context: Context) -> None:
    """Some went that nobody waits for: the unit as it runs has those that are left."""
    count = len(_taken(await _places(context)))
    _keep_count(context.hardware, count)
    context.services.placements.recount(context.name, count)


def _keep_count(hardware: Hardware, count: int) -> None:
    hardware.set_unit(evolve(hardware.unit, cpu=evolve(hardware.unit.cpu, vcpus=count)))


async def _plug_one(place: Place, context: Context) -> None:
    hardware, part = context.hardware, place.part()
    if hardware.part(place.entry) is None:
        hardware.add(Attached(part=part.plan()))
        hardware.mark(place.entry, "coming")
        hardware.count_vcpus(1)
    context.keep()  # counted before QEMU hears of it: one too many would be the VM's end
    try:
        await context.monitor.execute("device_add", part.devices[0], timeout=STEP_TIMEOUT)
    except QmpCommandError:
        hardware.remove(place.entry)
        hardware.count_vcpus(-1)
        raise
    except MonitorError:
        hardware.mark(place.entry, "there")  # it may come yet; when QEMU answers again it says whether it has
        raise
    hardware.mark(place.entry, "there")


async def _tell(context: Context, wanted: int) -> Mapping[str, Any]:
    """Have the guest's agent bring all vCPUs online, where there is one, and tell how many are."""
    await tell_threads(context)
    online: int | None = None
    try:
        if await _has_agent(context):
            online = await _bring_online(context, wanted)
    except AgentError as error:
        _log.info("the guest's agent brings no vCPU online", instance=context.name, why=error.message)
    return {"vcpus": wanted, "online": online}


async def _has_agent(context: Context) -> bool:
    return context.life.summary.has_agent and await watch.agent_is_open(context.monitor)


async def _bring_online(context: Context, wanted: int) -> int:
    """Linux takes some time to notice a vCPU, and may leave it offline.

    Returns:
        How many the guest has online then.
    """
    online = 0
    with trio.move_on_after(_ONLINE_TIMEOUT):
        while True:
            known = await context.guest.vcpus(_AGENT_TIMEOUT)
            if offline := [vcpu.number for vcpu in known if not vcpu.online]:
                await context.guest.set_vcpus(offline, True, _AGENT_TIMEOUT)
                known = await context.guest.vcpus(_AGENT_TIMEOUT)
            online = sum(vcpu.online for vcpu in known)
            if online >= wanted:
                break
            context.progress(f"the guest has {online} of {wanted} vCPUs online")
            await trio.sleep(_POLL)
    return online


async def tell_threads(context: Context) -> None:
    """Put the threads of vCPUs that came where they belong, and have it shown which they are."""
    threads = await context.life.pinning.find(context.monitor)
    await context.life.limiting.divide(threads)
    context.services.placements.recount(context.name, len(threads))
    context.note({"threads": threads})


# fewer


def fewer_vcpus(unit: Unit, hardware: Hardware) -> Goal:
    """The goal of a unit that is to have fewer."""
    return FewerVcpus(unit.cpu.vcpus, effective_max_vcpus(hardware.unit))


class FewerVcpus:
    """No more vCPUs than wanted: the guest is asked for the last ones until they have gone.

    Args:
        most: what the machine has places for.
    """

    key: str = VCPUS

    def __init__(self, wanted: int, most: int) -> None:
        self._wanted = wanted
        # a unit that names no maximum would have the next machine end at what is left
        self.besides: Changes = {"cpu": {"max-vcpus": most}}
        self._asked: dict[str, float] = {}
        self._refused: set[str] = set()

    async def step(self, context: Context) -> str:
        """Ask for what has not been asked for of late, and look what is left."""
        taken = _taken(await _places(context))
        context.services.capacity.settle(context.name, vcpus=max(len(taken), self._wanted))
        try:
            return await self._ask_for(taken, context)
        except (GuestRefused, ChangeError):
            await _tell(context, len(taken))  # what was taken offline stays, and is of use again
            raise

    async def _ask_for(self, taken: Sequence[Place], context: Context) -> str:
        surplus = taken[self._wanted :]
        if not surplus:
            return ""
        self._check_refusal(surplus, len(taken), context)
        if not self._asked:
            if context.hardware.summary.accel == "tcg":
                _check_unplug(context.hardware, context)
            await _check_own_threads(context)
            await self._take_offline(len(taken), context)
        for place in reversed(surplus):
            await self._ask(place, context)
        went = f" ({len(self._asked) - len(surplus)} have gone)" if len(self._asked) > len(surplus) else ""
        return f"it has {len(taken)} vCPUs and is to have {self._wanted}: the guest must let them go{went}"

    def _check_refusal(self, surplus: Sequence[Place], count: int, context: Context) -> None:
        """A refusal is on the part: the guest's words about it came as an event. One alone means nothing yet."""
        for place in surplus:
            part, name = context.hardware.part(place.entry), place.removable
            if part is None or name not in self._asked or part.state == "leaving":
                continue
            if name in self._refused:
                _keep_count(context.hardware, count)
                words = f"the guest does not let vCPU {place.index} go; it has {count}"
                raise GuestRefused(words, hint="its console may say why")
            # one that is just booting has no time for it
            self._refused.add(name)
            context.hardware.mark(place.entry, "leaving")

    async def _take_offline(self, count: int, context: Context) -> None:
        """What is offline goes without delay. The guest numbers vCPUs as they came, so the last are those that go."""
        try:
            if await _has_agent(context):
                known = [vcpu for vcpu in await context.guest.vcpus(_AGENT_TIMEOUT) if vcpu.can_offline]
                last = [vcpu.number for vcpu in known if vcpu.number >= self._wanted and vcpu.online]
                if last:
                    await context.guest.set_vcpus(last, False, _AGENT_TIMEOUT)
        except AgentError as error:
            # the guest's kernel does it all the same when it is asked for the vCPU
            _log.info("the guest's agent takes no vCPU offline", instance=context.name, why=error.message)

    async def _ask(self, place: Place, context: Context) -> None:
        now, name = trio.current_time(), place.removable
        if now - self._asked.get(name, now - _ASK_AGAIN) < _ASK_AGAIN:
            return
        self._asked[name] = now
        context.hardware.mark(place.entry, "leaving")
        try:
            await context.monitor.execute("device_del", {"id": name}, timeout=STEP_TIMEOUT)
        except QmpCommandError as error:
            if error.error_class == "DeviceNotFound":
                return  # it has just gone
            context.hardware.mark(place.entry, "there")
            if _NO_ACPI in error.message:
                words = f"its guest does not do what takes a vCPU away (ACPI), so vCPU {place.index} stays"
                hint = "wait until its system has booted; one without ACPI keeps its vCPUs until a restart"
                raise ChangeError(words, hint=hint) from error
            raise ChangeError(f"QEMU does not remove vCPU {place.index}: {error.message}") from error

    async def result(self, context: Context) -> Mapping[str, Any]:
        """How many there are, and are online: one that was taken offline in place of another is brought back."""
        for place in await _places(context):
            if not place.cpu.qom_path:
                context.hardware.remove(place.entry)
        return await _tell(context, self._wanted)

    async def stop(self, context: Context) -> None:
        """QEMU cannot take the question back: the guest may still let one go, and then that is shown."""
        taken = _taken(await _places(context))
        for place in taken:
            context.hardware.mark(place.entry, "there")
        _keep_count(context.hardware, len(taken))
        await _tell(context, len(taken))


async def _check_own_threads(context: Context) -> None:
    cpus = await commands.query_cpus_fast(context.monitor, timeout=STEP_TIMEOUT)
    if len({cpu.thread_id for cpu in cpus}) < len(cpus):
        words = "all vCPUs share one thread, and QEMU dies when one is removed"
        raise UnsupportedError(words, hint="change the unit, and restart the VM")
