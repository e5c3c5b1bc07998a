"""Curves of hit rates against caches that are replayed one by one, and against a cache as plain as can be."""

import math
from collections import OrderedDict

import numpy as np
import pytest

from finemoe.cache.rules import RULES, naming
from finemoe.cache.rules.base import EvictionRule
from finemoe.errors import FinemoeError
from finemoe.simulation import curves
from finemoe.simulation.curves import hit_curves
from finemoe.simulation.replay import sweep
from finemoe.traces import DECODE, PREFILL, RoutingTrace

LAYERS, EXPERTS, TOP_K = 3, 6, 2
ALL = LAYERS * EXPERTS
CAUSAL = [name for name in sorted(RULES) if not RULES[name].needs_future]


def made(seed: int, prompts: tuple[int, ...] = (1, 3, 2), steps: int = 30) -> RoutingTrace:
    """Requests with prompts of so many tokens, and skewed routing with some memory."""
    rng = np.random.default_rng(seed)
    popularity = 0.01 / EXPERTS + 0.99 * rng.dirichlet(np.full(EXPERTS, 0.7), LAYERS)
    ids: list[np.ndarray] = []
    for _ in range(sum(prompts) + steps * len(prompts)):
        fresh = np.stack([rng.choice(EXPERTS, TOP_K, False, shares) for shares in popularity])
        ids.append(ids[-1] if ids and rng.random() < 0.3 else fresh)
    step = np.concatenate([np.maximum(0, np.arange(prompt + steps) - prompt + 1) for prompt in prompts])
    probs = np.full((len(ids), LAYERS, TOP_K), 1 / TOP_K)
    offsets = np.cumsum([0, *(prompt + steps for prompt in prompts)])
    phase = np.where(step == 0, PREFILL, DECODE)
    return RoutingTrace.from_topk(np.stack(ids), probs, offsets, EXPERTS, step, phase, model="made-0")


def replayed(trace: RoutingTrace, rule: str, sizes: list[int]) -> np.ndarray:
    reports = sweep(trace, "on-demand", [f"{size}B" for size in sizes], [rule], expert_bytes=1)
    return np.array([[request.hits for request in report.requests] for report in reports]).T


def plain_lru_hits(trace: RoutingTrace, size: int) -> list[int]:
    """By request; a set is judged as a whole, then what it displaces goes, oldest set first."""
    held: OrderedDict[tuple[int, int], None] = OrderedDict()
    hits, counts, used = [0] * trace.num_requests, {}, {}
    clock = 0
    for request, _, rows in trace.iterations():
        for layer in range(trace.num_layers):
            clock += 1
            demanded = {(layer, int(expert)) for expert in trace.expert_ids[rows, layer].reshape(-1)}
            hits[request] += len(demanded & held.keys())
            for key in demanded:
                held[key] = None
                counts[key], used[key] = counts.get(key, 0) + 1, clock
            while len(held) > size:
                del held[min(held.keys() - demanded, key=lambda key: (used[key], counts[key], key))]
    return hits


@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.parametrize("seed", range(3))
def test_one_pass_finds_what_every_cache_hits(rule, seed):
    trace, sizes = made(seed), list(range(1, ALL + 1))
    curve = hit_curves(trace, [rule], sizes)[rule]
    assert np.array_equal(curve.hits, replayed(trace, rule, sizes))
    accesses = [
        sum(
            len(np.unique(trace.expert_ids[rows, layer]))
            for request, _, rows in trace.iterations()
            if request == number
            for layer in range(LAYERS)
        )
        for number in range(trace.num_requests)
    ]
    assert curve.accesses.tolist() == accesses


@pytest.mark.parametrize("seed", range(5))
def test_lru_against_a_plain_cache(seed):
    trace = made(seed, prompts=(1, 2))
    sizes = list(range(2 * TOP_K, ALL + 1))
    curve = hit_curves(trace, ["lru"], sizes)["lru"]
    assert curve.hits.T.tolist() == [plain_lru_hits(trace, size) for size in sizes]


