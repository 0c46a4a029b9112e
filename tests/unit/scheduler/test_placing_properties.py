"""What holds for every cluster and every list of requests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scheduler_strategies import (
    SERVICES,
    Naive,
    amounts,
    clusters,
    contents,
    nodes,
    placed,
    plain_requests,
    requests,
    seeds,
    steady,
    value,
)

from swarmctl.scheduler import Request, Snapshot, explain, index, plan
from swarmctl.scheduler.planner import Ways

# Every way of placing, forced wherever it applies.
WAYS = {
    "one by one": Ways(batch_min=1 << 40, batch_min_spread=1 << 40, index_min=1 << 40),
    "at once": Ways(batch_min=1, batch_min_spread=1, index_min=1 << 40),
    "by index": Ways(batch_min=1 << 40, batch_min_spread=1 << 40, index_min=1),
    "as in production": Ways(),
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


@ways
@steady
@given(snapshot=clusters(), wanted=st.lists(requests, max_size=4), seed=seeds)
def test_every_way_gives_what_looking_at_every_node_for_every_copy_gives(
    way, snapshot, wanted, seed
):
    """The same nodes, in the same order, as an independent and naive scheduler."""
    wanted = [one for one in wanted if not awaits_another(one, wanted)]
    naive = Naive(snapshot, seed)
    expected = [
        (one.service, slot, node)
        for one in wanted
        for slot, node in zip(one.slots, naive.place(one), strict=False)
    ]

    assert expected == placed(snapshot.plan(wanted, seed, way))


@ways
@steady
@given(snapshot=clusters(), wanted=st.lists(plain_requests, max_size=12), seed=seeds)
def test_plain_requests_go_where_the_naive_scheduler_puts_them(way, snapshot, wanted, seed):
    """The same for requests that do not look at other instances, and more of them."""
    naive = Naive(snapshot, seed)
    expected = [
        (one.service, slot, node)
        for one in wanted
        for slot, node in zip(one.slots, naive.place(one), strict=False)
    ]

    assert expected == placed(snapshot.plan(wanted, seed, way))


@ways
@steady
@given(snapshot=clusters(), wanted=st.lists(requests, max_size=5), seed=seeds)
def test_no_node_gets_more_than_it_has(way, snapshot, wanted, seed):
    """Where something is placed, no resource that it takes exceeds the capacity."""
    result = snapshot.plan(wanted, seed, way)
    snapshot.commit(result)

    resources_of = {}
    for request, batch in zip(result.placements.requests, result.placements.batches(), strict=True):
        for node in batch.nodes:
            resources_of.setdefault(node, set()).update(dict(request.needs))
    for name, taken in resources_of.items():
        capacity, used = snapshot.nodes[name].capacity, snapshot.allocated(name)
        assert all(used[resource] <= capacity.get(resource, 0) for resource in taken)


@steady
@given(snapshot=clusters(), wanted=st.lists(requests, max_size=5), seed=seeds)
def test_planning_changes_nothing_and_repeats_itself(snapshot, wanted, seed):
    """Two plans of the same snapshot and seed are equal, and the snapshot is as before."""
    before = contents(snapshot)
    first = placed(plan(snapshot, wanted, seed))

    assert first == placed(plan(snapshot, wanted, seed))
    assert before == contents(snapshot)


@steady
@given(
    snapshot=clusters(),
    one=plain_requests,
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    data=st.data(),
)
def test_identical_requests_give_the_same_totals_in_any_order(snapshot, one, sizes, data):
    """However copies are cut into requests, each node gets as many in all."""
    parts = [
        Request(
            service=f"s{i}",
            slots=range(size),
            resources=one.resources,
            constraints=one.constraints,
            driver=one.driver,
            strategy=one.strategy,
        )
        for i, size in enumerate(sizes)
    ]
    shuffled = data.draw(st.permutations(parts))

    assert totals(plan(snapshot, parts)) == totals(plan(snapshot, shuffled))


@steady
@given(snapshot=clusters(), one=requests, seed=seeds)
def test_a_commit_allocates_exactly_what_was_planned(snapshot, one, seed):
    """Sums after a commit are the sums before, plus each placement."""
    expected, copies = contents(snapshot)
    result = plan(snapshot, [one], seed)
    for placement in result.placements:
        for resource, amount in one.needs:
            used = expected[placement.node]
            used[resource] = used.get(resource, 0) + amount
        mine = copies[one.service]
        mine[placement.node] = mine.get(placement.node, 0) + 1

    assert snapshot.commit(result) == ()
    assert (expected, copies) == contents(snapshot)


@steady
@given(snapshot=clusters(), one=requests)
def test_no_node_exceeds_the_limit_per_node(snapshot, one):
    """``max_per_node`` counts the copies that are there already."""
    before = dict(snapshot.copies(one.service))
    snapshot.commit(plan(snapshot, [one]))

    if one.max_per_node:
        for name, count in snapshot.copies(one.service).items():
            assert count <= max(one.max_per_node, before.get(name, 0))


@steady
@given(snapshot=clusters(), one=requests)
def test_values_of_a_label_stay_even_where_capacity_allows(snapshot, one):
    """A value that is two copies behind another that got one has no node left that fits."""
    if len(one.spread) != 1:
        return
    result = plan(snapshot, [one])
    snapshot.commit(result)
    count = dict.fromkeys((value(node, one.spread[0]) for node in snapshot.nodes.values()), 0)
    for name, copies in snapshot.copies(one.service).items():
        count[value(snapshot.nodes[name], one.spread[0])] += copies
    grew = {value(snapshot.nodes[p.node], one.spread[0]) for p in result.placements}
    naive = Naive(snapshot, 0)

    for node in naive.nodes:
        if naive.fits(one, node) and not awaits_another(one):
            assert all(count[other] - count[value(node, one.spread[0])] <= 1 for other in grew)


@steady
@given(snapshot=clusters(), one=requests)
def test_an_explanation_counts_every_node_once(snapshot, one):
    """The nodes that fit and the nodes of all reasons add up, and agree with the plan."""
    rejection = explain(snapshot, one).rejection

    assert len(snapshot.nodes) == rejection.fit + sum(r.nodes for r in rejection.reasons)
    naive = Naive(snapshot, 0)
    assert rejection.fit == sum(naive.fits(one, node) for node in naive.nodes)


@steady
@given(snapshot=clusters(), wanted=st.lists(requests, max_size=4), seed=seeds)
def test_what_is_not_placed_fits_nowhere(snapshot, wanted, seed):
    """Placed and unplaced slots are those asked for, and no node fits an unplaced one."""
    result = plan(snapshot, wanted, seed)

    asked = sorted((one.service, slot) for one in wanted for slot in one.slots)
    got = [(p.service, p.slot) for p in result.placements]
    left = [(one.service, slot) for one in result.unplaced for slot in one.slots]
    assert asked == sorted(got + left)
    for one in result.unplaced:
        assert one.rejection.fit == 0


@steady
@given(snapshot=clusters(), one=requests, seed=seeds)
def test_the_best_node_explained_is_the_next_one_taken(snapshot, one, seed):
    """``explain`` ranks as ``plan`` chooses."""
    result = placed(plan(snapshot, [one], seed))
    scores = explain(snapshot, one, seed).scores

    if result:
        assert result[0][2] == scores[0].node


@steady
@given(data=st.data(), steps=st.integers(0, 24))
def test_a_snapshot_changed_step_by_step_equals_one_built_at_once(data, steps):
    """Joins, leaves, changes, allocations and commits leave no trace but their sum."""
    snapshot, held = Snapshot(), []
    for _step in range(steps):
        change(snapshot, held, data)
    rebuilt = Snapshot(reversed(list(snapshot.nodes.values())))
    for name, service, resources in reversed(held):
        rebuilt.allocate(name, service, resources)

    assert contents(rebuilt) == contents(snapshot)
    wanted = data.draw(st.lists(st.one_of(plain_requests, requests), max_size=4))
    assert placed(plan(rebuilt, wanted)) == placed(snapshot.plan(wanted, 0, WAYS["by index"]))
    for one in wanted:
        assert explain(rebuilt, one) == explain(snapshot, one)


@pytest.mark.parametrize("cuts", ["one cut", "all cuts"])
@steady
@given(snapshot=clusters(), data=st.data(), seed=seeds)
def test_the_index_follows_all_changes_between_and_within_plans(cuts, snapshot, data, seed):
    """Kept from plan to plan, with any cuts, it answers as the naive scheduler does."""
    with pytest.MonkeyPatch.context() as patch:
        if cuts == "one cut":
            patch.setattr(index, "_CUTS_MAX", 1)
            patch.setattr(index, "_POWERS", 0)
        patch.setattr(index, "_MISSES_MAX", data.draw(st.sampled_from([0, 1, 32])))
        patch.setattr(index, "_CHANGED_MAX", 1)
        for _round in range(data.draw(st.integers(1, 5))):
            wanted = data.draw(st.lists(plain_requests, min_size=1, max_size=4))
            naive = Naive(snapshot, seed)
            expected = [
                (one.service, slot, node)
                for one in wanted
                for slot, node in zip(one.slots, naive.place(one), strict=False)
            ]
            result = snapshot.plan(wanted, seed, Ways(batch_min=1, index_max=4, index_min=1))
            assert expected == placed(result)
            snapshot.commit(result)
            if snapshot.nodes:
                name = data.draw(st.sampled_from(sorted(snapshot.nodes)))
                resources = data.draw(amounts)
                snapshot.allocate(name, "a", resources)
                if data.draw(st.booleans()):
                    snapshot.free(name, "a", resources)
                for placement in data.draw(st.permutations(list(result.placements)))[:2]:
                    one = next(one for one in wanted if one.service == placement.service)
                    if [w.service for w in wanted].count(one.service) == 1:
                        snapshot.free(placement.node, placement.service, one.resources)


def change(snapshot, held, data):
    """One random change, with what is allocated noted in ``held``."""
    names = sorted(snapshot.nodes)
    action = data.draw(st.sampled_from(["join", "join", "leave", "update", "take", "free", "plan"]))
    name = data.draw(st.sampled_from(names)) if names else None
    if action == "join":
        new = f"n{data.draw(st.integers(0, 9))}"
        if new not in snapshot.nodes:
            snapshot.add_node(data.draw(nodes(new)))
    elif name is None:
        return
    elif action == "leave":
        snapshot.remove_node(name)
        held[:] = [one for one in held if one[0] != name]
    elif action == "update":
        snapshot.update_node(data.draw(nodes(name)))
    elif action == "take":
        resources = data.draw(st.sampled_from([{}, {"cpu_millis": 2}, {"gpu": 1, "odd": 3}]))
        held.append((name, data.draw(st.sampled_from(SERVICES)), resources))
        snapshot.allocate(*held[-1])
    elif action == "free" and held:
        snapshot.free(*held.pop(data.draw(st.integers(0, len(held) - 1))))
    elif action == "plan":
        one = data.draw(st.one_of(plain_requests, requests))
        result = snapshot.plan([one], 0, data.draw(st.sampled_from(list(WAYS.values()))))
        snapshot.commit(result)
        held.extend((p.node, p.service, one.resources) for p in result.placements)


def totals(result):
    """How many copies each node gets."""
    return {node: len(copies) for node, copies in result.placements.by_node().items()}


def awaits_another(one, wanted=()):
    """Whether another request may make room for this one, which is then tried again."""
    alone = sum(other.service == one.service for other in wanted) < 2
    return any(
        wish.required and not (alone and wish.service == one.service) for wish in one.affinity
    )
