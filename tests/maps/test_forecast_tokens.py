"""What a forecaster knows of tokens, against lists of what each has demanded, and formulas in double precision."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from finemoe.maps.forecast_state import NEWEST, NONE, OCCURRENCES
from finemoe.maps.forecaster import Forecaster
from finemoe.maps.token_directory import TokenDirectory, identities
from finemoe.traces import RoutingTrace
from tests.maps.test_forecaster import SIZES, routing, step_by_step

LAYERS, EXPERTS, TOP_K = 4, 12, 2
LEAST_ODDS = np.log(0.02 / 0.98)


def embeddings_of(tokens: np.ndarray, width: int = 6) -> np.ndarray:
    """Of each token the same row, [B, width] float32 of half precision."""
    table = np.random.default_rng(11).standard_normal((tokens.max() + 1, width)).astype(np.float16)
    return table[tokens].astype(np.float32)


def lexical(tokens: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Every token has its own two experts in every layer; gates [L, T, J], experts [T, L, K]."""
    own = np.random.default_rng(seed).permuted(np.tile(np.arange(EXPERTS), (tokens.max() + 1, LAYERS, 1)), axis=-1)
    experts = own[tokens][..., :TOP_K].astype(np.int64)
    gates = np.full((LAYERS, len(tokens), EXPERTS), 0.02, dtype=np.float32)
    np.put_along_axis(gates, experts.transpose(1, 0, 2), np.array([0.5, 0.3], dtype=np.float32), axis=-1)
    return gates, experts