@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_larger_cache_hits_no_less_where_sets_fit(rule):
    """Inclusion, on which the pass rests: every hit of a cache is one of all larger caches."""
    trace = made(7)
    largest = max(len(np.unique(trace.expert_ids[rows, layer])) for _, _, rows in trace.iterations() for layer in range(LAYERS))
    hits = hit_curves(trace, [rule], range(1, ALL + 1))[rule].hits[:, largest - 1 :]
    assert (np.diff(hits, axis=1) >= 0).all()


def test_where_a_set_does_not_fit_the_pass_alone_is_wrong(monkeypatch):
    """A set that is served in turns leaves a small cache with what a larger one has let go, so that such sizes are replayed."""
    trace, sizes = made(0, prompts=(6, 6, 6, 6), steps=3), list(range(1, ALL + 1))
    truth = replayed(trace, "lfu", sizes)
    assert np.array_equal(hit_curves(trace, ["lfu"], sizes)["lfu"].hits, truth)
    run_passes = curves._run
    monkeypatch.setattr(curves, "_run", lambda *arguments: 0 * run_passes(*arguments))
    alone = hit_curves(trace, ["lfu"], sizes)["lfu"].hits
    assert not np.array_equal(alone[:, : EXPERTS - 1], truth[:, : EXPERTS - 1])
    assert np.array_equal(alone[:, EXPERTS - 1 :], truth[:, EXPERTS - 1 :])


def test_rules_side_by_side_are_as_alone():
    trace = made(1)
    together = hit_curves(trace, sorted(RULES), [4, 9, ALL])
    for rule, curve in together.items():
        assert np.array_equal(curve.hits, hit_curves(trace, [rule], [4, 9, ALL])[rule].hits)


def test_a_rule_of_ones_own():
    """Ids, from the lowest: what an expert is worth depends on nothing but itself."""
    own = EvictionRule(lowest_id_goes)
    with naming({"own": own}):
        trace, sizes = made(2), list(range(1, ALL + 1))
        assert np.array_equal(hit_curves(trace, ["own"], sizes)["own"].hits, replayed(trace, "own", sizes))


def lowest_id_goes(stats, experts, worth):
    for place in range(len(experts)):
        worth[place] = experts[place]


def nothing_can_be_given_for_it(stats, experts, worth):
    for place in range(len(experts)):
        worth[place] = np.inf


def test_a_rule_that_finds_everything_priceless_still_makes_room():
    with naming({"priceless": EvictionRule(nothing_can_be_given_for_it)}):
        trace, sizes = made(2), list(range(1, ALL + 1))
        found = hit_curves(trace, ["priceless"], sizes)["priceless"]
        assert np.array_equal(found.hits, replayed(trace, "priceless", sizes))


def fails(stats, experts, worth):
    raise ZeroDivisionError("nothing is worth anything")


def test_a_failing_rule_is_named_and_raised():
    with naming({"failing": EvictionRule(fails)}), pytest.raises(FinemoeError, match="failing failed: ZeroDivisionError"):
        hit_curves(made(0), ["failing"], [4])


def test_the_curve_does_not_depend_on_blocks(monkeypatch):
    trace = made(3)
    whole = hit_curves(trace, CAUSAL, [3, 8, 12])
    monkeypatch.setattr("finemoe.simulation.curves.block_rows", lambda trace: 4)
    assert all(np.array_equal(whole[rule].hits, curve.hits) for rule, curve in hit_curves(trace, CAUSAL, [3, 8, 12]).items())


def test_hit_rates_are_over_all_requests():
    curve = hit_curves(made(4), ["lru"], [ALL])["lru"]
    first_uses = len({(layer, int(expert)) for row in made(4).expert_ids for layer in range(LAYERS) for expert in row[layer]})
    assert math.isclose(curve.hit_rates[0], 1 - first_uses / curve.accesses.sum())


@pytest.mark.parametrize("sizes", [[], [0], [ALL + 1], [0.5], [-3, 4]])
def test_sizes_are_whole_numbers_of_experts(sizes):
    with pytest.raises(FinemoeError, match=rf"whole numbers of experts from 1 to {ALL}"):
        hit_curves(made(0), ["lru"], sizes)


def test_an_unknown_rule_is_refused():
    with pytest.raises(FinemoeError, match="unknown eviction rule 'lur'"):
        hit_curves(made(0), ["lur"], [3])
