"""Health checks on real containers: what is well, what is not, and what happens to it."""

import pytest
from attrs import evolve

from swarmctl.spec.models import HealthCheck, HealthKind, RestartCondition, RestartPolicy
from tests.e2e.cluster import Cluster, box, until

ENDS_WHEN_TOLD = "trap 'exit 0' TERM; while :; do sleep 0.1; done"


def check(text="test -e /tmp/well", **fields):
    fields = {"interval_s": 0.3, "timeout_s": 5.0, "retries": 2} | fields
    return HealthCheck(HealthKind.COMMAND, ("/bin/sh", "-c", text), **fields)


def container(name, script, network="none", **fields):
    """A service of one container that runs ``script``."""
    spec = box(name, 1, "sh", "-c", script)
    made = evolve(spec.template.container, network=network)
    return evolve(spec, template=evolve(spec.template, container=made, **fields))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A node with Docker, for all tests of this file."""
    made = Cluster(tmp_path_factory.mktemp("health"))
    made.agent("h1")
    try:
        yield made.start()
    finally:
        print(made.logs())  # noqa: T201 - captured
        made.close()


@pytest.fixture
def cluster(shared):
    """The same, empty again after each test."""
    yield shared
    shared.remove_all()


def one(cluster, name):
    return cluster.ps(name)[f"{name}.1"]


def touch(cluster, name, *command):
    done = cluster.swarmctl("exec", f"{name}.1", *command)
    assert done.code == 0, done.err


def test_healthy_then_not_then_again(cluster):
    """It runs once it is well; unhealthy it is started again; ps and --wait follow."""
    cluster.apply(container("web", ENDS_WHEN_TOLD, health=check(start_period_s=20.0)))
    until(lambda: "not healthy yet: exited 1" in one(cluster, "web")["reason"], what="a bad look")
    touch(cluster, "web", "touch", "/tmp/well")
    cluster.wait("web")
    view = one(cluster, "web")
    assert (view["state"], view["health"]) == ("running", "healthy")
    table = cluster.swarmctl("ps").out
    assert "running (healthy)" in table

    before = view["attempt"]
    touch(cluster, "web", "rm", "/tmp/well")
    until(lambda: one(cluster, "web")["attempt"] > before, what="another attempt")
    assert one(cluster, "web")["restarts"] >= 1


def test_wait_explains_what_is_never_healthy(cluster):
    """``run --wait`` ends with the check's own words when it will not be started again."""
    done = cluster.swarmctl(
        *("run", "--wait", "--name", "ill", "--restart", "no", "--network", "none"),
        *("--health-cmd", "echo broken pipe; exit 3", "--health-interval", "200ms"),
        *("--health-retries", "2", "--stop-timeout", "0s"),
        *("swarmctl/testbox", "sleep", "600"),
    )
    assert done.code == 1, done.err
    assert "unhealthy: exited 3: broken pipe" in done.err
    view = one(cluster, "ill")
    assert (view["state"], view["health"]) == ("failed", "")


def test_tcp_and_http_are_asked_at_its_address(cluster):
    """A port that listens, and a page that is there, are well; a page that is missing is not."""
    serve = "mkdir /www; echo up >/www/up; exec httpd -f -p 8080 -h /www"
    fast = {"interval_s": 0.3, "timeout_s": 5.0, "retries": 3}
    tcp = HealthCheck(HealthKind.TCP, port=8080, **fast)
    page = HealthCheck(HealthKind.HTTP, port=8080, path="/up", **fast)
    # Patient enough to be answered at least once: before the server listens it is refused.
    missing = HealthCheck(HealthKind.HTTP, port=8080, path="/down", **fast | {"retries": 10})
    never = RestartPolicy(RestartCondition.NEVER)
    cluster.apply(
        container("tcp", serve, network="", health=tcp),
        container("page", serve, network="", health=page),
        container("lost", serve, network="", health=missing, restart=never),
    )
    cluster.wait("tcp", "page")
    until(lambda: one(cluster, "lost")["state"] == "failed", what="the missing page")
    assert "/down answered 404" in one(cluster, "lost")["reason"]


def test_a_check_that_hangs_leaves_nothing_behind(cluster):
    """Its time runs out, it counts as a failure, and its process is ended."""
    hanging = check("touch /tmp/asked; exec sleep 4321", timeout_s=0.3, retries=1000)
    cluster.apply(container("slow", "exec sleep 600", health=hanging))
    until(lambda: "no answer within 0.3 s" in one(cluster, "slow")["reason"], what="a late look")
    for _ in range(5):
        listed = cluster.swarmctl("exec", "slow.1", "ps").out
        assert "sleep 600" in listed
        assert listed.count("sleep 4321") <= 1, listed
