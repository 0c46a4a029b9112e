"""Many requests ahead of their answers, and what is refused as busy."""

import random

import attrs
import pytest

from swarmctl import pipeline
from swarmctl.pipeline import Pipeline, pause_s
from swarmctl.proto import limits
from swarmctl.proto.errors import Busy, Conflict, DeadlineExceeded, Refused
from swarmctl.proto.messages import Failure, Refuse, Reply
from swarmctl.transport.errors import Backpressure


@attrs.define
class Server:
    """The other end: answers the oldest request, in a time of its own making."""

    now: float = 100.0
    waiting: list = attrs.field(factory=list)
    most: int = 0
    seen: list = attrs.field(factory=list)
    last_id: int = 0
    refuse: object = None
    takes: int = 1_000_000
    silent: bool = False

    def next_id(self):
        self.last_id += 1
        return self.last_id

    def send(self, request):
        if len(self.waiting) >= self.takes:
            raise Backpressure("full")
        self.waiting.append(request)
        self.seen.append((self.now, request.params["n"]))
        self.most = max(self.most, len(self.waiting))

    def receive(self, timeout_s):
        if not self.waiting or self.silent:
            self.now += timeout_s
            raise DeadlineExceeded("nothing")
        self.now += 0.001
        request = self.waiting.pop(0)
        failure = self.refuse and self.refuse(request, self.now)
        return failure or Reply(request.id, request.params["n"] * 2)


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setattr(pipeline, "monotonic", lambda: server.now)
    random.seed(1)
    return server


def ask(server, count, **options):
    made = Pipeline(server.send, server.receive, server.next_id, "double", **options)
    return list(made.run({"n": number} for number in range(count)))


def busy(request, retry_ms=200):
    return Failure(request.id, "busy", f"retry in {retry_ms} ms", retry_ms=retry_ms)


def test_each_has_its_answer(server):
    """No more are under way than the window says."""
    answers = ask(server, 50, window=8)

    assert [(one.index, one.result, one.error) for one in answers] == [
        (n, 2 * n, None) for n in range(50)
    ]
    assert server.most == 8


def test_what_is_refused_is_sent_again_when_the_controller_says(server):
    """Not before, and not by hand; the answer tells how often."""
    server.refuse = lambda request, now: busy(request) if now < 100.5 else None
    answers = ask(server, 20, window=8)

    assert sorted(one.result for one in answers) == [2 * n for n in range(20)]
    assert all(one.error is None for one in answers)
    assert max(one.refusals for one in answers) >= 1
    first: dict[int, float] = {}
    for at, number in server.seen:
        if number in first:
            assert at - first[number] >= 0.2
        first[number] = at


def test_a_busy_controller_is_asked_less_at_once(server):
    """Refusals make the window smaller: half, not nothing, and once for those of one moment."""
    server.refuse = lambda request, now: busy(request, 10_000) if now < 100.05 else None
    made = Pipeline(server.send, server.receive, server.next_id, "double", 60.0, 64)
    for number, _ in enumerate(made.run({"n": number} for number in range(200))):
        if number == 0:
            opened = made._open
    assert opened == pytest.approx(33)
    assert made._open > 64 * 0.9


def test_errors_of_others_kinds_are_answers(server):
    """They are not repeated; neither is a refusal that does not say when."""

    def refuse(request, _now):
        if request.params["n"] == 1:
            return Failure(request.id, "conflict", "taken")
        if request.params["n"] == 2:
            return Failure(request.id, "busy", "full")
        return None

    server.refuse = refuse
    answers = {one.index: one for one in ask(server, 4)}

    assert isinstance(answers[1].error, Conflict)
    assert isinstance(answers[2].error, Busy)
    assert (answers[0].result, answers[3].result) == (0, 6)
    assert len(server.seen) == 4


def test_patience_has_an_end(server):
    """A controller that stays busy: each request ends with what it said, within its time."""
    server.refuse = lambda request, _now: busy(request)
    answers = ask(server, 5, timeout_s=2.0)

    assert {type(one.error) for one in answers} == {Busy}
    assert all(one.took_s <= 2.0 for one in answers)


def test_silence_ends_with_the_deadline(server):
    """Each request is told so, and the pipeline ends."""
    server.silent = True
    answers = ask(server, 30, timeout_s=3.0, window=10)

    assert {type(one.error) for one in answers} == {DeadlineExceeded}
    assert sorted(one.index for one in answers) == list(range(30))


def test_a_connection_that_takes_no_more_is_no_error(server):
    """What it did not take is sent after the next answers."""
    server.takes = 3
    answers = ask(server, 20, window=8)

    assert sorted(one.result for one in answers) == [2 * n for n in range(20)]


def test_a_refusal_of_the_connection_is_raised(server):
    """It is about no request of ours."""
    server.refuse = lambda _request, _now: Refuse("refused", "who are you")
    with pytest.raises(Refused):
        ask(server, 3)


def test_attempts_are_bounded():
    """However long the time."""
    assert pause_s(Busy("", retry_ms=200), 1, 10.0) is not None
    assert pause_s(Busy("", retry_ms=200), limits.BUSY_ATTEMPTS_MAX, 1e9) is None
    assert pause_s(Busy("", retry_ms=200), 1, 0.1) is None
    assert pause_s(Busy(""), 1, 10.0) is None
