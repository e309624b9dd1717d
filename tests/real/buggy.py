"""A qsupd with a bug: ``python -m tests.real.buggy ARGUMENTS...``, as for ``qsup.daemon``.

Decides: that the driver of a VM fails at every NMI.
Must not: change anything else.
"""

from __future__ import annotations

import sys

from qsup.daemon import main
from qsup.instance.body import Body
from qsup.instance.fulfil import Fulfilment
from qsup.instance.messages import Asked
from qsup.instance.state import Request

_begin_control = Fulfilment._begin_control


def _fail_at_nmi(fulfilment: Fulfilment, body: Body, asked: Asked) -> None:
    if asked.request is Request.NMI:
        raise RuntimeError("the bug")
    _begin_control(fulfilment, body, asked)


if __name__ == "__main__":
    setattr(Fulfilment, _begin_control.__name__, _fail_at_nmi)
    sys.exit(main())
