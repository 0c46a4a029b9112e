"""The part of OVN's northbound database that we write: tables, columns, and a row of ours.

A row is known by its *key*, a path such as ``port/c0c0c0c0-7-42-0``, which it carries in its
``external_ids`` beside the cluster's id; whoever reads the database finds our rows by these two.
UUIDs are of no concern above ``net/ovn``: a reference is the key of the row that is meant.

Many tables hold rows only as long as another row lists them (the ports of a switch, the rules of a
port group). For these the listing is not a column of the parent here, but the child says who its
parent is: so a port of a switch with 10,000 others is one small row.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Final, TypeAlias

from attrs import field, frozen

#: What a column holds: None is an optional one that is empty.
Value: TypeAlias = str | int | frozenset[str] | Mapping[str, str] | None

CLUSTER_KEY: Final = "swarmctl-cluster"
ID_KEY: Final = "swarmctl-id"
# Keys of ours in `external_ids`, where others may have theirs, too.
OUR_PREFIX: Final = "swarmctl-"
# In NB_Global: the highest term that has written, by cluster.
TERM_KEY_PREFIX: Final = "swarmctl-term-"


class Kind(Enum):
    """What a column holds, and what it holds when nothing is wanted there."""

    TEXT = "text"
    NUMBER = "number"
    OPTIONAL_TEXT = "optional text"
    OPTIONAL_NUMBER = "optional number"
    TEXTS = "texts"
    MAP = "map"
    REFERENCE = "reference"  # the key of another row, or None
    REFERENCES = "references"  # keys of other rows; the database forgets those that are deleted


EMPTY: Final[Mapping[Kind, Value]] = {
    Kind.TEXT: "",
    Kind.NUMBER: 0,
    Kind.OPTIONAL_TEXT: None,
    Kind.OPTIONAL_NUMBER: None,
    Kind.TEXTS: frozenset(),
    Kind.MAP: {},
    Kind.REFERENCE: None,
    Kind.REFERENCES: frozenset(),
}


@frozen
class Table:
    """Columns that we set, and, where rows need one, the parent's table and the column there."""

    columns: Mapping[str, Kind]
    parent: tuple[str, str] | None = None


def _table(parent: tuple[str, str] | None = None, **columns: Kind) -> Table:
    return Table({**columns, "external_ids": Kind.MAP}, parent)


#: In the order in which rows are made: parents before their children, and what closes a port (its
#: groups and their rules) before the port.
TABLES: Final[Mapping[str, Table]] = {
    "DHCP_Options": _table(cidr=Kind.TEXT, options=Kind.MAP),
    "DNS": _table(records=Kind.MAP),
    "Load_Balancer": _table(name=Kind.TEXT, vips=Kind.MAP, protocol=Kind.OPTIONAL_TEXT),
    "Port_Group": _table(name=Kind.TEXT, ports=Kind.REFERENCES),
    "ACL": _table(
        ("Port_Group", "acls"),
        direction=Kind.TEXT,
        priority=Kind.NUMBER,
        match=Kind.TEXT,
        action=Kind.TEXT,
    ),
    "Logical_Switch": _table(
        name=Kind.TEXT,
        other_config=Kind.MAP,
        load_balancer=Kind.REFERENCES,
        dns_records=Kind.REFERENCES,
    ),
    "Logical_Switch_Port": _table(
        ("Logical_Switch", "ports"),
        name=Kind.TEXT,
        type=Kind.TEXT,
        options=Kind.MAP,
        addresses=Kind.TEXTS,
        port_security=Kind.TEXTS,
        parent_name=Kind.OPTIONAL_TEXT,
        tag_request=Kind.OPTIONAL_NUMBER,
        dhcpv4_options=Kind.REFERENCE,
        dhcpv6_options=Kind.REFERENCE,
    ),
    "Logical_Router": _table(name=Kind.TEXT, load_balancer=Kind.REFERENCES),
    "Logical_Router_Port": _table(
        ("Logical_Router", "ports"),
        name=Kind.TEXT,
        mac=Kind.TEXT,
        networks=Kind.TEXTS,
        ipv6_ra_configs=Kind.MAP,
    ),
    "Gateway_Chassis": _table(
        ("Logical_Router_Port", "gateway_chassis"),
        name=Kind.TEXT,
        chassis_name=Kind.TEXT,
        priority=Kind.NUMBER,
    ),
    "Logical_Router_Static_Route": _table(
        ("Logical_Router", "static_routes"), ip_prefix=Kind.TEXT, nexthop=Kind.TEXT
    ),
    "Logical_Router_Policy": _table(
        ("Logical_Router", "policies"),
        priority=Kind.NUMBER,
        match=Kind.TEXT,
        action=Kind.TEXT,
    ),
    "NAT": _table(
        ("Logical_Router", "nat"), type=Kind.TEXT, external_ip=Kind.TEXT, logical_ip=Kind.TEXT
    ),
}


#: A row of each table of which nothing is said.
EMPTY_ROWS: Final[Mapping[str, Mapping[str, Value]]] = {
    name: {column: EMPTY[kind] for column, kind in table.columns.items()}
    for name, table in TABLES.items()
}


@frozen
class Row:
    """A row of ours, as it should be or as it was found, with every column of its table.

    ``parent`` is the key of the row that lists it, empty where none is needed (or, of a found row,
    where the one that lists it is not ours).
    """

    table: str
    key: str
    columns: Mapping[str, Value] = field(eq=True)
    parent: str = ""


def row(
    cluster_id: str,
    table: str,
    key: str,
    *,
    parent: str = "",
    notes: Mapping[str, str] | None = None,
    **columns: Value,
) -> Row:
    """A row as it should be: what is not said of it is empty; ``notes`` tell people what it is."""
    empty = EMPTY_ROWS[table]
    assert columns.keys() <= empty.keys(), f"{table} has not all of {sorted(columns)}"
    assert bool(parent) == (TABLES[table].parent is not None), f"{key}: parent {parent!r}"
    ids = {CLUSTER_KEY: cluster_id, ID_KEY: key}
    for name, text in (notes or {}).items():
        ids[OUR_PREFIX + name] = text
    return Row(table, key, {**empty, **columns, "external_ids": ids}, parent)
