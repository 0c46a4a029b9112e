"""A client comes again when a busy controller says so, and when its connection is lost."""

import itertools

import attrs
import msgpack
import pytest

from swarmctl import client as clients
from swarmctl.client import Client
from swarmctl.credentials import Context
from swarmctl.proto import codec
from swarmctl.proto.errors import Busy, Conflict, NoController, SwarmError
from swarmctl.proto.messages import Failure, Reply, Request
from swarmctl.transport import keys
from swarmctl.transport.errors import HandshakeFailed, LinkLost


@attrs.define
class Connection:
    """Answers each request at once, with what ``outcomes`` say in turn."""

    outcomes: list
    asked: int = 0
    answers: list = attrs.field(factory=list)
    endpoint: str = "tcp://10.0.0.1:1"

    def send(self, payload):
        request = codec.decode(payload)
        if not isinstance(request, Request):
            return
        if not self.outcomes:
            raise LinkLost("gone", self.endpoint)
        self.asked += 1
        outcome = self.outcomes.pop(0)
        self.answers.append(None if outcome is LOST else codec.encode(outcome(request.id)))

    def receive(self, _timeout_s):
        answer = self.answers.pop(0)
        if answer is None:
            raise LinkLost("gone", self.endpoint)
        return answer

    def close(self):
        """Nothing is open."""


# An answer that never comes: the connection ends first.
LOST = object()


def busy(retry_ms):
    return lambda call_id: Failure(call_id, "busy", "later", retry_ms=retry_ms)


@pytest.fixture
def pauses(monkeypatch):
    """How long the client slept, without the sleeping."""
    slept = []
    monkeypatch.setattr(clients.time, "sleep", slept.append)
    return slept


def a_client(*outcomes, then=()):
    """A client whose first connection has these outcomes; ``then`` are the connections after."""
    client = Client.__new__(Client)
    client._connection = Connection(list(outcomes))
    client._ids = itertools.count(1)
    client.context = Context("c", ("tcp://10.0.0.1:1", "tcp://10.0.0.2:1"), "", "", "", "")
    client.tried = []

    def connect(addresses, _patience_s, _passing):
        client.tried.append(tuple(addresses))
        return Connection(list(then[len(client.tried) - 1]), endpoint=addresses[0])

    client._connect = connect
    return client


def done(call_id):
    return Reply(call_id, "done")


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


# --- a connection that is lost ---------------------------------------------------------------


def test_a_request_that_was_not_sent_is_sent_over_the_next_connection():
    """Whatever it asks: nothing of it was done; and whoever was lost is tried last."""
    client = a_client(then=[[done]])
    assert client.call("service.restart", {"names": ["web"]}) == "done"
    assert client.tried == [("tcp://10.0.0.2:1", "tcp://10.0.0.1:1")]


@pytest.mark.parametrize(
    ("method", "params"),
    [("instance.list", {}), ("service.apply", {"services": []}), ("service.scale", {})],
)
def test_what_is_safe_to_repeat_is_repeated(method, params):
    """Reads, and writes that say what should be: as often as it takes."""
    client = a_client(LOST, then=[[LOST], [], [done]])
    assert client.call(method, params) == "done"
    assert len(client.tried) == 3


@pytest.mark.parametrize(
    ("method", "params"),
    [("service.restart", {}), ("token.create", {}), ("service.apply", {"create_only": True})],
)
def test_what_may_have_been_done_and_does_more_twice_is_told(method, params):
    """The user decides: it is not sent again."""
    client = a_client(LOST, then=[[done]])
    with pytest.raises(LinkLost, match="may have been done"):
        client.call(method, params)
    assert not client.tried


def test_a_lost_connection_and_a_busy_controller_are_both_outlived(pauses):
    """In any order."""
    client = a_client(busy(300), LOST, then=[[busy(300), done]])
    assert client.call("node.list") == "done"
    assert len(pauses) == 2


# --- one address ------------------------------------------------------------------------------


def knock(monkeypatch, *outcomes, took_s=0.0):
    """Connect to one address, whose attempts end so; how many there were, and how it ended."""
    now, left, attempts = [100.0], list(outcomes), []

    def connect(addresses, *_, **__):
        attempts.append(tuple(addresses))
        now[0] += took_s
        if isinstance(left[0], Exception):
            raise left.pop(0)
        return left.pop(0)

    monkeypatch.setattr(clients, "connect", connect)
    monkeypatch.setattr(clients.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(clients.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    try:
        ours = keys.generate()
        context = Context("c", ("tcp://10.0.0.1:1",), ours.public, ours.public, ours.secret)
        return Client(context), len(attempts)
    except SwarmError as error:
        return error, len(attempts)


def hung_up():
    return HandshakeFailed("it hung up", "tcp://10.0.0.1:1")


def test_a_controller_that_hangs_up_while_it_begins_to_lead_is_tried_again(monkeypatch):
    connection = Connection([])
    client, attempts = knock(
        monkeypatch, hung_up(), NoController("not yet", "tcp://10.0.0.1:1"), connection
    )
    assert client._connection is connection
    assert attempts == 3


def test_one_that_goes_on_hanging_up_is_named_after_a_while(monkeypatch):
    error, attempts = knock(monkeypatch, *(hung_up() for _ in range(20)))
    assert isinstance(error, HandshakeFailed)
    assert 2 <= attempts < 20


def test_one_that_is_not_there_or_silent_is_not_tried_again(monkeypatch):
    error, attempts = knock(monkeypatch, NoController("nobody", "tcp://10.0.0.1:1"))
    assert isinstance(error, NoController)
    assert attempts == 1
    error, attempts = knock(monkeypatch, hung_up(), took_s=5.0)
    assert isinstance(error, HandshakeFailed)
    assert attempts == 1
