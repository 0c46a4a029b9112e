"""Whether the lab's hosts can be made on this machine, and else why not."""

import pytest

from lab import hosts
from lab.faults import LabFault


def _why_not() -> str:
    try:
        hosts.require()
    except LabFault as fault:
        return f"{fault.what}; {fault.hint}"
    return ""


# Of a whole module: `pytestmark = need_hosts`.
need_hosts = pytest.mark.skipif(bool(_why_not()), reason=_why_not())
