"""``network``, and networks in ``run``, ``apply`` and ``diff``, against a real controller."""

import json
from pathlib import Path

import pytest

STACK = """\
name: shop
services:
  web: {image: lab/web, networks: [front]}
networks:
  front: {ipam: {config: [{subnet: 10.20.0.0/24}]}, security_group: web}
security_groups:
  web: {ingress: [{ports: 80}]}
"""


def parsed(swarmctl, *arguments: str):
    """What a command says as JSON."""
    ended = swarmctl(*arguments, "-o", "json")
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def stack(folder: Path, text: str = STACK) -> str:
    """A stack file."""
    file = folder / "compose.yaml"
    file.write_text(text)
    return str(file)


def test_a_network_from_beginning_to_end(controller, swarmctl):
    """Made with what was chosen, listed, shown, and removed; without OVN that is said."""
    made = swarmctl("network", "create", "front")
    assert (made.code, made.out) == (0, "front\n")
    assert "note: network front: this cluster has no OVN" in made.err
    subnets = ["--subnet", "10.20.0.0/24", "--gateway", "10.20.0.9", "--subnet", "fd00::/64"]
    back = parsed(swarmctl, "network", "create", "back", *subnets, "--mtu", "1400", "--routed")
    assert (back["gateways"], back["mtu"], back["routed"]) == (
        ["10.20.0.9", "fd00::1"],
        1400,
        True,
    )

    listed = swarmctl("network", "ls").out
    assert "front" in listed
    assert "10.64.0.0/24" in listed
    assert swarmctl("network", "ls", "-o", "name").out == "back\nfront\n"
    shown = parsed(swarmctl, "network", "inspect", "front")
    assert (shown["subnets"], shown["attached"], shown["state"]) == (["10.64.0.0/24"], [], "absent")
    assert swarmctl("network", "rm", "front", "back").out == "front\nback\n"
    assert parsed(swarmctl, "network", "ls") == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["create", "Front"], 2, 'for example "front"'),
        (["create", "a", "--subnet", "10.0.0.1/24"], 2, "--subnet"),
        (["create", "a", "--gateway", "10.0.0.1"], 2, "add --subnet"),
        (["create", "a", "--subnet", "10.1.0.0/24", "--gateway", "10.2.0.1"], 2, "--gateway"),
        (["create", "a", "--vlan", "3"], 2, "--provider"),
        (["create", "a", "--provider", "physnet1"], 2, "needs its subnet"),
        (["create", "a", "--mtu", "9000"], 2, "does not fit"),
        (["create", "a", "--subnet", "10.20.0.0/16"], 1, "overlaps 10.20.0.0/24"),
        (["create", "front"], 1, "exists already"),
        (["inspect", "frnt"], 1, 'did you mean "front"?'),
        (["rm", "frnt"], 1, 'did you mean "front"?'),
    ],
)
def test_what_is_wrong_is_said_and_makes_nothing(controller, swarmctl, arguments, code, said):
    """The option or the name, what is wrong, and what to do."""
    swarmctl("network", "create", "front", "--subnet", "10.20.0.0/24")
    ended = swarmctl("network", *arguments)

    assert (ended.code, said in ended.err) == (code, True), ended.err
    assert "Traceback" not in ended.err
    assert len(parsed(swarmctl, "network", "ls")) == 1


def test_run_on_a_network_of_the_tenant(controller, swarmctl):
    """By name, with an address; one that the nodes have is called so; what is none is refused."""
    swarmctl("network", "create", "front", "--subnet", "10.20.0.0/24")
    ran = swarmctl("run", "--name", "a", "--network", "front", "--ip", "10.20.0.7", "lab/web")
    assert "note: network front: this cluster has no OVN" in ran.err
    swarmctl("run", "--name", "b", "--network", "node:mine", "lab/web")
    unknown = swarmctl("run", "--detach", "--name", "d", "--network", "mine", "lab/web")
    assert (unknown.code, unknown.out) == (1, "")
    assert 'there is no network "mine"' in unknown.err
    assert "there are: front" in unknown.err
    assert [one["service"] for one in parsed(swarmctl, "service", "ls")] == ["a", "b"]

    template = parsed(swarmctl, "service", "inspect", "a")["spec"]["template"]
    assert template["networks"] == [{"network": "front", "addresses": ["10.20.0.7"]}]
    template = parsed(swarmctl, "service", "inspect", "b")["spec"]["template"]
    assert template["container"]["network"] == "mine"
    refused = swarmctl("run", "--name", "c", "--network", "front", "--ip", "10.9.0.7", "lab/web")
    assert "10.9.0.7 is in no subnet" in refused.err
    refused = swarmctl("network", "rm", "front")
    assert (refused.code, "in use by a" in refused.err) == (1, True)


def test_a_stack_with_networks(controller, swarmctl, tmp_path: Path):
    """Diff shows them, apply makes them, and says with the line that there is no OVN."""
    file = stack(tmp_path)
    shown = swarmctl("diff", "-f", file)
    assert "network shop_front: created" in shown.out
    applied = swarmctl("apply", "-f", file)
    assert (applied.code, "network shop_front" in applied.out) == (0, True)
    where = f"warning: {file}:5: networks.front: this cluster has no OVN"
    assert where in applied.err
    assert "without OVN nothing keeps networks apart, and security groups" in applied.err
    assert "network shop_front: unchanged" in swarmctl("diff", "-f", file).out

    wider = STACK.replace("10.20.0.0/24", "10.20.0.0/16")
    changed = swarmctl("diff", "-f", stack(tmp_path, wider))
    assert "~ subnets: 10.20.0.0/24 via 10.20.0.1 -> 10.20.0.0/16 via 10.20.0.1" in changed.out


def test_a_network_that_cannot_be_is_refused_with_its_line(controller, swarmctl, tmp_path: Path):
    """Also where only the cluster knows what is wrong."""
    swarmctl("network", "create", "other", "--subnet", "10.20.0.0/16")
    file = stack(tmp_path)
    ended = swarmctl("apply", "-f", file)

    assert ended.code == 1
    assert f"{file}:5: networks.front" in ended.err
    assert "overlaps 10.20.0.0/" in ended.err
    assert parsed(swarmctl, "service", "ls") == []


def test_an_external_network_of_a_stack_may_be_the_tenants(controller, swarmctl, tmp_path: Path):
    """It is looked up before anything is made."""
    swarmctl("network", "create", "outer")
    text = "services: {web: {image: i, networks: [outer]}}\nnetworks: {outer: {external: true}}\n"
    assert swarmctl("apply", "-f", stack(tmp_path, text)).code == 0

    template = parsed(swarmctl, "service", "inspect", "web")["spec"]["template"]
    assert template["networks"] == [{"network": "outer"}]
