"""What the agent in a VM is told: read whole, or refused without a word of the token."""

import json

import pytest
import trio
from attrs import evolve

from swarmctl.agent import guest
from swarmctl.agent.config import AgentConfig
from swarmctl.agent.drivers.libvirt.seed import contents, write
from swarmctl.agent.enrol import IDENTITY_FILE
from swarmctl.agent.guest import GuestSeed, has_way, interface_of, read_seed, told_by
from swarmctl.net import relays
from swarmctl.proto.errors import EnvironmentFault, InvalidSpec
from swarmctl.spec.models import CloudInit

SEED = GuestSeed(
    node="pods.1-7-42",
    vm="c0c0c0c0-7-42-0",
    mac="02:00:00:00:00:09",
    mtu=1442,
    addresses=("10.30.0.9/24",),
    token="swarmctl-join-secret",
    labels={"vm": "pods"},
)


@pytest.fixture
def trunk(monkeypatch):
    """The way to the relay is there."""

    async def prepared(seed):
        assert seed == SEED
        return "eth0"

    monkeypatch.setattr(guest, "prepare_trunk", prepared)


def test_a_seed_is_read_as_it_was_written(tmp_path):
    """With the relay as its controller; and its text shows no token to whoever prints it."""
    path = tmp_path / "swarmctl.json"
    path.write_text(SEED.to_json())
    assert read_seed(path) == SEED
    assert read_seed(path).controllers == (relays.endpoint(),)
    assert "secret" not in repr(SEED)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        SEED.to_json()[:-10],
        json.dumps(json.loads(SEED.to_json()) | {"format": 2}),
        json.dumps(json.loads(SEED.to_json()) | {"addresses": ["nowhere"]}),
        json.dumps(json.loads(SEED.to_json()) | {"labels": "none"}),
        json.dumps(json.loads(SEED.to_json()) | {"mtu": None}),
    ],
)
def test_what_is_no_seed_is_refused(tmp_path, text):
    """And nothing of it is quoted."""
    path = tmp_path / "swarmctl.json"
    path.write_text(text)
    with pytest.raises(InvalidSpec) as caught:
        read_seed(path)
    assert str(path) in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_seed_that_is_not_there_is_refused(tmp_path):
    """With what to do."""
    with pytest.raises(InvalidSpec, match="give the seed disk"):
        read_seed(tmp_path / "nothing")


def test_a_seed_disk_is_read_without_mounting_it(tmp_path):
    """As the host writes it; one that is cloud-init's alone is refused."""
    path = tmp_path / "disk"
    disk = contents(CloudInit(user_data="#!/bin/sh\n"), instance_id="i", hostname="h")
    write(evolve(disk, guest=SEED.to_json()), path)
    assert read_seed(path) == SEED
    write(disk, path)
    with pytest.raises(InvalidSpec, match=r"no swarmctl\.json on this disk.*trunk: true"):
        read_seed(path)


def test_a_disk_that_is_broken_is_refused(tmp_path):
    """It begins as one, and has nothing else."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(16 * 2048 + 1) + b"CD001" + bytes(4096))
    with pytest.raises(InvalidSpec) as caught:
        read_seed(path)
    assert str(path) in str(caught.value)


def test_the_trunk_is_found_by_its_mac(tmp_path):
    """Not what was made upon it, which has the same; nor when it is not there yet."""
    for name, mac, has_device in (
        ("ens3", SEED.mac.upper(), True),
        ("br0", SEED.mac, False),
        ("ens4", "02:00:00:00:00:0a", True),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "address").write_text(f"{mac}\n")
        if has_device:
            (tmp_path / name / "device").mkdir()
    assert interface_of(SEED.mac, tmp_path) == "ens3"
    assert interface_of("02:00:00:00:00:0b", tmp_path) == ""


async def test_an_agent_takes_from_its_seed_what_it_was_not_told(tmp_path, trunk):
    """What the command line says goes before."""
    path = tmp_path / "swarmctl.json"
    path.write_text(SEED.to_json())
    told = AgentConfig(tmp_path / "data", labels={"zone": "a"}, controllers=("tcp://c:1",))
    found = await told_by(path, told)
    assert found == evolve(
        told,
        name=SEED.node,
        join=SEED.token,
        trunk="eth0",
        parent=SEED.vm,
        labels={"zone": "a", "vm": "pods"},
    )


async def test_an_agent_that_is_enrolled_needs_no_token(tmp_path, trunk):
    """It is who it was, whatever the seed says; the token is used up anyway."""
    path = tmp_path / "swarmctl.json"
    path.write_text(SEED.to_json())
    (tmp_path / IDENTITY_FILE).write_text("{}")
    found = await told_by(path, AgentConfig(tmp_path))
    assert (found.name, found.join) == ("", "")
    assert (found.trunk, found.controllers) == ("eth0", SEED.controllers)


ROUTE_LINES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t011E0A0A\t0003\t0\t0\t0\t00000000\t0\t0\t0
"""
RELAY_LINE = "eth0\t4D46FEA9\t00000000\t0005\t0\t0\t0\tFFFFFFFF\t0\t0\t0\n"


def test_the_way_is_read_from_the_kernels_routes():
    """As a little-endian machine shows it."""
    assert has_way(ROUTE_LINES + RELAY_LINE)
    assert not has_way(ROUTE_LINES)
    assert not has_way("")


async def test_a_way_that_was_taken_away_is_made_again(tmp_path, monkeypatch, autojump_clock):
    """And once that failed it is tried again."""
    path, routes = tmp_path / "swarmctl.json", tmp_path / "route"
    path.write_text(SEED.to_json())
    routes.write_text(ROUTE_LINES)
    tries = []

    async def prepared(seed):
        assert seed == SEED
        tries.append(trio.current_time())
        if len(tries) == 1:
            raise EnvironmentFault("the trunk cannot be set up")
        routes.write_text(ROUTE_LINES + RELAY_LINE)

    monkeypatch.setattr(guest, "prepare_trunk", prepared)
    monkeypatch.setattr(guest, "ROUTES", routes)
    with trio.move_on_after(60):
        await guest.keep_way(path)
    assert len(tries) == 2
