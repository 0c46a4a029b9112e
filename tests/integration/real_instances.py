"""A container and a VM that run for real while something fails, as Docker and libvirt see them.

Two things are asked after a fault. Where nothing has to move: are they the same runs as before,
not restarted, not doubled (:func:`untouched`)?  Where something has to: does each run once, as
desired, and nothing else (:func:`as_desired`)?  What swarmctl says of it is compared with what
Docker and libvirt say themselves.

The VM is the lab's guest under emulation: it runs for libvirt half a second after it was asked
for, and is left to boot through or not.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from attrs import frozen

from swarmctl.spec import wire
from swarmctl.spec.models import ServiceSpec
from tests.e2e.cluster import Cluster, Running, box, machine, until

DRIVERS = "docker,libvirt"
SERVICES = ("real", "vm")
Ask = Callable[..., Any]


def services() -> list[ServiceSpec]:
    """One of each."""
    return [box("real"), machine("vm")]


@frozen
class Runs:
    """Container by instance and number of the run by domain's UUID, without swarmctl's help."""

    containers: dict[str, Running]
    domains: dict[str, int]

    @property
    def ids(self) -> list[str]:
        """Of all that runs."""
        running = [one.id for one in self.containers.values() if one.running]
        return sorted(running + list(self.domains))


def runs(cluster: Cluster) -> Runs:
    """What Docker and libvirt have of this cluster now."""
    return Runs(cluster.containers(), cluster.domains())


def as_desired(cluster: Cluster, ask: Ask, count: int = len(SERVICES)) -> bool:
    """Whether what runs is what ``ps`` shows of both services, ``count`` instances, each once."""
    views = ask("instance.list", {"names": list(SERVICES), "all": True})
    return (
        len(views) == len({one["instance"] for one in views}) == count
        and all(one["state"] == one["desired"] == "running" for one in views)
        and runs(cluster).ids == sorted(one["runtime_id"] for one in views)
    )


@contextmanager
def untouched(cluster: Cluster, ask: Ask) -> Iterator[Runs]:
    """A container and a VM run when it begins, and are the very same runs when it ends.

    ``ask`` is how the test makes requests: ``Cluster.call``, or ``Controllers.ask``.
    """
    encoded = [wire.encode_service(one) for one in services()]
    ask("service.apply", {"services": encoded})
    until(lambda: as_desired(cluster, ask), what="a real container and a real VM")
    before = runs(cluster)
    yield before
    assert runs(cluster) == before
    until(lambda: as_desired(cluster, ask), what="ps, that is true of them")
    views = ask("instance.list", {"names": list(SERVICES), "all": True})
    assert [one["restarts"] for one in views] == [0, 0]
