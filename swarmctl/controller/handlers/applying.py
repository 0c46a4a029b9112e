"""``service.apply`` of one service, many at a time: the hot path of requests one by one.

A batch is validated, committed as one transaction (so it shares an fsync with the batches beside
it), followed by memory, and answered; the reconciler is woken once, and plans whatever has
gathered in one call. Each request is still decided by itself: one that is wrong, or whose name is
taken, fails alone, and one whose name another request is changing waits in a task of its own.

The budget of a request, in microseconds of the controller's main thread (2 cores at 3 GHz):

==============================  ====
read the frame, decode it         10
wait for its turn                  2
decode the service                 6
encode its template, check it     10
encode the record                  4
hand it to the disk                3
follow in memory                   2
encode and send the answer         8
==============================  ====

Measured: 37 without the sockets, some 20 more with them; beside it, on other threads, 10 for
encryption and 8 for the disk.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import frozen

from swarmctl.controller import records
from swarmctl.controller.access import ADMIN, role_of
from swarmctl.controller.cluster import Cluster
from swarmctl.controller.handlers.services import applied, check
from swarmctl.controller.records import service_key
from swarmctl.controller.state import Service
from swarmctl.controller.store.api import Put
from swarmctl.proto import limits
from swarmctl.proto.errors import Busy, SwarmError
from swarmctl.spec import wire
from swarmctl.transport.bulk import Bulk, SimpleRequest


def bulk(cluster: Cluster) -> dict[str, Bulk]:
    """Method to what serves its simple requests."""
    return {"service.apply": Applying(cluster)}


@frozen
class _Decided:
    """What becomes of one request once it is durable."""

    request: SimpleRequest
    service: Service
    put: Put
    result: dict[str, Any]


class Applying:
    """See the module's docstring."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def suits(self, user_id: str, params: Mapping[str, Any]) -> bool:
        """See Bulk: one service, applied for good, by one who may."""
        services = params.get("services")
        return (
            type(services) is tuple
            and len(services) == 1
            and type(services[0]) is bytes
            and type(params.get("create_only", False)) is bool
            and params.get("dry_run", False) is False
            and params.get("prune", "") == ""
            and not params.get("networks")
            and not params.get("groups")
            and role_of(user_id) == ADMIN
        )

    async def serve(self, requests: Sequence[SimpleRequest]) -> None:
        """See Bulk."""
        cluster = self._cluster
        held: list[str] = []
        try:
            with cluster.meters.stage("validate"):
                now = cluster.wall()
                decided = [
                    one
                    for request in requests
                    if (one := self._decide_or_answer(request, now, held)) is not None
                ]
            for part in _parts(decided):
                await self._commit(part)
        finally:
            for name in held:
                cluster.locks.release(name)

    def _decide_or_answer(
        self, request: SimpleRequest, now: float, held: list[str]
    ) -> _Decided | None:
        try:
            return self._decide(request, now, held)
        except SwarmError as error:
            request.fail(error)
            return None

    def _decide(self, request: SimpleRequest, now: float, held: list[str]) -> _Decided | None:
        """What to write for a request; None when it was answered or deferred."""
        params = request.call.params
        spec = wire.decode_service(params["services"][0])
        name = service_key(spec.tenant, spec.name)
        if spec.template.networks or not self._cluster.locks.try_hold(name):
            # Also what asks for networks: whether they are there, and stay, others decide.
            request.defer()
            return None
        held.append(name)
        create_only = params.get("create_only", False)
        record, result = applied(self._cluster, spec, now, create_only=create_only)
        if record is None:
            # It made sense when it was made; whether it is so still, the store has to say.
            request.defer()
            return None
        if record.completed:
            encoded, service = records.encode(record), Service(record)
        else:
            encoded, template = records.encode_new(record)
            service = Service(record, encoded_template=template)
        check(service)
        return _Decided(request, service, Put(name, encoded), result)

    async def _commit(self, decided: Sequence[_Decided]) -> None:
        try:
            await self._cluster.save_each([(one.service, one.put) for one in decided])
        except SwarmError as error:
            if isinstance(error, Busy):
                error.retry_ms = error.retry_ms or limits.BUSY_RETRY_MS  # Nothing was done.
            for one in decided:
                one.request.fail(error)
            return
        for one in decided:
            one.request.reply({"services": [one.result]})


def _parts(decided: Sequence[_Decided]) -> Iterator[Sequence[_Decided]]:
    """``decided`` in parts that may share a transaction; nearly always one."""
    start = size_bytes = 0
    for number, one in enumerate(decided):
        size_bytes += len(one.put.value)
        if size_bytes > limits.BULK_COMMIT_BYTES and number > start:
            yield decided[start:number]
            start, size_bytes = number, len(one.put.value)
    if decided:
        yield decided[start:]
