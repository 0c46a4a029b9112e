"""Templates that nodes bring along: of what they run; a restored store may not know them."""

import structlog

from swarmctl.controller.state import ClusterState
from swarmctl.proto.errors import ProtocolError
from swarmctl.spec import wire

_log = structlog.get_logger(__name__)


def learn(state: ClusterState, templates: dict[bytes, bytes]) -> None:
    """Take in those that ``state`` does not know; they have to be what they are called."""
    for name, encoded in templates.items():
        if name in state.templates or wire.digest(encoded) != name:
            continue
        try:
            template = wire.decode_template(encoded)
        except ProtocolError as error:
            _log.warning("a node's template cannot be read", error=str(error))
            continue
        state.templates[name] = encoded
        if template.fenced:
            state.fences.templates.add(name)
