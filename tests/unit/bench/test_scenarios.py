"""Scenario files: all of them can be read, and say what they seem to say."""

import pytest

from bench.launch import scenario as scenarios
from bench.launch.running import chosen
from bench.launch.suite import _SHORT, _WHOLE
from swarmctl.proto.errors import InvalidSpec
from swarmctl.scheduler import parse_constraints
from swarmctl.spec.models import Kind


@pytest.mark.parametrize("name", scenarios.names())
def test_every_file_is_a_scenario_whose_services_add_up(name):
    """Each can be read, and its services have as many copies as it has instances."""
    loaded = scenarios.load(name)
    if loaded.instances > 200_000:
        assert loaded.services >= 1000, "C1M and C2M are of a thousand services at least"
    specs = loaded.specs()

    assert loaded.name == name
    assert sum(spec.replicas for spec in specs) == loaded.instances
    assert len({spec.name for spec in specs}) == len(specs)
    for spec in specs:
        parse_constraints(spec.placement.constraints)


def test_the_scenarios_of_the_two_suites_exist():
    """What make bench runs can be read with what it changes."""
    for name, overrides in (*_WHOLE, *_SHORT):
        assert chosen(name, **overrides).name == name


def test_the_keynote_is_the_one_of_2016():
    """10,000 containers and 5,000 VMs on 1,000 nodes, of at least 100 services."""
    keynote = scenarios.load("keynote")
    kinds = {Kind.CONTAINER: 0, Kind.VM: 0}
    for spec in keynote.specs():
        kinds[spec.template.kind] += spec.replicas

    assert (keynote.nodes, kinds[Kind.CONTAINER], kinds[Kind.VM]) == (1000, 10_000, 5_000)
    assert len(keynote.specs()) >= 100


def test_one_by_one_is_a_service_an_instance():
    """Every request is its own service."""
    one_by_one = scenarios.load("one_by_one", containers=20, vms=10)

    assert [spec.replicas for spec in one_by_one.specs()] == [1] * 30


def test_any_range_of_nodes_has_machines_of_every_kind():
    """Kinds alternate by their weights."""
    mixed = scenarios.load("heterogeneous")
    period = sum(machine.weight for machine in mixed.machines)
    names = [mixed.machine_of(number).name for number in range(700, 700 + period)]

    assert {name: names.count(name) for name in names} == {
        machine.name: machine.weight for machine in mixed.machines
    }


def test_workloads_shrink_with_the_nodes():
    """They are written for one number of nodes, and would not fit into fewer."""
    whole, tenth = scenarios.load("heterogeneous"), scenarios.load("heterogeneous", nodes=100)

    assert tenth.instances * 10 == whole.instances


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"colour": "red"}, "colour"),
        ({"kind": "party"}, "party"),
        ({"requests": "all"}, "all"),
        ({"nodes": 0}, "nodes"),
        ({"vms": -1}, "below 0"),
        ({"failure_rate": 1.5}, "failure_rate"),
        ({"workloads": [{"name": "web", "size": 3}]}, "size"),
        ({"workloads": [{"name": "web", "kind": "pod"}]}, "pod"),
        ({"machines": [{"weight": 2, "colour": "red"}]}, "colour"),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_wrong(given, named):
    """The error names the field or the value."""
    with pytest.raises(InvalidSpec, match=named):
        scenarios.parse(given, "file.yaml")


def test_an_unknown_scenario_lists_those_there_are():
    """A typo does not leave the user alone."""
    with pytest.raises(InvalidSpec) as caught:
        scenarios.load("keynot")

    assert "keynote" in caught.value.hint


def test_a_launch_without_a_scenario_fits_and_is_shared_out():
    """The nodes have room for what is launched, in services of about a hundred."""
    plain = chosen("", nodes=10_000, containers=90_000, vms=10_000, services=None)

    assert plain.instances == 100_000
    assert plain.services == 1000
    assert plain.processes == 4
    room = min(plain.capacity[name] // need for name, need in plain.needs.items())
    assert room * plain.nodes >= 2 * plain.instances
