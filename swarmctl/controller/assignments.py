"""What a node is told: from its instances to :class:`~swarmctl.proto.messages.Assign`.

Entries of one service and template travel as one group, and a template travels once to each
session.  What is too large for one message is sent in parts: the first may be *full*, the others
are changes to it; should one be lost, the digests differ, and all of it is sent again.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import structlog

from swarmctl.controller.instance import Instance
from swarmctl.controller.state import ClusterState, Node
from swarmctl.proto import limits
from swarmctl.proto.errors import SwarmError
from swarmctl.proto.messages import Assign, AssignedGroup, Message
from swarmctl.proto.states import NodeState

_log = structlog.get_logger(__name__)

# At the most: seven integers of nine bytes; the names of a group; a digest and the array's head.
_ENTRY_BYTES: Final = 66
_GROUP_BYTES: Final = 256
_TEMPLATE_BYTES: Final = 32
# A port with an address of each version, their routes and resolvers, and names of full length.
_ATTACHMENT_BYTES: Final = 640
# The token for the agent in a VM, and its incarnation.
_TOKEN_BYTES: Final = 512
# All of them, for an instance that shares nothing.
_ENTRY_MAX_BYTES: Final = _ENTRY_BYTES + _GROUP_BYTES + _TEMPLATE_BYTES


def dispatch(
    state: ClusterState,
    names: Iterable[str],
    send: Callable[[bytes, Message], None],
    now: float,
) -> None:
    """Send the nodes ``names`` what has changed for them."""
    for name in names:
        node = state.nodes.get(name)
        if node is None or node.peer is None or node.state is NodeState.LOST:
            continue  # It is sent all of it when it says hello.
        node.told_at = now
        try:
            for message in pending(state, node):
                send(node.peer, message)
        except SwarmError as error:
            # It will say hello again, or its digest will differ: both send all of it.
            _log.info("assignment not delivered", node=node.name, error=str(error))
            node.known_templates.clear()
            state.resend(node)


def pending(state: ClusterState, node: Node) -> list[Assign]:
    """The messages that bring ``node`` up to date; the node counts as told from here on."""
    full = node.needs_full
    instances = node.instances.values() if full else node.dirty.values()
    told = [one for one in instances if not one.quarantined]
    node.dirty.clear()
    node.needs_full = False
    size_bytes = len(told) * _ENTRY_MAX_BYTES + _templates_bytes(state, told)
    if state.ports.attachments:
        size_bytes += sum(_attached_bytes(state, one) for one in told)
    if size_bytes <= limits.ASSIGN_PART_BYTES:
        return [_message(state, node, told, full=full)]
    return [
        _message(state, node, part, full=full and number == 0)
        for number, part in enumerate(_parts(state, node, told))
    ]


def _templates_bytes(state: ClusterState, instances: Iterable[Instance]) -> int:
    """What all templates of ``instances`` take at the most."""
    encoded = state.templates
    return sum([len(encoded.get(name, b"")) for name in {one.template for one in instances}])


def _attached_bytes(state: ClusterState, instance: Instance) -> int:
    count = len(state.ports.attachments.get(instance.incarnation, ()))
    return _ATTACHMENT_BYTES * count + (_TOKEN_BYTES if count else 0)


def _message(
    state: ClusterState, node: Node, instances: Sequence[Instance], *, full: bool
) -> Assign:
    removed = tuple([one.incarnation for one in instances if one.removing])
    kept = [one for one in instances if not one.removing] if removed else instances
    node.assignment_version += 1
    message = Assign(
        cluster_id=state.cluster_id,
        term=state.term,
        version=node.assignment_version,
        full=full,
        templates=_new_templates(state, node, kept),
        groups=_grouped(state, kept),
        removed=removed,
        tokens=_tokens(state, kept) if state.ports.attachments else {},
    )
    node.known_templates.update(message.templates)
    return message


def _tokens(state: ClusterState, instances: Iterable[Instance]) -> dict[int, str]:
    """For the agents in VMs among them."""
    plugged = [one for one in instances if one.incarnation in state.ports.attachments]
    issued = {
        one.incarnation: state.guests.issue(one, state.templates.get(one.template, b""))
        for one in plugged
    }
    return {incarnation: token for incarnation, token in issued.items() if token}


def _parts(
    state: ClusterState, node: Node, instances: Sequence[Instance]
) -> Iterator[list[Instance]]:
    """``instances`` in parts that fit a message each; at least one part."""
    part: list[Instance] = []
    size_bytes = 0
    groups: set[tuple[tuple[str, str], bytes, str]] = set()
    templates: set[bytes] = set()
    for one in instances:
        more = _ENTRY_BYTES + _attached_bytes(state, one)
        if (one.key, one.template, one.driver) not in groups:
            more += _GROUP_BYTES
        if one.template not in templates and one.template not in node.known_templates:
            more += _TEMPLATE_BYTES + len(state.templates.get(one.template, b""))
        if part and size_bytes + more > limits.ASSIGN_PART_BYTES:
            yield part
            # Counted anew: the next part names its groups again, and no more templates than that.
            part, size_bytes, groups = [], 0, set()
            more = _ENTRY_BYTES + _GROUP_BYTES + _TEMPLATE_BYTES + _attached_bytes(state, one)
            more += len(state.templates.get(one.template, b""))
        part.append(one)
        size_bytes += more
        groups.add((one.key, one.template, one.driver))
        templates.add(one.template)
    yield part


def _new_templates(
    state: ClusterState, node: Node, instances: Iterable[Instance]
) -> dict[bytes, bytes]:
    wanted = {one.template for one in instances} - node.known_templates
    return {name: state.templates[name] for name in wanted if name in state.templates}


def _grouped(state: ClusterState, instances: Iterable[Instance]) -> tuple[AssignedGroup, ...]:
    groups: dict[tuple[tuple[str, str], bytes, str], list[tuple[int, int, int, int, int]]] = {}
    failures: dict[tuple[tuple[str, str], bytes, str], dict[int, int]] = {}
    for one in instances:
        entry = (one.slot, one.incarnation, int(one.desired), one.generation, one.carried[0])
        of = (one.key, one.template, one.driver)
        if one.carried[1]:
            failures.setdefault(of, {})[one.incarnation] = one.carried[1]
        found = groups.get(of)
        if found is None:
            groups[of] = [entry]
        else:
            found.append(entry)
    plugged, attachments = state.ports.templates, state.ports.attachments
    return tuple(
        [
            AssignedGroup(
                key[1],
                key[0],
                template,
                driver,
                tuple(entries),
                tuple([attachments.get(entry[1], ()) for entry in entries])
                if template in plugged
                else (),
                failures.get((key, template, driver), {}),
            )
            for (key, template, driver), entries in groups.items()
        ]
    )
