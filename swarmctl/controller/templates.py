"""Templates: those of services, and those that nodes bring along of what they run.

A restored store may not know the latter.  Whether one is fenced is known with it.
"""

import structlog

from swarmctl.controller.state import ClusterState, Service
from swarmctl.proto.errors import ProtocolError
from swarmctl.spec import wire

_log = structlog.get_logger(__name__)


def know(state: ClusterState, service: Service) -> None:
    """A service is there, or has changed."""
    state.templates[service.template] = service.encoded_template
    state.fences.learn(service.template, fenced=service.record.spec.template.fenced)


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
        state.fences.learn(name, fenced=template.fenced)
