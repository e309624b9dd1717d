"""Every route of the API, in one table.

Decides: which routes there are.
Must not: say anything of a route that its own module does not.
"""

from __future__ import annotations

from qsup.api.http import Router
from qsup.api.routes import daemon, events, guest, hardware, host, instances, operations, power, screen, units
from qsup.api.routes.endpoint import Api, Endpoint

ENDPOINTS: tuple[Endpoint, ...] = (
    *daemon.ENDPOINTS,
    *host.ENDPOINTS,
    *units.ENDPOINTS,
    *instances.ENDPOINTS,
    *power.ENDPOINTS,
    *hardware.ENDPOINTS,
    *screen.ENDPOINTS,
    *guest.ENDPOINTS,
    *operations.ENDPOINTS,
    *events.ENDPOINTS,
)


def make_router(api: Api) -> Router:
    """A router with every route, bound to ``api``."""
    router = Router()
    for endpoint in ENDPOINTS:
        router.add(endpoint.method, endpoint.pattern, endpoint.bind(api), endpoint.role)
    return router
