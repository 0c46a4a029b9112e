"""``deploy.placement`` of a stack file, and the checks it shares with ``run``'s options."""

from typing import Final

from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec.models import AffinityTerm, Placement
from swarmctl.spec.names import check_service_name
from swarmctl.spec.reading import Field

# Past this a node's own bound on instances decides.
PER_NODE_MAX: Final = 1_000_000
WEIGHT_MAX: Final = 100
STRATEGIES: Final = ("spread", "binpack")

# Every node here is Linux and none is a manager, so these say nothing about a node.
_WITHOUT_MEANING: Final = ("node.role", "node.platform.os")


def check_constraint(text: str) -> str:
    """``text`` when it is a constraint that the scheduler can read.

    Raises:
        InvalidSpec: it is not.
    """
    from swarmctl.scheduler.constraint import Constraint  # not needed by most commands

    Constraint.parse(text)
    return text


def check_spread(text: str) -> str:
    """``text`` when it names something of a node to spread over.

    Raises:
        InvalidSpec: it does not.
    """
    from swarmctl.scheduler.constraint import check_attribute

    return check_attribute(text, "")


def read_placement(field: Field) -> Placement:
    """The placement that ``deploy.placement`` asks for.

    Raises:
        InvalidSpec: a part of it is not valid.
    """
    fields = field.fields(
        (
            "constraints",
            "preferences",
            "strategy",
            "max_replicas_per_node",
            "affinity",
            "anti_affinity",
        )
    )
    per_node = fields.get("max_replicas_per_node")
    return Placement(
        constraints=_read_constraints(fields["constraints"]) if "constraints" in fields else (),
        spread=_read_preferences(fields["preferences"]) if "preferences" in fields else (),
        strategy=fields["strategy"].choice(STRATEGIES) if "strategy" in fields else "spread",
        max_replicas_per_node=per_node.integer(0, PER_NODE_MAX) if per_node else 0,
        affinity=_read_terms(fields["affinity"]) if "affinity" in fields else (),
        anti_affinity=_read_terms(fields["anti_affinity"]) if "anti_affinity" in fields else (),
    )


def _read_constraints(field: Field) -> tuple[str, ...]:
    texts = []
    for item in field.elements():
        if item.text().replace("!", "=").partition("==")[0].strip() in _WITHOUT_MEANING:
            item.warn(
                f'the constraint "{item.text()}" is ignored: nodes have no such attribute here',
                "label nodes, and constrain node.labels.NAME",
            )
        else:
            texts.append(item.parse(check_constraint))
    return tuple(texts)


def _read_preferences(field: Field) -> tuple[str, ...]:
    spread = []
    for item in field.elements():
        fields = item.fields(("spread",))
        if "spread" not in fields:
            raise item.fail("a preference has spread", "such as - spread: node.labels.rack")
        spread.append(fields["spread"].parse(check_spread))
    return tuple(spread)


def _read_terms(field: Field) -> tuple[AffinityTerm, ...]:
    return tuple(_read_term(item) for item in field.elements())


def _read_term(item: Field) -> AffinityTerm:
    fields = item.fields(("service", "weight", "required"))
    if "service" not in fields:
        raise item.fail("names no service", "such as - {service: cache, weight: 50}")
    try:
        return AffinityTerm(
            service=fields["service"].parse(check_service_name),
            weight=fields["weight"].integer(0, WEIGHT_MAX) if "weight" in fields else 50,
            required=fields["required"].boolean() if "required" in fields else False,
        )
    except InvalidSpec as error:
        raise InvalidSpec(error.what, error.where or item.where, error.hint) from error
