"""What a node is told: from its instances to :class:`~swarmctl.proto.messages.Assign`.

Entries of one service and template travel as one group, and a template travels once to each
session.
"""

from collections.abc import Iterable

from swarmctl.controller.state import ClusterState, Instance, Node
from swarmctl.proto.messages import Assign, AssignedGroup


def pending(state: ClusterState, node: Node) -> Assign:
    """The message that brings ``node`` up to date; the node counts as told from here on."""
    full = node.needs_full
    instances = node.instances.values() if full else node.dirty.values()
    told = [one for one in instances if not one.quarantined]
    kept = [one for one in told if not one.removing]
    node.assignment_version += 1
    message = Assign(
        cluster_id=state.cluster_id,
        term=state.term,
        version=node.assignment_version,
        full=full,
        templates=_new_templates(state, node, kept),
        groups=_grouped(kept),
        removed=tuple(one.incarnation for one in told if one.removing),
    )
    node.known_templates.update(message.templates)
    node.dirty.clear()
    node.needs_full = False
    return message


def _new_templates(
    state: ClusterState, node: Node, instances: Iterable[Instance]
) -> dict[bytes, bytes]:
    wanted = {one.template for one in instances} - node.known_templates
    return {name: state.templates[name] for name in wanted if name in state.templates}


def _grouped(instances: Iterable[Instance]) -> tuple[AssignedGroup, ...]:
    groups: dict[tuple[tuple[str, str], bytes, str], list[tuple[int, int, int, int, int]]] = {}
    for one in instances:
        groups.setdefault((one.key, one.template, one.driver), []).append(
            (one.slot, one.incarnation, int(one.desired), one.generation, one.carried_restarts)
        )
    return tuple(
        AssignedGroup(key[1], key[0], template, driver, tuple(entries))
        for (key, template, driver), entries in groups.items()
    )
