"""What a changed spec is said to change."""

from attrs import evolve
from hypothesis import given

from swarmctl.spec.diff import Change, diff_services
from swarmctl.spec.models import RestartCondition, RestartPolicy
from swarmctl.spec.options import RunOptions, build_service
from tests.strategies import service_specs

BASE = build_service(
    RunOptions(image="nginx:1", name="web", memory="512m", environment=["A=1", "X_s=2"]), {}
)


def test_a_new_service_is_all_added():
    """Without an old one, what is said beyond the defaults is added, and nothing restarts."""
    assert [str(change) for change in diff_services(None, BASE)] == [
        "+ name: web",
        "+ image: nginx:1",
        "+ environment.A: 1",
        "+ environment.X_s: 2",
        "+ resources.memory: 512 MiB",
        "+ limits.memory: 512 MiB",
        "+ replicas: 1",
    ]
    assert not any(change.restarts for change in diff_services(None, BASE))


def test_more_copies_restart_nothing():
    """How many and where is not what an instance is made from."""
    assert diff_services(BASE, BASE.with_replicas(3)) == (Change("replicas", "1", "3"),)


def test_changes_to_the_template_restart():
    """Values are shown as people write them, defaults included."""
    template = evolve(
        BASE.template,
        container=evolve(BASE.template.container, image="nginx:2", environment={"A": "2"}),
        restart=RestartPolicy(RestartCondition.NEVER),
        resources=evolve(BASE.template.resources, memory_bytes=1 << 30, cpu_millis=500),
        stop_grace_period_s=90.0,
    )

    changes = diff_services(BASE, evolve(BASE, template=template))

    assert all(change.restarts for change in changes)
    assert [str(change) for change in changes] == [
        "~ image: nginx:1 -> nginx:2",
        "~ environment.A: 1 -> 2",
        "+ resources.cpus: 0.5",
        "~ resources.memory: 512 MiB -> 1 GiB",
        "~ restart.condition: always -> no",
        "~ stop_grace_period: 10s -> 1m30s",
        "- environment.X_s: 2",
    ]


def test_long_texts_are_cut():
    """A changed user-data does not fill the screen."""
    before = build_service(RunOptions(vm=True, image="d", user_data="#" * 1000), {})
    after = build_service(RunOptions(vm=True, image="d", user_data="#" * 1001), {})

    (change,) = diff_services(before, after)

    assert change.field_path == "vm.cloud_init.user_data"
    assert change.before.endswith("… (1000 characters)")


@given(service_specs)
def test_nothing_differs_from_itself(spec):
    """A spec applied again changes nothing."""
    assert diff_services(spec, spec) == ()
    assert diff_services(None, spec)


@given(service_specs, service_specs)
def test_every_difference_is_found(old, new):
    """Two specs have changes exactly when they differ, both ways round."""
    there, back = diff_services(old, new), diff_services(new, old)

    assert bool(there) == (old != new)
    assert {c.field_path for c in there} == {c.field_path for c in back}
    assert any(c.restarts for c in there) == (old.template != new.template)
