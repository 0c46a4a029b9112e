"""Messages to bytes and back: msgpack arrays, bounded, checked field by field.

The decoders are made once from the annotations of the message classes: each field has a checker
that returns the value in its Python form or raises.  Nothing that a peer sends gets past here
without the declared type, so the rest of the program need not check again.

A peer may be one minor release older or newer: missing fields at the end take their defaults,
surplus ones are ignored, and an unknown tag is reported as :class:`UnknownMessage`, which a
session may answer without closing.
"""

import operator
import threading
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, Final

import attrs
import msgpack

from swarmctl.proto import limits, messages
from swarmctl.proto.columns import EXACT, column_of, is_attrs, is_flat, one_by_one
from swarmctl.proto.errors import InternalError, ProtocolError

_Check = Callable[[Any], Any]

# Smaller messages cannot claim so many elements that it matters; see _check_claims.
_HARMLESS_BYTES: Final = 4096


class MalformedMessage(ProtocolError):
    """The bytes are not a message of this protocol."""

    code = "malformed"


class UnknownMessage(ProtocolError):
    """The tag is not one of ours: the peer is newer, or lost."""

    code = "unknown-message"


class MessageTooLarge(ProtocolError):
    """A message is over the size limit."""

    code = "too-large"


class _Packers(threading.local):
    """A packer for each thread: to make one, with its buffer, costs more than most messages."""

    def __init__(self) -> None:
        self.pack = msgpack.Packer(autoreset=True, unicode_errors="replace").pack


_packers = _Packers()


def encode(message: messages.Message) -> bytes:
    """``message`` as bytes.

    Raises:
        MessageTooLarge: it is over ``limits.MESSAGE_MAX_BYTES``; the sender has to split it.
        InternalError: something in it is not plain data.
    """
    parts = [message.TAG, *_ENCODERS[type(message)](message)]
    try:
        # Text from the system (a path, a daemon's error) may hold half characters: they become
        # question marks rather than the end of who wants to tell of them.
        packed: bytes = _packers.pack(parts)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InternalError(
            f"a {type(message).__name__} cannot be encoded: {_brief(error)}"
        ) from error
    if len(packed) > limits.MESSAGE_MAX_BYTES:
        raise MessageTooLarge(
            f"a {type(message).__name__} of {len(packed)} bytes is over the limit of "
            f"{limits.MESSAGE_MAX_BYTES}"
        )
    return packed


def decode(data: bytes) -> messages.Message:
    """The message in ``data``.

    Raises:
        MalformedMessage: not msgpack, not an array, or a field of the wrong type.
        UnknownMessage: a tag that this release does not know.
        MessageTooLarge: more bytes than ``limits.MESSAGE_MAX_BYTES``.
    """
    if len(data) > limits.MESSAGE_MAX_BYTES:
        raise MessageTooLarge(f"a message of {len(data)} bytes is over the limit")
    try:
        _check_claims(data)
        parts = msgpack.unpackb(data, use_list=False, strict_map_key=False)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise MalformedMessage(f"not a msgpack message: {_brief(error)}") from error
    if not isinstance(parts, tuple) or not parts or type(parts[0]) is not int:
        raise MalformedMessage("a message is an array that begins with its tag")
    decoder = _DECODERS.get(parts[0])
    if decoder is None:
        raise UnknownMessage(f"no message has tag {parts[0]}")
    try:
        return typing.cast("messages.Message", decoder(parts[1:]))
    except (TypeError, ValueError, RecursionError) as error:
        raise MalformedMessage(_brief(error)) from error


def _check_claims(data: bytes) -> None:
    """Refuse a large message whose arrays claim more elements than it has, before any is made.

    The parser makes an array as large as it claims to be when it meets its head: a hundred heads
    within each other, of millions each, would take all memory.  Skipping makes nothing.
    """
    if len(data) > _HARMLESS_BYTES:
        unpacker = msgpack.Unpacker(max_buffer_size=len(data), read_size=_HARMLESS_BYTES)
        unpacker.feed(data)
        unpacker.skip()


def _brief(error: BaseException) -> str:
    return str(error)[:200] or type(error).__name__


# --- encoders: attrs objects to tuples ------------------------------------------------------


def _encoder_of(kind: Any) -> Callable[[Any], Any] | None:
    """How a field of type ``kind`` is written; None when msgpack takes it as it is."""
    if is_attrs(kind):
        return _object_encoder(kind)
    if typing.get_origin(kind) is tuple:
        arguments = typing.get_args(kind)
        item = _encoder_of(arguments[0])
        if len(arguments) == 2 and arguments[1] is Ellipsis and item is not None:
            return lambda values: [item(value) for value in values]
    return None


def _object_encoder(cls: type) -> Callable[[Any], Sequence[Any]]:
    """A function from an instance of ``cls`` to its fields, in order."""
    hints = typing.get_type_hints(cls)
    names = [each.name for each in attrs.fields(cls)]
    encoders = [_encoder_of(hints[name]) for name in names]
    deep = [(index, encoder) for index, encoder in enumerate(encoders) if encoder is not None]
    read: Callable[[Any], Sequence[Any]]
    if len(names) > 1:  # attrgetter gives a tuple of two or more, and one field as it is.
        read = operator.attrgetter(*names)
    else:
        read = lambda value: [getattr(value, name) for name in names]  # noqa: E731 - as its twin
    if not deep:
        return read

    def encode_object(value: Any) -> list[Any]:
        fields = list(read(value))
        for index, encoder in deep:
            # What is empty (most of it, in a launch) is written as it is.
            if fields[index]:
                fields[index] = encoder(fields[index])
        return fields

    return encode_object


