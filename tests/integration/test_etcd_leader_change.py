"""etcd's own leader is killed in the midst of a launch of 10,000: three real members.

That it is in the midst does not depend on how fast the machine is: half of the nodes are frozen
until it was killed, so what they were given cannot run yet.

The instances are simulated: no machine of these tests runs 10,000.  That real ones are not touched
when etcd's members fail is in ``test_controllers.py``.
"""

import json
import signal
import time
import urllib.request
from pathlib import Path

import pytest

from lab.etcd import EtcdCluster
from tests.e2e.cluster import until
from tests.integration.test_controllers import Controllers, service

MANY = 10_000
# How long it took is printed; this is when it is given up.
PATIENCE_S = 120.0


def leading_member(etcd: EtcdCluster) -> int:
    """The number of the member that leads, as each says of itself."""
    for number, address in enumerate(etcd.addresses):
        request = urllib.request.Request(
            f"http://{address.removeprefix('http://')}/v3/maintenance/status", b"{}"
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            status = json.load(answer)
        if status["leader"] == status["header"]["member_id"]:
            return number
    raise AssertionError("no member leads")


@pytest.mark.alone
def test_etcds_leader_changes_in_a_launch(tmp_path: Path):
    """All of it runs, once; what is asked for meanwhile is committed."""
    with EtcdCluster(tmp_path / "etcd", 3) as etcd:
        controllers = Controllers(tmp_path, etcd, 2)
        try:
            for number in range(4):
                agent = controllers.agent(f"n{number}")
                agent.arguments += ["--capacity", "memory=64g"]
                controllers.agents.append(agent)
            controllers.start(nodes=0)

            def states() -> dict[str, int]:
                found: dict[str, int] = controllers.ask("cluster.statistics")["states"]
                return found

            def running() -> int:
                return states().get("running", 0)

            began = time.monotonic()
            frozen = controllers.agents[2:]
            for agent in frozen:
                agent.send_signal(signal.SIGSTOP)
            try:
                controllers.apply(service("many", MANY))
                until(lambda: running() > 0, PATIENCE_S, "the first ones")
                before = states()
                etcd.members[leading_member(etcd)].kill()
                killed = time.monotonic()
                after = states()
            finally:
                for agent in frozen:
                    agent.send_signal(signal.SIGCONT)
            # Some ran when it was killed, and some did not yet once it was gone.
            assert 0 < before["running"] < MANY, before
            assert 0 < after["running"] < MANY, after
            controllers.apply(service("meanwhile", 1))
            committed_s = time.monotonic() - killed
            until(lambda: running() == MANY + 1, PATIENCE_S, "all of them")
            took_s = time.monotonic() - began
            print(  # noqa: T201 - captured
                f"leader killed at {before} of {MANY}, {after} after it; "
                f"a commit {committed_s:.1f} s after; all after {took_s:.1f} s"
            )

            def all_well() -> bool:
                nodes = controllers.ask("node.list")
                return sum(one["instances"] for one in nodes) == MANY + 1 and {
                    one["state"] for one in nodes
                } == {"ready"}

            until(all_well, PATIENCE_S, "every node ready, and each copy once")
        finally:
            print(controllers.base.logs())  # noqa: T201 - captured
            controllers.close()
