"""Whatever arrives, the codec gives a message of the declared types, or a ProtocolError."""

import resource
import types
import typing

import attrs
import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmctl.proto import codec, limits, messages
from swarmctl.proto.errors import InternalError, ProtocolError
from swarmctl.proto.messages import (
    Heartbeat,
    Hello,
    InstanceReport,
    Message,
    NodeFacts,
    Report,
    Request,
    StreamData,
)

KINDS = sorted(
    (
        one
        for one in vars(messages).values()
        if isinstance(one, type) and issubclass(one, Message) and one.TAG
    ),
    key=lambda one: one.TAG,
)

_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.floats(allow_nan=False),
    _texts,
    st.binary(max_size=12),
)
_plain = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple) | st.dictionaries(_texts, inner, max_size=3)
    ),
    max_leaves=6,
)
_LEAVES = {
    str: _texts,
    bytes: st.binary(max_size=12),
    bool: st.booleans(),
    int: st.integers(-(1 << 63), (1 << 64) - 1),
    float: st.floats(allow_nan=False),
    typing.Any: _plain,
}


def values_of(kind):
    """Values of an annotation of a message's field."""
    if kind in _LEAVES:
        return _LEAVES[kind]
    if attrs.has(kind):
        return instances_of(kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(values_of(arguments[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values_of, arguments))
    if origin is dict:
        return st.dictionaries(*map(values_of, arguments), max_size=3)
    assert origin is types.UnionType, kind
    return st.one_of(*(st.none() if one is type(None) else values_of(one) for one in arguments))


def instances_of(cls):
    """Instances of a message class, or of a part, generated from its annotations."""
    hints = typing.get_type_hints(cls)
    return st.builds(cls, **{one.name: values_of(hints[one.name]) for one in attrs.fields(cls)})


any_message = st.sampled_from(KINDS).flatmap(instances_of)


def test_every_message_class_has_a_tag_of_its_own():
    """Tags are the wire's names: two classes with one would read each other's fields."""
    assert len(KINDS) == len({one.TAG for one in KINDS}) >= 18


@pytest.mark.parametrize("kind", KINDS, ids=lambda one: one.__name__)
def test_message_survives_the_wire(kind):
    """What is sent is what is read, field by field, for any values of the declared types."""

    @given(instances_of(kind))
    @settings(max_examples=40, deadline=None)
    def check(message):
        read = codec.decode(codec.encode(message))

        assert read == message
        assert type(read) is type(message)

    check()


def _is_of(kind, value):
    """Whether ``value`` is what the annotation ``kind`` declares, all the way down."""
    if kind is typing.Any:
        return True
    if kind in _LEAVES:
        return type(value) is kind
    if attrs.has(kind):
        hints = typing.get_type_hints(kind)
        return type(value) is kind and all(
            _is_of(hints[one.name], getattr(value, one.name)) for one in attrs.fields(kind)
        )
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and arguments[-1] is Ellipsis:
        return type(value) is tuple and all(_is_of(arguments[0], one) for one in value)
    if origin is tuple:
        return type(value) is tuple and all(map(_is_of, arguments, value))
    if origin is dict:
        return type(value) is dict and all(
            _is_of(arguments[0], k) and _is_of(arguments[1], v) for k, v in value.items()
        )
    return any(value is None if one is type(None) else _is_of(one, value) for one in arguments)


def read_or_refused(data):
    """Decode ``data``; a message must be of its declared types, an error a ProtocolError."""
    try:
        message = codec.decode(data)
    except ProtocolError:
        return
    assert _is_of(type(message), message)


@given(st.binary(max_size=200))
@settings(max_examples=500, deadline=None)
def test_random_bytes_raise_nothing_but_protocol_errors(data):
    """Noise from the network is an error of the peer, never of ours."""
    read_or_refused(data)


@given(st.lists(_plain | _scalars, max_size=8), st.sampled_from([one.TAG for one in KINDS]))
@settings(max_examples=500, deadline=None)
def test_random_fields_raise_nothing_but_protocol_errors(fields, tag):
    """A tag that we know, with fields of the wrong kind or number."""
    read_or_refused(msgpack.packb([tag, *fields]))


@given(any_message, st.data())
@settings(max_examples=400, deadline=None)
def test_damaged_messages_raise_nothing_but_protocol_errors(message, data):
    """Bytes changed, cut out or put in: what comes out is of the declared types, or refused."""
    damaged = bytearray(codec.encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(damaged) - 1)))
        damaged[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    read_or_refused(bytes(damaged))


@given(any_message, st.data())
@settings(max_examples=400, deadline=None)
def test_a_field_replaced_raises_nothing_but_protocol_errors(message, data):
    """Valid msgpack whose value somewhere inside is another: types are checked all the way."""
    parts = msgpack.unpackb(codec.encode(message), strict_map_key=False)
    place = parts
    while True:
        at = data.draw(st.integers(0, len(place) - 1))
        if not isinstance(place[at], list) or not place[at] or data.draw(st.booleans()):
            break
        place = place[at]
    place[at] = data.draw(_plain)
    read_or_refused(msgpack.packb(parts))


@given(any_message, _plain)
@settings(max_examples=200, deadline=None)
def test_a_newer_peer_is_understood(message, surplus):
    """Fields that this release does not know are ignored."""
    parts = msgpack.unpackb(codec.encode(message), strict_map_key=False)

    assert codec.decode(msgpack.packb([*parts, surplus])) == message


@pytest.mark.parametrize("kind", KINDS, ids=lambda one: one.__name__)
def test_an_older_peer_is_understood(kind):
    """Fields missing at the end take their defaults; one that is required is an error."""
    fields = attrs.fields(kind)
    required = sum(one.default is attrs.NOTHING for one in fields)

    @given(instances_of(kind))
    @settings(max_examples=10, deadline=None)
    def check(message):
        parts = msgpack.unpackb(codec.encode(message), strict_map_key=False)
        for count in range(len(fields)):
            short = msgpack.packb(parts[: 1 + count])
            if count < required:
                with pytest.raises(codec.MalformedMessage, match="fields"):
                    codec.decode(short)
                continue
            kept = {one.name: getattr(message, one.name) for one in fields[:count]}

            assert codec.decode(short) == kind(**kept)

    check()


def test_fields_with_defaults_are_last():
    """Only such fields can be added later, so none may come before one that is required."""
    for kind in KINDS:
        defaults = [one.default is not attrs.NOTHING for one in attrs.fields(kind)]

        assert defaults == sorted(defaults), kind.__name__


@given(st.integers().filter(lambda tag: tag not in {one.TAG for one in KINDS}))
def test_an_unknown_tag_is_told_apart_from_garbage(tag):
    """A peer that is newer sends what this release has no name for."""
    if not -(1 << 63) <= tag < 1 << 64:
        return
    with pytest.raises(codec.UnknownMessage):
        codec.decode(msgpack.packb([tag, 1, 2]))


@pytest.mark.parametrize("tag", [True, 5.0, "5", None, [5]])
def test_a_tag_is_an_integer(tag):
    """True is not 1 on this wire."""
    with pytest.raises(codec.MalformedMessage):
        codec.decode(msgpack.packb([tag, 1, 1, 0, 0, []]))


def test_a_message_over_the_bound_is_refused_at_both_ends():
    """Neither is a large one sent nor, whoever sent it, parsed."""
    large = StreamData(1, "stdout", b"x" * limits.MESSAGE_MAX_BYTES)
    with pytest.raises(codec.MessageTooLarge, match="StreamData"):
        codec.encode(large)
    with pytest.raises(codec.MessageTooLarge):
        codec.decode(b"\x00" * (limits.MESSAGE_MAX_BYTES + 1))


def test_a_full_assignment_of_a_large_node_fits():
    """10,000 instances are far from the bound, as limits.py says."""
    entries = tuple((slot, 1 << 41 | slot, 0, 0, 0) for slot in range(10_000))
    group = messages.AssignedGroup("web", "default", b"t" * 8, "docker", entries)

    assert len(codec.encode(messages.Assign("c", 1, 1, full=True, groups=(group,)))) < 1 << 20


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1a"], ids=["arrays", "maps"])
@pytest.mark.parametrize("depth", [40, 500, 5_000, 1_000_000])
def test_nesting_is_bounded(opening, depth):
    """A message that opens array after array is refused, not followed down."""
    bomb = b"\x94\x14\x01\xa1m\x81\xa1p" + opening * depth + b"\xc0"
    with pytest.raises(codec.MalformedMessage):
        codec.decode(bomb)


def test_nesting_that_messages_need_is_fine():
    """Parameters as deep as a spec is."""
    deep = value = {}
    for _ in range(limits.NESTING_MAX - 2):
        value["a"] = value = {}
    request = Request(1, "m", {"spec": deep})

    assert codec.decode(codec.encode(request)) == request


def test_arrays_that_claim_more_than_they_hold_take_no_memory():
    """Heads of huge arrays within each other are refused before anything is made of them."""
    bomb = b"\x94" + b"\xdd\x00\x50\x00\x00" * 500 + b"\xc0" * (6 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(codec.MalformedMessage):
        codec.decode(bomb)

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 * 1024


def test_half_characters_do_not_stop_a_report():
    """A reason made from a path with undecodable bytes is told, with a mark in their place."""
    report = Report(1, (InstanceReport(1, 8, reason="no file \udcff"),))

    assert codec.decode(codec.encode(report)).instances[0].reason == "no file ?"


@pytest.mark.parametrize("value", [object(), 1 << 70, {1, 2}, [[]] * 3 + [object()]])
def test_a_result_that_is_not_plain_data_is_our_own_error(value):
    """It is a defect here, and is said before anything is sent."""
    with pytest.raises(InternalError, match="Reply"):
        codec.encode(messages.Reply(1, value))


def test_a_number_may_come_as_an_integer():
    """A peer in another language writes 2 for 2.0."""
    parts = [messages.Welcome.TAG, 1, "c", 1, 2, 5]

    assert codec.decode(msgpack.packb(parts)).heartbeat_s == 2.0


def test_defaults_are_not_shared():
    """Two hellos without labels do not get one dictionary."""
    one, two = (
        codec.decode(codec.encode(Hello(1, "0", "n", "b", "", 0, NodeFacts()))) for _ in "ab"
    )

    assert one.facts.labels is not two.facts.labels
    assert codec.decode(codec.encode(Heartbeat(1, 1, 0, 0))).reasons == ()
