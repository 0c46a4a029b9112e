"""Specs as msgpack: the form in the store, on the wire and in an agent's journal.

Maps by field name, defaults left out, unknown fields ignored: so that releases one minor version
apart read each other, and a store outlives a release.
"""

import hashlib
from enum import Enum
from functools import cache, lru_cache
from typing import Any, Final, TypeVar

import msgpack
from attrs import has
from cattrs import Converter
from cattrs.errors import BaseValidationError
from cattrs.gen import make_dict_unstructure_fn

from swarmctl.proto.errors import ProtocolError
from swarmctl.spec.models import ServiceSpec, Template

_T = TypeVar("_T")

# 64 bits tell apart the templates of one cluster; they are compared within one node only.
DIGEST_BYTES = 8
# Templates in use on a node, or in a cluster, at a time; a thousand services are a large one.
TEMPLATES_CACHED = 4_096


@cache
def converter() -> Converter:
    """The one converter between specs and plain msgpack types.

    Without cattrs' detailed errors, which take half of the time that reading a spec takes; that
    the bytes are not a spec is all that anybody is told.
    """
    made = Converter(forbid_extra_keys=False, omit_if_default=True, detailed_validation=False)
    made.register_unstructure_hook_factory(
        has, lambda cls: make_dict_unstructure_fn(cls, made, _cattrs_omit_if_default=True)
    )
    made.register_unstructure_hook(Enum, lambda value: value.value)
    return made


def encode_template(template: Template) -> bytes:
    """Canonical bytes of ``template``; equal templates give equal bytes."""
    return _pack(template)


@lru_cache(maxsize=TEMPLATES_CACHED)
def decode_template(data: bytes) -> Template:
    """The inverse of :func:`encode_template`; the same bytes give the same (frozen) object.

    Raises:
        ProtocolError: the bytes are not a template.
    """
    return _unpack(data, Template)


def encode_service(spec: ServiceSpec) -> bytes:
    """Canonical bytes of ``spec``."""
    return _pack(spec)


def decode_service(data: bytes) -> ServiceSpec:
    """The inverse of :func:`encode_service`.

    Raises:
        ProtocolError: the bytes are not a service.
    """
    return _unpack(data, ServiceSpec)


def encode_plain(value: Any) -> bytes:
    """Canonical bytes of a network's definition or of a security group."""
    return _pack(value)


def decode_plain(data: bytes, cls: type[_T]) -> _T:
    """The inverse of :func:`encode_plain`.

    Raises:
        ProtocolError: the bytes are not a ``cls``.
    """
    return _unpack(data, cls)


def digest(encoded: bytes) -> bytes:
    """The name under which encoded bytes are interned, :data:`DIGEST_BYTES` long."""
    return hashlib.blake2b(encoded, digest_size=DIGEST_BYTES).digest()


def canonical(plain: Any) -> bytes:
    """Plain data (of the :func:`converter`) as bytes; maps in the order of their keys."""
    packed: bytes = msgpack.packb(_sorted(plain))
    return packed


_NESTED: Final = (dict, list, tuple)


def _sorted(value: Any) -> Any:
    if type(value) is dict:
        return {
            key: _sorted(inner) if type(inner) in _NESTED else inner
            for key, inner in sorted(value.items())
        }
    if type(value) is list or type(value) is tuple:
        return [_sorted(inner) if type(inner) in _NESTED else inner for inner in value]
    return value


def _pack(value: Any) -> bytes:
    return canonical(converter().unstructure(value))


def _unpack(data: bytes, cls: type[_T]) -> _T:
    try:
        return converter().structure(msgpack.unpackb(data, strict_map_key=True), cls)
    except (
        BaseValidationError,
        AssertionError,
        TypeError,
        ValueError,
        AttributeError,
        LookupError,
        ArithmeticError,  # A float without end where a whole number should be.
    ) as error:
        # cattrs lets the error of a hook or a validator through; all mean the same here.
        raise ProtocolError(f"not a valid {cls.__name__}: {error}") from error