# --- decoders: checkers by type -------------------------------------------------------------


def _exactly(*kinds: type) -> _Check:
    def check(value: Any) -> Any:
        if type(value) not in kinds:
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise TypeError(f"expected {expected}, got {type(value).__name__}")
        return value

    return check


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"expected a number, got {type(value).__name__}")
    return float(value)


def _tuple_checker(arguments: tuple[Any, ...]) -> _Check:
    whole = _exactly(tuple)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        item, many = _checker(arguments[0]), column_of(arguments[0])

        def check_all(value: Any) -> Any:
            found = many(whole(value)) if value else value
            if found is None:
                found = [item(one) for one in value]
            return tuple(found)

        return check_all
    items = [_checker(one) for one in arguments]
    # The common case at the cost of a comparison; what differs is looked at item by item.
    exact = arguments if all(one in EXACT for one in arguments) else None

    def check(value: Any) -> Any:
        if type(value) is tuple and tuple(map(type, value)) == exact:
            return value
        if len(whole(value)) < len(items):
            raise TypeError(f"expected {len(items)} elements, got {len(value)}")
        return tuple([item(one) for item, one in zip(items, value, strict=False)])

    return check


def _dict_checker(arguments: tuple[Any, ...]) -> _Check:
    key, item = (_checker(one) for one in arguments)
    whole = _exactly(dict)
    keys, items = (column_of(one) if one in EXACT else one_by_one for one in arguments)

    def check(value: Any) -> Any:
        if keys(whole(value)) is not None and items(value.values()) is not None:
            return value
        return {key(k): item(v) for k, v in value.items()}

    return check


def _plain_data(value: Any) -> Any:
    """Any data, nested no deeper than somebody might have to write it again."""
    layer = [value] if type(value) in _CONTAINERS else []
    for _ in range(limits.NESTING_MAX):
        if not layer:
            return value
        layer = [
            inner
            for one in layer
            for inner in (one.values() if type(one) is dict else one)
            if type(inner) in _CONTAINERS
        ]
    raise TypeError(f"data nested deeper than {limits.NESTING_MAX}")


# Remembered combinations of types of one class: there are few in use, and a peer cannot add more.
_SIGNATURES_MAX: Final = 64
_CONTAINERS: Final = frozenset({tuple, dict})
_PLAIN: Final[dict[Any, _Check]] = {
    Any: _plain_data,
    float: _number,
    **{kind: _exactly(kind) for kind in (int, str, bytes, bool)},
}


def _checker(kind: Any) -> _Check:
    if kind in _PLAIN:
        return _PLAIN[kind]
    if is_attrs(kind):
        return _object_decoder(kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return _tuple_checker(arguments)
    if origin is dict:
        return _dict_checker(arguments)
    if origin in (types.UnionType, typing.Union) and type(None) in arguments:
        inner = _checker(next(one for one in arguments if one is not type(None)))
        return lambda value: None if value is None else inner(value)
    raise AssertionError(f"no checker for a field of type {kind}")


def _object_decoder(cls: type) -> _Check:
    """A function from the tuple of fields to an instance of ``cls``.

    A message holds thousands of reports whose fields have the same types as those before, so the
    types of a tuple that was found right are remembered: the next one like it costs a look-up,
    and a check of those fields that contain others.
    """
    hints = typing.get_type_hints(cls)
    kinds = [hints[each.name] for each in attrs.fields(cls)]
    checks = [_checker(kind) for kind in kinds]
    deep = [index for index, kind in enumerate(kinds) if not is_flat(kind)]
    required = sum(each.default is attrs.NOTHING for each in attrs.fields(cls))
    accepted: set[tuple[type, ...]] = set()

    def decode_object(values: Any) -> Any:
        if type(values) is not tuple:
            raise TypeError(f"{cls.__name__}: expected an array, got {type(values).__name__}")
        signature = tuple(map(type, values))
        if signature not in accepted:
            return cls(*check_fields(values, signature))
        arguments = list(values)
        for index in deep:
            if index < len(arguments) and arguments[index]:
                arguments[index] = checks[index](arguments[index])
        return cls(*arguments)

    def check_fields(values: tuple[Any, ...], signature: tuple[type, ...]) -> list[Any]:
        if len(values) < required:
            raise TypeError(f"{cls.__name__}: {len(values)} of {required} fields")
        try:
            arguments = [check(value) for check, value in zip(checks, values, strict=False)]
        except TypeError as error:
            raise TypeError(f"{cls.__name__}: {error}") from error
        # Not remembered: surplus fields, and a whole number that became a float.
        if tuple(map(type, arguments)) == signature and len(accepted) < _SIGNATURES_MAX:
            accepted.add(signature)
        return arguments

    return decode_object


# Read from the module, not from __subclasses__(): attrs makes each slotted class twice.
_KINDS: Final[list[type[messages.Message]]] = [
    each
    for each in vars(messages).values()
    if isinstance(each, type) and issubclass(each, messages.Message) and each.TAG
]
_ENCODERS: Final = {kind: _object_encoder(kind) for kind in _KINDS}
_DECODERS: Final = {kind.TAG: _object_decoder(kind) for kind in _KINDS}
assert len(_DECODERS) == len(_KINDS), "two messages share a tag"