def hear(forecaster: Forecaster, gates: np.ndarray, experts: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    """Decode token after token; what was foretold of the first layers before any gate, [T, F, J]."""
    forecasts = []
    for row in range(len(experts)):
        forecasts.append(forecaster.start(1, False, embeddings[row : row + 1]))
        for layer in range(LAYERS):
            forecaster.hear(layer, gates[layer, row : row + 1], experts[row : row + 1, layer].copy())
    return np.array(forecasts)


def share_foretold(forecasts: np.ndarray, experts: np.ndarray) -> float:
    ranked = np.argsort(-forecasts, axis=-1, kind="stable")[..., :TOP_K]
    return float((ranked[..., :, None] == experts[:, : forecasts.shape[1], None, :]).any(axis=-1).mean())


def test_a_token_known_is_foretold_before_any_gate():
    tokens = np.random.default_rng(1).integers(0, 40, 400)
    gates, experts = lexical(tokens)
    forecaster = Forecaster(LAYERS, EXPERTS, TOP_K)
    forecasts = hear(forecaster, gates, experts, embeddings_of(tokens))
    seen = np.array([token in tokens[:row] for row, token in enumerate(tokens)])
    assert share_foretold(forecasts[seen], experts[seen]) > 0.97
    assert share_foretold(forecasts[~seen], experts[~seen]) < 0.5


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_block_is_its_iterations_one_by_one(sizes, is_frozen):
    layers, experts, top_k, distances = sizes
    counts = np.array([5, 1, 1, 1, 20, 1, 1, 3, 3, 3, 2, 1])
    is_prefill, starts_request = np.isin(np.arange(12), [0, 4]), np.isin(np.arange(12), [0, 4, 7])
    starts = np.concatenate([[0], np.cumsum(counts)])
    rng = np.random.default_rng(1)
    gates, chosen = routing(rng, layers, experts, top_k, int(counts.sum()))
    embeddings = embeddings_of(rng.integers(0, 9, counts.sum()))
    both = [Forecaster(layers, experts, top_k, distances, memory_rows=32, num_tokens=6) for _ in range(2)]
    for one in both if is_frozen else []:
        one.forecast_block(gates, chosen, starts, is_prefill, starts_request, embeddings)
        one.freeze()
    at_once = both[0].forecast_block(gates, chosen, starts, is_prefill, starts_request, embeddings)
    at_starts, at_gates = [], []
    for place, (begin, end) in enumerate(itertools.pairwise(starts)):
        if starts_request[place]:
            both[1].start_request()
        at_starts.append(both[1].start(int(end - begin), bool(is_prefill[place]), embeddings[begin:end]))
        at_gates += [both[1].hear(layer, gates[layer, begin:end], chosen[begin:end, layer].copy()) for layer in range(layers)]
    np.testing.assert_array_equal(at_once[0], np.array(at_starts))
    np.testing.assert_array_equal(at_once[1].reshape(-1, *at_gates[0].shape), np.array(at_gates))
    for name, array in both[0].state().items():
        np.testing.assert_array_equal(array, both[1].state()[name])


def test_occurrences_are_the_latest():
    """Against a list for each token, also where rows of one prefill are the same token."""
    tokens = np.random.default_rng(2).integers(0, 5, 90)
    gates, experts = routing(np.random.default_rng(3), LAYERS, EXPERTS, TOP_K, 90)
    forecaster = Forecaster(LAYERS, EXPERTS, TOP_K)
    embeddings = embeddings_of(tokens)
    hear(forecaster, gates[:, :60], experts[:60], embeddings)
    forecaster.start_request()
    forecaster.start(30, True, embeddings[60:])
    for layer in range(LAYERS):
        forecaster.hear(layer, gates[layer, 60:], experts[60:, layer].copy())
    state = forecaster.state()
    for token in range(5):
        place = int(np.flatnonzero(state["token_keys"] == identities(embeddings_of(np.array([token, 4])))[0])[0])
        mine = experts[tokens == token]
        assert state["tokens_heard"][place] == len(mine)
        for number in range(max(len(mine) - OCCURRENCES, 0), len(mine)):
            np.testing.assert_array_equal(state["token_experts"][place, number % OCCURRENCES], mine[number])


def odds_of_votes(occurrences: np.ndarray, reliance: float) -> np.ndarray:
    """[J] for occurrences [n, K], by the definition."""
    counts = np.bincount(occurrences.reshape(-1), minlength=EXPERTS).astype(np.float64)
    shares = np.clip((counts + 0.5 * TOP_K / EXPERTS) / (len(occurrences) + 0.5), 0.02, 0.98)
    return np.where(counts > 0, reliance * 0.25 * (np.log(shares / (1 - shares)) - LEAST_ODDS), 0.0)


def test_gains_go_down_the_gradient():
    """One layer ahead a network learns when the next gate has spoken: by error times vote, of each expert."""
    tokens = np.random.default_rng(4).integers(0, 3, 30)
    gates, experts = routing(np.random.default_rng(5), 2, EXPERTS, TOP_K, 31)
    forecaster = Forecaster(2, EXPERTS, TOP_K, (1,), num_units=8)
    embeddings = embeddings_of(np.append(tokens, 0))
    for row in range(30):
        forecaster.start(1, False, embeddings[row : row + 1])
        for layer in range(2):
            forecaster.hear(layer, gates[layer, row : row + 1], experts[row : row + 1, layer].copy())
    before = forecaster.state()
    mine = experts[:30][tokens == 0][-OCCURRENCES:]
    at_start = forecaster.start(1, False, embeddings[30:])
    at_gate = forecaster.hear(0, gates[0, 30:31], experts[30:31, 0].copy())
    forecaster.hear(1, gates[1, 30:31], experts[30:31, 1].copy())
    forecaster.start_request()
    after, rate = forecaster.state(), min(0.03, 0.12 / (1 + 1))
    used = np.zeros((2, EXPERTS))
    np.put_along_axis(used, experts[30], 1.0, axis=1)
    reliance = float(before["reliance"][1, 0])
    votes = odds_of_votes(mine[:, 1], reliance)
    taken = (before["token_gains"][0] - after["token_gains"][0]) / rate
    np.testing.assert_allclose(taken, (at_gate[0] - used[1]) * votes, atol=2e-4)
    first = (before["first_gains"][0] - after["first_gains"][0]) / rate
    np.testing.assert_allclose(first, (at_start[0] - used[0]) * odds_of_votes(mine[:, 0], reliance), atol=2e-3)
    assert before["reliance"][1, 0] != after["reliance"][1, 0]


def test_tokens_that_are_not_known_change_nothing():
    gates, experts = routing(np.random.default_rng(6), LAYERS, EXPERTS, TOP_K, 60)
    forecaster = Forecaster(LAYERS, EXPERTS, TOP_K)
    hear(forecaster, gates, experts, embeddings_of(np.arange(60)))
    forecaster.freeze(adapts=False)
    told = hear(forecaster, gates, experts, embeddings_of(np.arange(60, 120)))
    forecaster.start_request()
    starts, none = np.arange(61), np.zeros(60, dtype=bool)
    np.testing.assert_array_equal(told, step_by_step(forecaster, gates, experts, starts, none, none)[0])


def test_tokens_are_restored(tmp_path):
    tokens = np.random.default_rng(7).integers(0, 30, 200)
    gates, experts = lexical(tokens)
    first = Forecaster(LAYERS, EXPERTS, TOP_K, num_tokens=20)  # of thirty
    hear(first, gates, experts, embeddings_of(tokens))
    first.save(tmp_path / "learned")
    second = Forecaster.load(tmp_path / "learned")
    found = [hear(one, gates, experts, embeddings_of(tokens)) for one in (first, second)]
    np.testing.assert_array_equal(*found)


def test_a_history_teaches_its_tokens():
    tokens = np.random.default_rng(8).integers(0, 25, 300)
    gates, experts = lexical(tokens)
    probs = np.tile(np.array([0.6, 0.4], dtype=np.float32), (300, LAYERS, 1))
    history = RoutingTrace.from_topk(experts, probs, np.arange(0, 301, 30), num_experts=EXPERTS)
    table = embeddings_of(np.arange(25)).astype(np.float16)
    history = replace(history, embedding_table=table, embedding_index=tokens.astype(np.int32))
    forecaster = Forecaster(LAYERS, EXPERTS, TOP_K)
    forecaster.learn_trace(history)
    forecaster.freeze()
    gates, experts = lexical(np.arange(25))
    assert share_foretold(hear(forecaster, gates, experts, table.astype(np.float32)), experts) > 0.97


def test_the_oldest_token_makes_room():
    """Against a list of those known, the oldest first."""
    directory, known = TokenDirectory(3), []
    assert directory.places(np.array([5, 6, 5]), lets_in=False).tolist() == [NONE] * 3
    count = 0
    for key in np.random.default_rng(10).integers(0, 6, 200).tolist():
        (found,) = directory.places(np.array([key]), lets_in=True).tolist()
        expected = dict(known).get(key)
        if expected is None:
            expected, count = NEWEST - count % 3, count + 1
            known = [*known[-2:], (key, NEWEST - expected)]
        assert found == expected
        assert sorted(directory.keys[: len(known)].tolist()) == sorted(key for key, _ in known)


def test_an_identity_is_of_the_bits():
    rows = np.random.default_rng(9).standard_normal((50, 7)).astype(np.float16).astype(np.float32)
    found = identities(rows)
    assert len(set(found.tolist())) == 50
    np.testing.assert_array_equal(found, identities(rows.astype(np.float64)))
    np.testing.assert_array_equal(found[::-1], identities(rows[::-1]))
