"""``run --rm``: a job in the foreground, as ``docker run --rm`` has it.

Its output is shown from when it starts, the command ends with its exit code, and the service is
removed whatever happened, Ctrl-C included.
"""

import math
from typing import Any, Final

from swarmctl.cli.main import EXIT_FAILED
from swarmctl.cli.streams import show_logs
from swarmctl.cli.waiting import COMMIT_TIMEOUT_S, Waiting, progress
from swarmctl.client import Client
from swarmctl.proto.errors import LaunchFailed, WaitExpired

# Before one of these states there is no output.
_BEFORE_OUTPUT: Final = ("pending", "assigned", "preparing", "starting")


def run_to_end(client: Client, name: str, timeout_s: float) -> int:
    """Follow a job to its end and remove it; its exit code (of several the first that failed).

    Raises:
        NothingFits: no node takes it.
        WaitExpired: it took longer than ``timeout_s``.
        LaunchFailed: it could not be started.
    """
    try:
        params: dict[str, Any] = {"names": [name]}
        if timeout_s != math.inf:
            params["timeout_s"] = timeout_s
        failure = _until_output(client, params)
        instances = client.call("instance.list", {"names": [name], "all": True})
        ran = [one for one in instances if one["runtime_id"]]
        if ran:
            show_logs(client, [name], follow=failure is None)
        failure = failure or _until_end(client, params)
        return _exit_code(client, name, failure)
    finally:
        client.call("service.remove", {"names": [name]}, timeout_s=COMMIT_TIMEOUT_S)


def _until_output(client: Client, params: dict[str, Any]) -> LaunchFailed | None:
    """Wait until all have started; what failed at once is returned."""
    waiting = Waiting(tuple(params["names"]))
    try:
        with progress(waiting) as show, client.stream("service.wait", params) as stream:
            for item in stream:
                show(item.data)
                if not any(
                    states.get(one) for states in item.data.values() for one in _BEFORE_OUTPUT
                ):
                    break
            else:
                _ = stream.result
    except LaunchFailed as error:
        return error
    return None


def _until_end(client: Client, params: dict[str, Any]) -> LaunchFailed | None:
    try:
        client.call("service.wait", params, timeout_s=math.inf)
    except LaunchFailed as error:
        return error
    except WaitExpired:
        raise
    return None


def _exit_code(client: Client, name: str, failure: LaunchFailed | None) -> int:
    instances = client.call("instance.list", {"names": [name], "all": True})
    codes = [one["exit_code"] for one in instances if one["exit_code"]]
    if codes:
        return int(codes[0])
    if failure is not None:
        raise failure
    return 0 if instances else EXIT_FAILED
