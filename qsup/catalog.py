"""The unit files of one daemon: what is loaded, and the few writes that the API allows.

Decides: what a reload compares, where files are written (the administrator's directory, the last of the search path),
and that a unit is written only when it is valid.
Must not: know running VMs; `qsup.supervisor` joins the two.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import trio
from attrs import evolve

from qsup.errors import Diagnostic, NoSuchUnit, PreconditionFailed, RequestError, UnitError, from_oserror
from qsup.host.atomic import rehearse, write_atomic
from qsup.host.opening import open_regular
from qsup.host.rundir import Layout
from qsup.unit.dropin import CHANGES, changed_text, read_dropin
from qsup.unit.files import printable, unit_name_of
from qsup.unit.info import Precondition, ReloadResult, UnitInfo, UnitSources
from qsup.unit.kinds import is_template_name
from qsup.unit.load import Catalog, LoadedUnit, etag_of, load_catalog, load_unit, read_text, read_unit
from qsup.unit.model import Unit
from qsup.unit.specifier import SpecifierContext
from qsup.unit.write import dropin_text, values_of

#: The drop-in that `enable` and `disable` write.
_AUTOSTART = "50-autostart.toml"


class UnitStore:
    """The units of a daemon's search path, as last read. Long because each thing that the API may do has its method.

    Args:
        layout: says where unit files are.
    """

    def __init__(self, layout: Layout) -> None:
        self._dirs = layout.unit_dirs
        self._context = SpecifierContext(
            name="", hostname=socket.gethostname(), runtime_dir=str(layout.run), state_dir=str(layout.state)
        )
        self._catalog = Catalog(units={}, templates={})
        self._writing = trio.Lock()
        self._rehearsed: dict[str, tuple[object, str]] = {}

    @property
    def units(self) -> Mapping[str, LoadedUnit]:
        """Every unit without errors, templates not included."""
        return self._catalog.units

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """All errors of all files, as last read."""
        return self._catalog.diagnostics

    def context(self, name: str) -> SpecifierContext:
        """What specifiers stand for in the unit of that name."""
        return evolve(self._context, name=name)

    async def reload(self) -> ReloadResult:
        """Read all unit files again and say what changed. What has errors now is there, and so has not gone."""
        before = {**self._catalog.units, **self._catalog.templates}
        broken = self._catalog.broken
        self._catalog = await trio.to_thread.run_sync(partial(load_catalog, self._dirs, self.context))
        after = {**self._catalog.units, **self._catalog.templates}
        changed = (name for name in after.keys() & before.keys() if after[name].etag != before[name].etag)
        mended = after.keys() & broken
        return ReloadResult(
            added=tuple(sorted(after.keys() - before.keys() - broken)),
            changed=tuple(sorted({*changed, *mended})),
            removed=tuple(sorted(before.keys() - after.keys() - self._catalog.broken)),
            diagnostics=self._catalog.diagnostics,
        )

    def read(self, name: str) -> LoadedUnit:
        """Load one unit afresh, instances of templates included. Takes a millisecond.

        Raises:
            NoSuchUnit, UnitError: see `qsup.unit.load.load_unit`.
        """
        return load_unit(name, self._dirs, self.context(name))

    async def load(self, name: str) -> LoadedUnit:
        """`read`, as drivers call it. In the loop: a worker thread costs twice what reading a few small files does."""
        await trio.lowlevel.checkpoint()
        return self.read(name)

    def listing(self) -> Sequence[UnitInfo]:
        """Every unit and template without errors, as last read, sorted by name."""
        loaded = {**self._catalog.units, **self._catalog.templates}
        return tuple(_info(loaded[name], values=False) for name in sorted(loaded))

    def info(self, name: str) -> UnitInfo:
        """One unit, read afresh.

        Raises:
            NoSuchUnit, UnitError: see `qsup.unit.load.load_unit`.
        """
        return _info(self.read(name), values=True)

    async def validate(self, name: str, text: str) -> Sequence[Diagnostic]:
        """What is wrong with a text as the file of a unit. In a worker thread: a long text takes 2 ms for each KiB."""
        read = partial(read_text, name, text, self.context(name), dirs=self._dirs)
        return (await trio.to_thread.run_sync(read))[1]

    def sources(self, name: str) -> UnitSources:
        """The files of one unit as they are, with or without errors; `NoSuchUnit`."""
        files = read_unit(name, self._dirs)
        sources = tuple((document.file, document.text) for document in files.documents)
        own = sources[0][0] if sources[0][0] == printable(self._file(name)) else ""
        return UnitSources(name=name, etag=etag_of(files), sources=sources, own=own)

    async def put(self, name: str, text: str, *, only_if: Precondition, dropin: str = "") -> UnitInfo:
        """Write a unit's file.

        Args:
            dropin: write the drop-in of that name instead; without a text, remove it.

        Raises:
            NoSuchUnit: there is no unit for the drop-in.
            UnitError: it is not valid; nothing was written.
            PreconditionFailed: the unit is not as ``only_if`` says.
            HostError: the file could not be written.
        """
        async with self._writing:
            await self.candidate(name, text, only_if=only_if, dropin=dropin)
            path = self._dropin(name, dropin) if dropin else self._file(name)
            if text.strip():
                await self._write(path, text)
            else:
                await self._remove(path, name)
            return self.info(name)

    async def candidate(self, name: str, text: str, *, only_if: Precondition, dropin: str = "") -> Unit:
        """A unit as it would be if a file of it were written; arguments and errors as for `put`. Nothing is."""
        self._check(name, only_if)
        context = self.context(name)
        if dropin:
            said = text if text.strip() else ""
            read = partial(read_dropin, self._dropin(name, dropin), name, self._dirs, context, said)
        else:
            read = partial(read_text, name, text, context, dirs=self._dirs)
        unit, wrong = await trio.to_thread.run_sync(read)
        if not dropin:
            wrong = wrong or _masking(name, text)
        if unit is None or wrong:
            raise UnitError(wrong, instance=name, hint="nothing was written")
        return unit

    async def delete(self, name: str, *, only_if: Precondition) -> None:
        """Remove a unit's file from the administrator's directory, and the drop-in of `set_autostart` with it.

        Raises:
            NoSuchUnit: there is no such file there.
            PreconditionFailed: the unit is not as ``only_if`` says.
        """
        async with self._writing:
            self._check(name, only_if)
            await self._delete(name)

    async def _delete(self, name: str) -> None:
        try:
            await trio.to_thread.run_sync(self._file(name).unlink)
        except FileNotFoundError:
            raise NoSuchUnit(
                f"{self._file(name)} does not exist", instance=name, hint="only files in that directory can be deleted"
            ) from None
        except OSError as error:
            raise from_oserror(error, f"could not delete {self._file(name)}", instance=name) from error
        for dropin in (_AUTOSTART, CHANGES):
            await self._remove(self._dropin(name, dropin), name)

    async def set_autostart(self, name: str, enabled: bool) -> UnitInfo:
        """Have ``install.autostart`` say so: by the rest of the unit where that suffices, else by a drop-in.

        Raises:
            RequestError: it is a template.
            NoSuchUnit, UnitError: see `qsup.unit.load.load_unit`.
            HostError: the drop-in could not be written or removed.
        """
        if is_template_name(name):
            raise RequestError(
                f"{name} is a template, which never starts itself", hint=f"name an instance, such as {name}1"
            )
        async with self._writing:
            loaded = self.read(name)
            if loaded.unit.install.autostart is not enabled:
                # one that says the opposite is in the way, and one that repeats the unit would hide its next change
                await self._remove(self._dropin(name, _AUTOSTART), name)
                loaded = self.read(name)
            if loaded.unit.install.autostart is not enabled and self._dropin(name, CHANGES).as_posix() in loaded.files:
                # what `set` has written comes after what is written here
                loaded = await self._persist(name, {"install": {"autostart": enabled}})
            if loaded.unit.install.autostart is not enabled or (enabled and not _has_own_file(loaded)):
                await self._write(self._dropin(name, _AUTOSTART), dropin_text({("install", "autostart"): enabled}))
            return self.info(name)

    def is_ours(self, files: Sequence[str]) -> bool:
        """Whether a unit's own file is in the administrator's directory: then changes of its VM are to last."""
        return bool(files) and Path(files[0]).parent == self._dirs[-1]

    async def persist(
        self, name: str, changes: Mapping[str, Any], *, replaced: Sequence[str] = (), rehearsal: bool = False
    ) -> LoadedUnit:
        """Have a unit's files say what was changed of its VM, by a drop-in of the daemon's own; again changes nothing.

        Args:
            changes: as a drop-in would say them.
            replaced: entries of which the changes say all there is.
            rehearsal: see only that it can be done.

        Returns:
            The unit as its files say it then.

        Raises:
            NoSuchUnit, UnitError, ChangeError: see `qsup.unit.dropin.changed_text`.
            NoSpaceError, HostError: it cannot be written.
        """
        async with self._writing:
            return await self._persist(name, changes, replaced, rehearsal=rehearsal)

    async def _persist(
        self, name: str, changes: Mapping[str, Any], replaced: Sequence[str] = (), *, rehearsal: bool = False
    ) -> LoadedUnit:
        replaced = tuple(replaced)
        path = self._dropin(name, CHANGES)
        # what was rehearsed is still right while no file has changed
        asked = (changes, replaced, etag_of(read_unit(name, self._dirs)))
        known = self._rehearsed.pop(name, None)
        if known is not None and known[0] == asked:
            text = known[1]
        else:
            text_of = partial(changed_text, path, name, self._dirs, self.context(name), changes, replaced)
            text = await trio.to_thread.run_sync(text_of)
        if rehearsal:
            self._rehearsed[name] = asked, text
        if text != await trio.to_thread.run_sync(_text_of, path):
            if rehearsal:
                await trio.to_thread.run_sync(_rehearse, path, text)
            elif text:
                await self._write(path, text)
            else:
                await self._remove(path, name)
        loaded = self.read(name)
        if not rehearsal:
            self._take(loaded)
        return loaded

    def _take(self, loaded: LoadedUnit) -> None:
        """Remember a unit as it is read outside of a reload."""
        units = {other: unit for other, unit in self._catalog.units.items() if other != loaded.name}
        if _has_own_file(loaded):
            units[loaded.name] = loaded
        self._catalog = evolve(self._catalog, units=units)

    def _file(self, name: str) -> Path:
        return self._dirs[-1] / f"{name}.toml"

    def _dropin(self, name: str, file: str) -> Path:
        return self._dirs[-1] / f"{name}.toml.d" / file

    async def _remove(self, path: Path, name: str) -> None:
        def remove() -> None:
            try:
                path.unlink()
                # an instance of a template is there for as long as a folder is named after it
                path.parent.rmdir()
            except FileNotFoundError:
                pass  # there was none
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise from_oserror(error, f"could not delete {path}", instance=name) from error

        await trio.to_thread.run_sync(remove)

    async def _write(self, path: Path, text: str) -> None:
        def write() -> None:
            _make_folder(path.parent)
            write_atomic(path, text.encode(), mode=0o644)

        await trio.to_thread.run_sync(write)

    def _check(self, name: str, only_if: Precondition) -> None:
        present: str | None = None
        with suppress(NoSuchUnit):
            present = etag_of(read_unit(name, self._dirs))
        if only_if.exists is False and present is not None:
            raise PreconditionFailed(f"unit {name} exists", instance=name, hint="choose another name, or change it")
        if not only_if.holds(present):
            raise PreconditionFailed(
                f"unit {name} is not the version that was read",
                instance=name,
                hint="read it again, then repeat the change",
            )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_oserror(error, f"could not make {folder}") from error


def _text_of(path: Path) -> str:
    """A drop-in's text, ``""`` when there is none."""
    try:
        with open(open_regular(path, follow=True), encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise from_oserror(error, f"could not read {path}") from error


def _rehearse(path: Path, text: str) -> None:
    """See that a drop-in could be written; a folder that was made for that goes again."""
    _make_folder(path.parent)
    try:
        rehearse(path, text.encode())
    finally:
        with suppress(OSError):
            path.parent.rmdir()  # where something is in it, it stays


def _has_own_file(loaded: LoadedUnit) -> bool:
    """Whether a file or a folder of drop-ins is named after it: only such an instance of a template starts itself."""
    return any(unit_name_of(part) == loaded.name for file in loaded.files for part in Path(file).parts[-2:])


def _masking(name: str, text: str) -> tuple[Diagnostic, ...]:
    """An empty file masks a unit (as in systemd.unit(5)), which nobody means who writes one through the API."""
    return () if text.strip() else (Diagnostic(f"{name}.toml", 0, "", "is empty, which would mask the unit"),)


def _info(loaded: LoadedUnit, *, values: bool) -> UnitInfo:
    shown: Mapping[str, Any] | None = values_of(loaded.unit) if values else None
    return UnitInfo(
        name=loaded.name,
        files=loaded.files,
        template=loaded.name.endswith("@"),
        autostart=loaded.unit.install.autostart,
        description=loaded.unit.unit.description,
        etag=loaded.etag,
        text=loaded.text,
        values=shown,
    )
