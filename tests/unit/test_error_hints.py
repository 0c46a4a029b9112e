"""Faults that people read in `ps` and on the command line say what to do."""

import pytest

from swarmctl.agent import guard
from swarmctl.agent.fencing import GuardFence, NotFenced
from swarmctl.controller.etcd import faults


def test_what_may_not_be_started_now_says_when(tmp_path):
    """No guard; a guard and no lease; a list that cannot be written."""
    fence = GuardFence(tmp_path / "data", tmp_path / "run")
    with pytest.raises(NotFenced, match="not alive") as no_guard:
        fence.check()
    fence._page[guard.BEAT_NS] = guard.boottime_ns()
    with pytest.raises(NotFenced, match="lease") as no_lease:
        fence.check()
    fence._list.rmdir()
    with pytest.raises(NotFenced, match="list") as no_list:
        fence.enlist(7, "7")
    assert all(one.value.hint for one in (no_guard, no_lease, no_list))


@pytest.mark.parametrize(
    "answer",
    [
        {"code": 8, "message": "etcdserver: too many requests"},
        {"code": 3, "message": "etcdserver: key is not provided"},
        {"code": 7, "message": "etcdserver: permission denied"},
        {"code": 14, "message": "etcdserver: corrupt cluster"},
        {},
    ],
)
def test_whatever_etcd_refuses_has_a_hint(answer):
    """Also what we have never seen it say."""
    assert faults.refused(answer, "127.0.0.1:2379").hint
