"""What is said beside tables, and what a context learns meanwhile."""

import json
from pathlib import Path

import pytest
import structlog

from tests.unit.cli.conftest import ControllerThread


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A controller whose store was lost and begun anew: on hold."""
    data = tmp_path / "controller"
    with structlog.testing.capture_logs():
        with ControllerThread(data):
            pass
        for file in data.glob("store.db*"):
            file.unlink()
        with ControllerThread(data, rebuild=True) as thread:
            monkeypatch.setenv("SWARMCTL_CONTEXT", str(data / "admin.context"))
            yield thread


def test_a_hold_is_said_beside_tables_only(held, swarmctl):
    """A line on stderr says why, and how to end it; data for programs stays as it was."""
    for command in (("ps",), ("node", "ls")):
        ended = swarmctl(*command)
        assert ended.code == 0
        assert "on hold: rebuilt from what the nodes run" in ended.err
        assert "store release" in ended.err
        assert swarmctl(*command, "-o", "json").err == ""
    swarmctl("run", "-d", "--name", "web", "lab/web")
    waiting = swarmctl("wait", "web", "--timeout", "300ms")
    assert waiting.code == 4
    assert waiting.err.count("on hold") == 2
    assert swarmctl("store", "release").code == 0
    assert "on hold" not in swarmctl("ps").err


def test_a_named_context_learns_where_the_controllers_are(
    controller, swarmctl, config: Path, monkeypatch: pytest.MonkeyPatch
):
    """Those that it was copied with may be gone one day; what answers now is tried first."""
    file = controller.data / "admin.context"
    monkeypatch.delenv("SWARMCTL_CONTEXT")
    assert swarmctl("context", "add", str(file), "--name", "lab").code == 0
    copy = config / "lab.context"
    known = json.loads(copy.read_text())
    [address] = known["addresses"]
    gone = address.rpartition(":")[0] + ":1"
    copy.write_text(json.dumps(known | {"addresses": [address, gone]}))

    assert swarmctl("ps").code == 0
    assert json.loads(copy.read_text()) == known
    assert copy.stat().st_mode & 0o777 == 0o600
    before = copy.stat().st_mtime_ns
    assert swarmctl("ps").code == 0
    assert copy.stat().st_mtime_ns == before
