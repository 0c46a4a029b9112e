"""``network``: the tenant's networks."""

import sys
from typing import Any, Final

import click

from swarmctl.cli import clusters
from swarmctl.cli.output import age_column, output_option, show_data, show_list
from swarmctl.cli.tables import Column, Row, column
from swarmctl.cli.waiting import COMMIT_TIMEOUT_S
from swarmctl.net.model import Provider, Subnet, subnet
from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec import wire
from swarmctl.spec.attachments import parse_address
from swarmctl.spec.names import check_network_name, check_tenant_network
from swarmctl.spec.networks import MTU_MAX, NetworkDefinition, check_definition


def _provider(row: Row) -> str:
    vlan = f", VLAN {row['vlan']}" if row["vlan"] else ""
    uplink = ", uplink" if row.get("uplink") else ""
    return f"{row['provider']}{vlan}{uplink}" if row["provider"] else ""


NETWORK_COLUMNS: Final = (
    column("NETWORK", "network"),
    Column("SUBNETS", lambda row: ", ".join(row["subnets"])),
    column("MTU", "mtu"),
    column("PORTS", "ports"),
    Column("ADDRESSES", lambda row: f"{row['addresses_taken']}/{row['addresses']}", wide=True),
    Column("PROVIDER", _provider, wide=True),
    Column("SECURITY", lambda row: ", ".join(row["security_groups"]), wide=True),
    column("STACK", "stack", wide=True),
    age_column("CREATED", "created", wide=True),
    column("STATE", "state", is_state=True),
    column("REASON", "reason", may_cut=True),
)


@click.group()
def network() -> None:
    """List, make, show and remove tenant networks."""


@network.command("ls")
@output_option()
@click.pass_context
def network_ls(ctx: click.Context, output: str) -> None:
    """List networks."""
    with clusters.connect(ctx) as client:
        rows = client.call("network.list")
    show_list(rows, NETWORK_COLUMNS, "network", output)


@network.command("create")
@click.argument("name")
@click.option(
    "--subnet", "subnets", multiple=True, metavar="CIDR", help="Chosen unless given; or several."
)
@click.option(
    "--gateway",
    "gateways",
    multiple=True,
    metavar="ADDRESS",
    help="The subnet's first unless given.",
)
@click.option(
    "--ip-range",
    "ip_ranges",
    multiple=True,
    metavar="CIDR",
    help="Addresses are chosen from this part of the subnet.",
)
@click.option("--mtu", type=click.IntRange(0, MTU_MAX), default=0, help="All that fits, or less.")
@click.option(
    "--provider", default="", metavar="PHYS[:VLAN]", help="A physical network to put it on."
)
@click.option("--vlan", type=click.IntRange(0, 4094), default=0, help="On the provider.")
@click.option("--uplink", is_flag=True, help="The way out of all other networks: with --provider.")
@click.option("--routed", is_flag=True, help="Reached from the tenant's other routed networks.")
@click.option("--internal", is_flag=True, help="No way out.")
@click.option("--no-port-security", is_flag=True, help="Ports may send from any address.")
@output_option("table", "json", "yaml", "name")
@click.pass_context
def network_create(
    ctx: click.Context,
    name: str,
    subnets: tuple[str, ...],
    gateways: tuple[str, ...],
    ip_ranges: tuple[str, ...],
    mtu: int,
    provider: str,
    vlan: int,
    uplink: bool,
    routed: bool,
    internal: bool,
    no_port_security: bool,
    output: str,
) -> None:
    """Make a network that services can be plugged into: run --network NAME."""
    definition = NetworkDefinition(
        check_tenant_network(name),
        subnets=_with_ranges(_subnets(subnets, gateways), ip_ranges),
        mtu=mtu,
        provider=_provider_of(provider, vlan),
        uplink=uplink,
        port_security=not no_port_security,
        routed=routed,
        internal=internal,
    )
    check_definition(definition)
    with clusters.connect(ctx) as client:
        made = client.call(
            "network.create",
            {"network": wire.encode_plain(definition)},
            timeout_s=COMMIT_TIMEOUT_S,
        )
    if output in ("json", "yaml"):
        show_data(made, output)
        return
    print(made["network"])
    say_what_is_missing([made])


def _provider_of(text: str, vlan: int) -> Provider | None:
    """``physnet1``, or with its VLAN as ``physnet1:30``."""
    name, _, tag = text.partition(":")
    if not name:
        if vlan or tag:
            raise InvalidSpec("a VLAN is on a provider", "--vlan", "add --provider PHYS")
        return None
    if tag:
        if vlan or not tag.isdecimal():
            raise InvalidSpec(f'"{text}" is not PHYS:VLAN', "--provider", "such as physnet1:30")
        vlan = int(tag)
    return Provider(_located("--provider", check_network_name, name), vlan)


def _with_ranges(subnets: tuple[Subnet, ...], ranges: tuple[str, ...]) -> tuple[Subnet, ...]:
    """Each subnet with the range that is in it."""
    found = list(subnets)
    for text in ranges:
        for place, one in enumerate(found):
            try:
                found[place] = subnet(one.cidr, one.gateway, text)
                break
            except InvalidSpec:
                continue  # It is in another of them, or in none.
        else:
            raise InvalidSpec(f"{text} is a range in none of the subnets", "--ip-range")
    return tuple(found)


def _subnets(subnets: tuple[str, ...], gateways: tuple[str, ...]) -> tuple[Subnet, ...]:
    """Each subnet with the gateway that is in it."""
    if gateways and not subnets:
        raise InvalidSpec("a gateway is in a subnet", "--gateway", "add --subnet CIDR")
    found = {one.cidr: one for one in (_located("--subnet", subnet, text) for text in subnets)}
    for text in gateways:
        address = _located("--gateway", parse_address, text)
        of_version = [cidr for cidr in found if (":" in cidr) is (":" in address)]
        if len(of_version) == 1:
            found[of_version[0]] = _located("--gateway", subnet, of_version[0], address)
            continue
        for cidr in of_version:
            try:
                found[cidr] = subnet(cidr, address)
                break
            except InvalidSpec:
                continue  # It is in another of them, or in none.
        else:
            raise InvalidSpec(f"{address} is in none of the subnets", "--gateway")
    return tuple(found.values())


def _located(option: str, parse: Any, *texts: str) -> Any:
    try:
        return parse(*texts)
    except InvalidSpec as error:
        raise InvalidSpec(error.what, option, error.hint) from error


def say_what_is_missing(rows: list[Row]) -> None:
    """Say of networks that are not what they are called why not."""
    for row in rows:
        if row["state"] in ("absent", "faulty"):
            print(f"note: network {row['network']}: {row['reason']}", file=sys.stderr)


@network.command("inspect")
@output_option("json", "yaml")
@click.argument("names", nargs=-1, required=True, shell_complete=clusters.complete_networks)
@click.pass_context
def network_inspect(ctx: click.Context, output: str, names: tuple[str, ...]) -> None:
    """Show all about networks: their ports, and the path of each port's packets."""
    with clusters.connect(ctx) as client:
        found = [client.call("network.inspect", {"name": name}) for name in names]
    show_data(found if len(found) > 1 else found[0], output)


@network.command("rm")
@click.argument("names", nargs=-1, required=True, shell_complete=clusters.complete_networks)
@click.pass_context
def network_rm(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Remove networks that nothing uses."""
    with clusters.connect(ctx) as client:
        for name in names:
            client.call("network.remove", {"name": name}, timeout_s=COMMIT_TIMEOUT_S)
            print(name, flush=True)


COMMANDS: Final[dict[str, click.Command]] = {"network": network}
