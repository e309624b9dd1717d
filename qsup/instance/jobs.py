"""The driver's helpers in time: at most one task of each name, and starting one ends its predecessor.

Decides: that a job that is no longer wanted is cancelled, not ignored.
Must not: know what the jobs do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from structlog.contextvars import bound_contextvars


class Jobs:
    """Named tasks in one nursery."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._scopes: dict[str, trio.CancelScope] = {}

    def start(self, name: str, job: Callable[[], Awaitable[None]], *, operation: str | None = None) -> None:
        """Run ``job`` under ``name``, in place of the one that has the name now.

        Args:
            operation: what it is part of; its lines of the log say so.
        """
        self.cancel(name)
        scope = self._scopes[name] = trio.CancelScope()
        self._nursery.start_soon(self._run, name, scope, job, operation)

    async def _run(
        self, name: str, scope: trio.CancelScope, job: Callable[[], Awaitable[None]], operation: str | None
    ) -> None:
        with scope, bound_contextvars(operation=operation):
            await job()
        if self._scopes.get(name) is scope:
            del self._scopes[name]

    def after(self, name: str, seconds: float, action: Callable[[], None]) -> None:
        """Call ``action`` after ``seconds``, unless cancelled before."""

        async def job() -> None:
            await trio.sleep(seconds)
            action()

        self.start(name, job)

    def cancel(self, *names: str) -> None:
        """End the jobs of these names, if there are any."""
        for name in names:
            if (scope := self._scopes.pop(name, None)) is not None:
                scope.cancel()

    def is_running(self, name: str) -> bool:
        """Whether a job of that name has not ended."""
        return name in self._scopes
