"""A client comes again when a busy controller says so."""

import itertools

import attrs
import msgpack
import pytest

from swarmctl import client as clients
from swarmctl.client import Client
from swarmctl.proto import codec
from swarmctl.proto.errors import Busy, Conflict
from swarmctl.proto.messages import Failure, Reply


@attrs.define
class Connection:
    """Answers each request at once, with what ``outcomes`` say in turn."""

    outcomes: list
    asked: int = 0
    answers: list = attrs.field(factory=list)
    endpoint: str = "tcp://10.0.0.1:1"

    def send(self, payload):
        request = codec.decode(payload)
        self.asked += 1
        self.answers.append(codec.encode(self.outcomes.pop(0)(request.id)))

    def receive(self, _timeout_s):
        return self.answers.pop(0)


def busy(retry_ms):
    return lambda call_id: Failure(call_id, "busy", "later", retry_ms=retry_ms)


@pytest.fixture
def pauses(monkeypatch):
    """How long the client slept, without the sleeping."""
    slept = []
    monkeypatch.setattr(clients.time, "sleep", slept.append)
    return slept


def a_client(*outcomes):
    client = Client.__new__(Client)
    client._connection = Connection(list(outcomes))
    client._ids = itertools.count(1)
    return client


def test_it_asks_again_after_the_time_it_was_told(pauses):
    """The caller sees the result only."""
    client = a_client(busy(300), busy(500), lambda call_id: Reply(call_id, "done"))

    assert client.call("service.apply") == "done"
    assert [0.3 <= pauses[0] <= 0.375, 0.5 <= pauses[1] <= 0.625] == [True, True]


def test_it_does_not_ask_again_beyond_its_time(pauses):
    """Then the refusal is what the caller sees."""
    client = a_client(busy(5_000))
    with pytest.raises(Busy):
        client.call("service.apply", timeout_s=1.0)

    assert not pauses


@pytest.mark.parametrize(
    "outcome", [busy(0), lambda call_id: Failure(call_id, "conflict", "taken")]
)
def test_what_may_have_been_done_is_not_repeated(pauses, outcome):
    """Only a refusal that says when says that nothing was done."""
    client = a_client(outcome)
    with pytest.raises((Busy, Conflict)):
        client.call("service.apply")

    assert client._connection.asked == 1
    assert not pauses


def test_what_only_a_newer_controller_says_is_passed_over():
    """A message with a tag of tomorrow, before the answer."""
    client = a_client(lambda call_id: Reply(call_id, "done"))
    client._connection.answers.append(msgpack.packb([120, "news"]))
    assert client.call("service.apply") == "done"
