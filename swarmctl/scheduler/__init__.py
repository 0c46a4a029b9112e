"""Placement as a pure function: ``plan(snapshot, requests) -> Plan``."""

from swarmctl.scheduler.constraint import Constraint, InvalidConstraint, parse_constraints
from swarmctl.scheduler.explanation import Explanation, Rejection
from swarmctl.scheduler.filters import Reason
from swarmctl.scheduler.model import Affinity, Node, Placement, Request
from swarmctl.scheduler.planner import Batch, Placements, Plan, Unplaced
from swarmctl.scheduler.rebalance import Move, Resident, plan_moves
from swarmctl.scheduler.score import Score
from swarmctl.scheduler.snapshot import Snapshot, explain, plan

__all__ = [
    "Affinity",
    "Batch",
    "Constraint",
    "Explanation",
    "InvalidConstraint",
    "Move",
    "Node",
    "Placement",
    "Placements",
    "Plan",
    "Reason",
    "Rejection",
    "Request",
    "Resident",
    "Score",
    "Snapshot",
    "Unplaced",
    "explain",
    "parse_constraints",
    "plan",
    "plan_moves",
]
