"""``instance.trace`` of a whole cluster in virtual time: agents asked, lost, older, anew."""

import pytest
import trio
from attrs import evolve

from swarmctl.agent import tracing
from swarmctl.agent.drivers.sim import Delay, SimSettings
from swarmctl.net.memory import MemoryDatabase
from swarmctl.net.model import subnet
from swarmctl.proto.errors import InvalidSpec, NotFound
from swarmctl.spec import wire
from swarmctl.spec.models import NetworkUse
from swarmctl.spec.networks import NetworkDefinition
from tests.sim.cluster_fixture import a_cluster, service

# The controller's clock is as much ahead of the nodes'.
AHEAD_S = 5_000.0
SLOW = SimSettings(prepare=Delay(2.0), create=Delay(0.5), start=Delay(0.25))


def give_a_clock(world):
    """Have the controller live in the world's time, too, by a clock of its own."""

    def wall():
        return trio.current_time() + AHEAD_S

    cluster = world.cluster
    cluster.wall = cluster.sessions._wall = cluster.reconciler._now = wall
    cluster.started_at = AHEAD_S


async def traced(world, name="web", **params):
    """The answer, and its steps by name."""
    found = await world.ask("instance.trace", {"name": name} | params)
    return found, {one["step"]: one for one in found["steps"]}


async def test_a_launch_is_shown_step_by_step(autojump_clock, tmp_path):
    """From the commit to the first instruction, each side by its clock, on one line."""
    async with a_cluster(tmp_path, 0) as world:
        give_a_clock(world)
        await trio.sleep(10)  # A time of 0 is none.
        await world.start_node("n1", SLOW)
        await world.apply(service())
        await world.until_runs(service())
        await trio.sleep(60)
        found, steps = await traced(world)

    assert list(steps) == [
        *("accepted", "placed", "sent"),
        *("received", "journaled", "preparing", "prepared", "starting", "created", "running"),
    ]
    assert [one["side"] for one in found["steps"]] == ["controller"] * 3 + ["agent"] * 7
    assert steps["prepared"]["after_ms"] - steps["preparing"]["after_ms"] == pytest.approx(2000)
    assert steps["created"]["after_ms"] - steps["starting"]["after_ms"] == pytest.approx(500)
    assert steps["running"]["after_ms"] - steps["created"]["after_ms"] == pytest.approx(250)
    totals = [one["total_ms"] for one in found["steps"]]
    assert totals == sorted(totals)
    assert totals[0] == 0
    assert totals[-1] == pytest.approx(2750, abs=200)
    assert found["clocks"]["ahead_ms"] == pytest.approx(-AHEAD_S * 1000, abs=100)
    assert (found["node"], found["state"], found["incarnation"]) == ("n1", "running", "1-1")


async def test_a_lost_node_is_said_and_the_rest_is_shown(autojump_clock, tmp_path):
    """Its part is what it reported last."""
    async with a_cluster(tmp_path, 1) as world:
        give_a_clock(world)
        await trio.sleep(10)  # A time of 0 is none.
        await world.apply(service())
        await world.until_runs(service())
        world.cut("n1")
        await trio.sleep(3)
        silent, _ = await traced(world)
        await trio.sleep(60)
        found, steps = await traced(world)

    assert list(steps) == ["accepted", "placed", "sent", "running", "lost"]
    assert steps["running"]["detail"] == "as its node reported last"
    assert (steps["running"]["after_ms"], found["clocks"]) == (0.0, None)
    assert (steps["running"]["total_ms"], steps["lost"]["total_ms"] > 0) == (None, True)
    for one in (silent, found):
        assert [*one["notes"]] == [
            "its node n1 does not answer: what the controller knows is shown"
        ]


async def test_an_agent_that_knows_no_traces_is_met(autojump_clock, tmp_path, monkeypatch):
    """Its release is named, and what the controller knows is shown."""
    monkeypatch.setattr(tracing.Tracing, "handlers", lambda _: {})
    async with a_cluster(tmp_path, 1) as world:
        await world.apply(service())
        await world.until_runs(service())
        found, steps = await traced(world, "web.1")

    assert found["notes"][0].startswith("its node n1 runs release ")
    assert "keeps no timeline" in found["notes"][0]
    assert steps["running"]["side"] == "agent"


async def test_who_starts_anew_does_not_invent(autojump_clock, tmp_path):
    """An adopting controller has no times of its own, nor an adopting agent its steps."""
    async with a_cluster(tmp_path, 1) as world:
        await trio.sleep(10)  # A time of 0 is none.
        await world.apply(service())
        await world.until_runs(service())
        await world.restart_controller()
        await trio.sleep(10)
        _, steps = await traced(world)
        assert steps["placed"]["when"] == 0
        assert "an earlier controller placed it" in steps["placed"]["detail"]
        assert steps["journaled"]["total_ms"] is not None

        world.machines["n1"].scope.cancel()
        await trio.sleep(1)
        await world.start_node("n1")
        await trio.sleep(10)
        found, steps = await traced(world)
    assert list(steps)[3:] == ["received", "preparing", "starting", "running"]
    assert "has adopted it" in steps["preparing"]["detail"]
    assert steps["running"]["when"] > 0
    assert found["state"] == "running"


