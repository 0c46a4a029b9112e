"""Health checks in stack files and on the command line."""

from pathlib import Path

import pytest

from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec.health import parse_http
from swarmctl.spec.models import HealthCheck, HealthKind
from swarmctl.spec.options import RunOptions, build_service
from swarmctl.spec.stack import load_stack

FILE = Path(__file__).parent / "good" / "healthcheck.yaml"
SHELL = ("/bin/sh", "-c")


def test_every_form_of_a_stack_file():
    """Compose's forms, and those added to it, become checks without a warning."""
    stack = load_stack([(FILE.name, FILE.read_text())], {}, lambda _: "", folder="/srv/shop")
    found = {one.name: one.template.health for one in stack.services}

    assert stack.warnings == ()
    assert found == {
        "web": HealthCheck(HealthKind.COMMAND, ("true",), interval_s=5.0),
        "shell": HealthCheck(
            HealthKind.COMMAND,
            (*SHELL, "curl -f http://localhost || exit 1"),
            timeout_s=2.0,
            retries=5,
            start_period_s=40.0,
            start_interval_s=1.0,
        ),
        "port": HealthCheck(HealthKind.TCP, port=5432),
        "page": HealthCheck(HealthKind.HTTP, port=8080, path="/healthz"),
        "silent": HealthCheck(),
        "none": HealthCheck(),
        "vm": HealthCheck(HealthKind.GUEST_AGENT, interval_s=10.0),
    }


def health(**options):
    return build_service(RunOptions(image="box", **options), {}).template.health


def test_options_are_dockers():
    """``--health-cmd`` runs in a shell, the others tune it; without it nothing is checked."""
    assert health() is None
    assert health(no_healthcheck=True) == HealthCheck()
    assert health(
        health_cmd="test -e /ok",
        health_interval="1s",
        health_timeout="500ms",
        health_retries=2,
        health_start_period="1m",
        health_start_interval="200ms",
    ) == HealthCheck(HealthKind.COMMAND, (*SHELL, "test -e /ok"), 0, "", 1.0, 0.5, 2, 60.0, 0.2)


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"health_interval": "1s"}, "--health-cmd"),
        ({"health_cmd": "true", "no_healthcheck": True}, "--no-healthcheck"),
        ({"health_cmd": "true", "health_retries": -1}, "--health-retries"),
        ({"health_cmd": "true", "health_start_interval": "soon"}, "--health-start-interval"),
        ({"health_cmd": " "}, "--health-cmd"),
        ({"health_cmd": "true", "vm": True}, "--health-cmd"),
    ],
)
def test_contradictions_are_refused(options, where):
    """An option that means nothing, or nothing good, is named."""
    with pytest.raises(InvalidSpec) as caught:
        health(**options)

    assert caught.value.where == where


@pytest.mark.parametrize(
    ("text", "port", "path"),
    [
        ("8080", 8080, "/"),
        (":8080/", 8080, "/"),
        ("8080/a/b?c=d", 8080, "/a/b?c=d"),
        ("http://localhost/up", None, None),
        ("http://localhost:80/up", 80, "/up"),
        ("https://localhost:1/", None, None),
        ("0/", None, None),
        ("8080/a b", None, None),
    ],
)
def test_http_targets(text, port, path):
    """A port and a path, also written as an address; the port has to be said."""
    if port is None:
        with pytest.raises(InvalidSpec):
            parse_http(text)
    else:
        assert parse_http(text) == HealthCheck(HealthKind.HTTP, port=port, path=path)
