"""Every method of the controller is known to be repeatable, or not to be."""

from unittest import mock

from swarmctl.controller.daemon import _handlers
from swarmctl.proto import repeatable
from tests.unit.controller.requests_fixture import a_rig


async def test_every_method_is_in_the_table(autojump_clock, tmp_path):
    """In one of its three parts, and nothing else is."""
    async with a_rig(tmp_path, None, "n1") as rig:
        methods = set(_handlers(rig.cluster, mock.Mock()))
    parts = [repeatable.READS, repeatable.SETTING, repeatable.CHANGING]
    assert sum(map(len, parts)) == len(frozenset().union(*parts))
    assert methods == frozenset().union(*parts)


def test_what_a_newer_release_serves_is_not_repeated():
    """A method that nobody here knows may do anything."""
    assert not repeatable.is_repeatable("service.conjure", {})
