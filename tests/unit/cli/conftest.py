"""A real controller in a thread, and the command line in this process."""

import threading
from pathlib import Path

import pytest
import structlog
import trio
from attrs import frozen

from swarmctl.cli.main import run
from swarmctl.controller.daemon import ControllerConfig, run_controller

START_S = 20.0


@frozen
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees, or changes, the user's own contexts."""
    folder = tmp_path / "config"
    monkeypatch.setenv("SWARMCTL_CONFIG", str(folder))
    monkeypatch.delenv("SWARMCTL_CONTEXT", raising=False)
    monkeypatch.delenv("SWARMCTL_DEBUG", raising=False)
    return folder


@pytest.fixture
def swarmctl(capsys: pytest.CaptureFixture[str]):
    """Run a command; what it printed."""

    def execute(*arguments: str) -> Ended:
        capsys.readouterr()
        code = run(arguments)
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return execute


class ControllerThread:
    """A controller without nodes, on a port of its own."""

    def __init__(self, data: Path, *, rebuild: bool = False) -> None:
        self.data = data
        self.rebuild = rebuild
        self._serves = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope = trio.CancelScope()

    def _run(self) -> None:
        trio.run(self._main)

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        config = ControllerConfig(self.data, ("tcp://127.0.0.1:0",), rebuild=self.rebuild)
        with self._scope:
            async with trio.open_nursery() as nursery:

                async def serve(*, task_status: trio.TaskStatus) -> None:
                    await run_controller(config, task_status=task_status)

                await nursery.start(serve)
                self._serves.set()

    def __enter__(self) -> "ControllerThread":
        self._thread.start()
        assert self._serves.wait(START_S), "the controller does not serve"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._token is not None
        self._token.run_sync_soon(self._scope.cancel)
        self._thread.join(START_S)


@pytest.fixture
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A controller that commands talk to."""
    with structlog.testing.capture_logs(), ControllerThread(tmp_path / "controller") as thread:
        monkeypatch.setenv("SWARMCTL_CONTEXT", str(thread.data / "admin.context"))
        yield thread