async def test_what_is_nowhere_is_waited_for(autojump_clock, tmp_path):
    """With the reason in place of a node."""
    async with a_cluster(tmp_path, 1) as world:
        await world.apply(service(cpu_millis=9_000))
        await trio.sleep(1)
        found, steps = await traced(world)
    assert (found["state"], found["node"]) == ("pending", "")
    assert steps["placed"]["detail"].startswith("not yet: ")
    assert "cpu" in steps["placed"]["detail"]


async def test_a_name_that_is_no_instance_is_refused(autojump_clock, tmp_path):
    """A typo gets a suggestion, a service of several is asked for one of them."""
    async with a_cluster(tmp_path, 1) as world:
        await world.apply(service(replicas=2))
        await world.until_runs(service(replicas=2))
        with pytest.raises(NotFound, match="'wbe'") as typo:
            await traced(world, "wbe")
        assert 'did you mean "web"?' in typo.value.hint
        with pytest.raises(NotFound, match=r"'web\.7'"):
            await traced(world, "web.7")
        with pytest.raises(InvalidSpec, match="2 instances: name one"):
            await traced(world, "web")
        with pytest.raises(InvalidSpec, match="the instance itself"):
            await traced(world, "web.1", to="web.1")
        found, _ = await traced(world, "web.1", to="web.2")
    assert found["to"]["why"] == "no path: web.1 is on no tenant network"


def on(*networks, name="web", replicas=1):
    """A service of simulated containers on these networks."""
    plain = service(name, replicas)
    uses = tuple(NetworkUse(one) for one in networks)
    return evolve(plain, template=evolve(plain.template, networks=uses))


async def test_the_path_on_tenant_networks(autojump_clock, tmp_path):
    """Over one host or two, and to another network only where both are routed."""
    async with a_cluster(tmp_path, 2, northbound=MemoryDatabase()) as world:
        for name, cidr, routed in (
            ("front", "10.20.0.0/24", False),
            ("back", "10.21.0.0/24", True),
            ("side", "10.22.0.0/24", True),
        ):
            definition = NetworkDefinition(name, subnets=(subnet(cidr),), routed=routed)
            await world.ask("network.create", {"network": wire.encode_plain(definition)})
        services = (
            on("front", replicas=4),
            on("back", name="db"),
            on("side", name="disk"),
        )
        await world.apply(*services)
        await world.until_runs(*services)
        views = {one["instance"]: one for one in await world.ask("instance.list")}
        here = views["web.1"]
        [near] = [one for one in views.values() if one["node"] == here["node"]
                  and one["service"] == "web" and one is not here]  # fmt: skip
        far = next(one for one in views.values() if one["service"] == "web"
                   and one["node"] != here["node"])  # fmt: skip
        own, _ = await traced(world, "web.1")
        to_near = (await traced(world, "web.1", to=near["instance"]))[0]["to"]
        to_far = (await traced(world, "web.1", to=far["addresses"][0]))[0]["to"]
        apart = (await traced(world, "web.1", to="db"))[0]["to"]
        routed = (await traced(world, "db", to="disk"))[0]["to"]

    [path] = own["networks"]
    assert (path["network"], path["interface"], path["vlan"]) == ("front", "eth0", 0)
    assert [address.partition("/")[0] for address in path["addresses"]] == [*here["addresses"]]
    assert (path["encapsulation_bytes"], path["underlay_mtu"], path["mtu_left"]) == (58, 1500, 1442)
    assert [hop["hop"] for hop in path["hops"]] == ["interface", "port", "geneve"]
    assert own["to"] is None
    assert [hop["hop"] for hop in to_near["hops"]] == [
        *("interface", "port", "switch", "port", "interface")
    ]
    assert (to_near["same_host"], to_near["reached"], *to_near["passes"]) == (True, True, "any")
    assert [hop["hop"] for hop in to_far["hops"]] == [
        *("interface", "port", "geneve", "port", "interface")
    ]
    assert (to_far["instance"], to_far["address"]) == (far["instance"], far["addresses"][0])
    assert "one header of 58 bytes" in to_far["hops"][2]["what"]
    assert (apart["reached"], *apart["hops"]) == (False,)
    assert apart["why"].startswith("no path: other network (front here, back there)")
    assert routed["router"] is True
    assert routed["hops"][2]["what"] == "the tenant's own, from back to side"
