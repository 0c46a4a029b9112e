"""Specs as bytes: there and back, canonical, and open to what later releases add."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmctl.proto.errors import ProtocolError
from swarmctl.spec import wire
from tests.strategies import service_specs, templates


@given(service_specs)
def test_services_come_back(spec):
    """Any service survives the wire."""
    assert wire.decode_service(wire.encode_service(spec)) == spec


@given(templates)
def test_templates_come_back(template):
    """Any template survives the wire, and equal ones are equal bytes."""
    encoded = wire.encode_template(template)

    assert wire.decode_template(encoded) == template
    assert wire.encode_template(wire.decode_template(encoded)) == encoded
    assert len(wire.digest(encoded)) == wire.DIGEST_BYTES


@given(service_specs)
def test_unknown_fields_are_ignored(spec):
    """A newer release may say more."""
    plain = msgpack.unpackb(wire.encode_service(spec))
    plain["from_the_future"] = [1]
    plain["template"]["also"] = {}

    assert wire.decode_service(msgpack.packb(plain)) == spec


@given(st.binary(max_size=60))
def test_any_bytes_are_a_service_or_refused(data):
    """Random bytes never raise anything but ProtocolError."""
    with pytest.raises(ProtocolError):
        wire.decode_service(data)
