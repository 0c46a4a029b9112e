"""What found no node is looked at again when there is room; what runs is left alone."""

from tests.unit.controller.harness import cluster, spec


def test_a_change_of_capacity_looks_at_what_is_nowhere_only():
    """However many services run: each change would cost as much as all of them."""
    harness = cluster("a", cpu_millis=1_000)
    for number in range(10):
        harness.apply(spec(f"s{number}", cpu_millis=100))
    harness.run()
    harness.apply(spec("large", cpu_millis=600))
    harness.run()
    large = harness.state.services["default", "large"]
    assert large.unplaced
    assert not harness.state.dirty_services

    looked_at = []
    slots_of = harness.reconciler._slots_to_place

    def noting(service, *rest):
        looked_at.append(service.key)
        return slots_of(service, *rest)

    harness.reconciler._slots_to_place = noting
    for _ in range(3):
        harness.state.capacity_changed = True
        harness.reconciler.cycle()
        assert looked_at == [large.key]
        assert large.unplaced
        looked_at.clear()


def test_it_is_placed_once_there_is_room():
    """Also when it was tried in vain meanwhile."""
    harness = cluster("a", cpu_millis=1_000)
    harness.apply(spec("small", cpu_millis=900))
    harness.run()
    harness.apply(spec("large", cpu_millis=600))
    harness.state.capacity_changed = True
    harness.run()
    assert harness.running("large") == {}

    harness.apply(spec("small", replicas=0, cpu_millis=900))
    harness.run()
    assert harness.running("large") == {1: ["a"]}
