"""Records larger than one value of the store: they are kept, up to a bound that is named."""

import pytest

from swarmctl.controller import records
from swarmctl.controller.records import ServiceRecord
from swarmctl.controller.store.api import Put
from swarmctl.controller.store.chunks import ChunkedStore
from swarmctl.controller.store.memory import MemoryStore
from swarmctl.proto.errors import InvalidSpec
from swarmctl.proto.limits import RECORD_MAX_BYTES, VALUE_MAX_BYTES
from swarmctl.spec.models import ContainerSpec, ServiceSpec, Template


def record(size_bytes):
    container = ContainerSpec("box", environment={"TEXT": "x" * size_bytes})
    return ServiceRecord(ServiceSpec("web", Template(container=container)), 1.0, 2.0)


async def test_a_service_beyond_one_value_is_kept():
    """Encoded, committed in pieces, read, and the same again."""
    one = record(3 * VALUE_MAX_BYTES)
    store = ChunkedStore(await MemoryStore.open())
    await store.take_term()
    await store.commit([Put("service/default/web", records.encode(one))])

    (value,) = (await store.read("service/")).values()
    assert records.decode(value, ServiceRecord, "service/default/web") == one


def test_a_service_beyond_the_bound_is_refused():
    """The user is told how large it is, and how large it may be."""
    with pytest.raises(InvalidSpec, match=str(RECORD_MAX_BYTES)):
        records.encode(record(RECORD_MAX_BYTES))
