"""The forecaster against plain NumPy, against its own gradient, and against itself asked in another way."""

import itertools

import numpy as np
import pytest

from finemoe.errors import FinemoeError
from finemoe.maps.forecast_network import run_network, teach_network, to_probabilities
from finemoe.maps.forecast_rows import keep_entries
from finemoe.maps.forecast_state import Scratch, Sizes, new_scratch
from finemoe.maps.forecaster import MOST_ROWS, Forecaster, default_units
from finemoe.traces import PREFILL, RoutingTrace

SIZES = [(4, 8, 2, (1, 2, 3)), (1, 4, 1, None), (3, 4, 7, (1, 2, 3)), (5, 6, 6, None), (5, 8, 2, (2, 5)), (2, 130, 16, (2,))]


def routing(rng: np.random.Generator, layers: int, experts: int, top_k: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Gates [L, T, J] and experts [T, L, K] drawn at random."""
    gates = rng.dirichlet(np.full(experts, 0.3), size=(layers, rows)).astype(np.float32)
    chosen = np.argsort(-gates, axis=-1, kind="stable")[..., : min(top_k, experts)]
    return gates, np.ascontiguousarray(chosen.transpose(1, 0, 2)).astype(np.int64)


def step_by_step(forecaster, gates, experts, starts, is_prefill, starts_request) -> tuple[np.ndarray, np.ndarray]:
    at_starts, at_gates = [], []
    for place, (begin, end) in enumerate(itertools.pairwise(starts)):
        if starts_request[place]:
            forecaster.start_request()
        at_starts.append(forecaster.start(int(end - begin), bool(is_prefill[place])))
        for layer in range(len(gates)):
            at_gates.append(forecaster.hear(layer, gates[layer, begin:end], experts[begin:end, layer].copy()))
    return np.array(at_starts), np.array(at_gates).reshape(len(at_starts), len(gates), *at_gates[0].shape)


def decode(forecaster: Forecaster, gates: np.ndarray, experts: np.ndarray, request_rows: int = 10**9) -> np.ndarray:
    count = len(experts)
    is_first = np.arange(count) % request_rows == 0
    return forecaster.forecast_block(gates, experts, np.arange(count + 1), np.zeros(count, dtype=bool), is_first)[1]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("adapts", [None, True, False], ids=["learns", "adapts", "frozen"])
def test_a_block_is_its_iterations_one_by_one(sizes, adapts):
    layers, experts, top_k, distances = sizes
    counts = np.array([5, 1, 1, 1, 20, 1, 1, 3, 3, 3, 2, 1, 1, 90, 1, 1, 12, 12, 12, 1])
    is_prefill, starts_request = np.isin(np.arange(20), [0, 4, 13]), np.isin(np.arange(20), [0, 4, 18])
    starts = np.concatenate([[0], np.cumsum(counts)])
    gates, chosen = routing(np.random.default_rng(1), layers, experts, top_k, int(counts.sum()))
    both = [Forecaster(layers, experts, top_k, distances, memory_rows=32, seed=3) for _ in range(2)]
    for one in both if adapts is not None else []:
        decode(one, gates[:, :50], chosen[:50])
        one.freeze(adapts)
    at_once = both[0].forecast_block(gates, chosen, starts, is_prefill, starts_request)
    one_by_one = step_by_step(both[1], gates, chosen, starts, is_prefill, starts_request)
    for found, expected in zip(at_once, one_by_one, strict=True):
        np.testing.assert_array_equal(found, expected)
        assert np.isfinite(found).all()
        assert found.min() >= 0
        assert found.max() <= 1
    for name, array in both[0].state().items():
        np.testing.assert_array_equal(array, both[1].state()[name])


def network(rng: np.random.Generator, num_inputs: int = 30, units: int = 13, outputs: int = 21) -> dict[str, np.ndarray]:
    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "inputs": draw(num_inputs, units),
        "places": rng.permutation(num_inputs)[:7],
        "factors": draw(7),
        "hidden_bias": draw(units),
        "weights": draw(units, outputs),
        "bias": draw(outputs),
        "gains": draw(outputs),
        "votes": draw(outputs),
    }


def scratch_of(parts: dict[str, np.ndarray]) -> Scratch:
    units, outputs = parts["weights"].shape
    return new_scratch(Sizes(1, outputs, 1, (1,), units, (), 16, 1))


def probabilities(parts: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    hidden, scores = np.empty_like(parts["hidden_bias"]), np.empty_like(parts["bias"])
    run_network(
        parts["inputs"], parts["places"], parts["factors"], len(parts["places"]), parts["hidden_bias"], parts["weights"],
        parts["bias"], parts["gains"], parts["votes"], hidden, scores, scratch_of(parts),
    )  # fmt: skip
    to_probabilities(scores)
    return hidden, scores


def plain_probabilities(parts: dict[str, np.ndarray]) -> np.ndarray:
    doubles = {name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in parts.items()}
    hidden = np.maximum(doubles["hidden_bias"] + doubles["factors"] @ doubles["inputs"][parts["places"]], 0)
    scores = hidden @ doubles["weights"] + doubles["bias"] + doubles["gains"] * doubles["votes"]
    return 1 / (1 + np.exp(-scores))


def cross_entropy(parts: dict[str, np.ndarray], targets: np.ndarray) -> float:
    probs = plain_probabilities(parts)
    return float(-(targets * np.log(probs) + (1 - targets) * np.log(1 - probs)).sum())


def test_a_network_is_what_plain_numpy_makes_of_it():
    parts = network(np.random.default_rng(0))
    np.testing.assert_allclose(probabilities(parts)[1], plain_probabilities(parts), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("is_whole", [True, False], ids=["whole", "last layer"])
def test_a_step_goes_down_the_gradient(is_whole):
    rng = np.random.default_rng(5)
    parts = network(rng)
    targets = rng.integers(0, 2, len(parts["bias"])).astype(np.float32)
    hidden, probs = probabilities(parts)
    errors = probs - targets
    errors[np.abs(errors) < 2e-3] = 0
    after, rate = {name: array.copy() for name, array in parts.items()}, np.float32(1e-3)
    teach_network(
        after["inputs"], after["places"], after["factors"], len(after["places"]), after["hidden_bias"], after["weights"],
        after["bias"], after["gains"], after["votes"], hidden, errors.copy(), rate, is_whole,
        scratch_of(parts),
    )  # fmt: skip
    for name in ("inputs", "hidden_bias", "weights", "bias", "gains"):
        taken = (parts[name] - after[name]).reshape(-1) / rate
        if not is_whole and name in ("inputs", "hidden_bias"):
            assert not taken.any()
            continue
        for place in rng.permutation(taken.size)[:40]:
            assert taken[place] == pytest.approx(slope(parts, name, place, targets), abs=0.03)


def slope(parts: dict[str, np.ndarray], name: str, place: int, targets: np.ndarray, width: float = 1e-5) -> float:
    """The derivative of the cross-entropy by one number, from two values of it."""
    doubles = {key: array.astype(np.float64) if array.dtype == np.float32 else array for key, array in parts.items()}
    losses = []
    for sign in (1, -1):
        moved = doubles[name].copy()
        moved.reshape(-1)[place] += sign * width
        losses.append(cross_entropy(doubles | {name: moved}, targets))
    return (losses[0] - losses[1]) / (2 * width)


def planted(layers: int, experts: int, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Every layer's two experts follow from the first layer's, which are drawn."""
    rng = np.random.default_rng(seed)
    moves = np.random.default_rng(99).permuted(np.tile(np.arange(experts), (layers, 1)), axis=1)
    firsts = rng.integers(0, experts, size=rows)
    chosen = np.stack([moves[:, firsts].T, (moves[:, firsts].T + 1) % experts], axis=-1)
    gates = np.zeros((layers, rows, experts), dtype=np.float32)
    np.put_along_axis(gates, chosen.transpose(1, 0, 2), np.array([0.6, 0.4], dtype=np.float32), axis=-1)
    return gates, chosen.astype(np.int64)


def share_found(forecasts: np.ndarray, experts: np.ndarray, ahead: int) -> float:
    """Recall at K of what was foretold `ahead` layers before, within the token."""
    num_layers, top_k = experts.shape[1:]
    ranked = np.argsort(-forecasts[:, : num_layers - ahead, ahead - 1], axis=-1)[..., :top_k]
    return float((ranked[..., :, None] == experts[:, ahead:, None, :]).any(axis=-1).mean())


def test_a_pattern_is_learned_and_probabilities_are_meant():
    gates, experts = planted(6, 16, 2000, seed=0)
    forecaster = Forecaster(6, 16, 2, (1, 2, 3))
    forecasts = decode(forecaster, gates, experts, request_rows=100)
    late = slice(1500, None)
    assert share_found(forecasts[late], experts[late], 3) > 0.97
    assert share_found(forecasts[:20], experts[:20], 3) < 0.6
    foretold = forecasts[late, :3, 2]
    demanded = np.zeros(foretold.shape)
    np.put_along_axis(demanded, experts[late, 3:], 1.0, axis=-1)
    assert foretold.mean() == pytest.approx(demanded.mean(), abs=0.01)


def test_a_history_teaches_before_the_first_request():
    gates, experts = planted(5, 12, 600, seed=1)
    probs = np.take_along_axis(gates.transpose(1, 0, 2), experts, axis=-1)
    history = RoutingTrace.from_topk(experts, probs, np.arange(0, 601, 60), num_experts=12)
    forecaster = Forecaster(5, 12, 2, (1, 2, 3))
    forecaster.learn_trace(history, passes=3)
    forecaster.freeze(adapts=False)
    gates, experts = planted(5, 12, 50, seed=2)
    assert share_found(decode(forecaster, gates, experts), experts, 2) > 0.95


def test_a_history_with_prefills_is_learned():
    gates, experts = planted(4, 8, 90, seed=3)
    probs = np.take_along_axis(gates.transpose(1, 0, 2), experts, axis=-1)
    step = np.tile(np.concatenate([np.zeros(20), np.arange(1, 26)]), 2).astype(np.int32)
    phase = np.where(step == 0, PREFILL, 1).astype(np.uint8)
    trace = RoutingTrace.from_topk(experts, probs, np.array([0, 45, 90]), num_experts=8, step=step, phase=phase)
    forecaster = Forecaster(4, 8, 2, (1, 2))
    before = forecaster.state()
    forecaster.learn_trace(trace, passes=1)
    assert not np.array_equal(before["weights"], forecaster.state()["weights"])


@pytest.mark.parametrize("num_rows", [2, MOST_ROWS, 4 * MOST_ROWS])
def test_rows_are_united(num_rows):
    """Rows that are all alike demand an expert unless none of them does, however few of them are asked about."""
    gates, experts = planted(3, 8, 300, seed=4)
    alone, together = Forecaster(3, 8, 2, (1, 2)), Forecaster(3, 8, 2, (1, 2))
    for one in (alone, together):
        decode(one, gates, experts)
        one.freeze(adapts=False)
        one.start_request()
    row = gates[:, 7:8]
    many = np.repeat(row, num_rows, axis=1)
    alone.start(1)
    together.start(num_rows)
    for layer in range(3):
        single = alone.hear(layer, row[layer], experts[7:8, layer].copy())
        union = together.hear(layer, many[layer], np.repeat(experts[7:8, layer], num_rows, axis=0))
        np.testing.assert_allclose(union, 1 - (1 - single.astype(np.float64)) ** num_rows, atol=1e-4)


def test_after_a_prefill_the_next_token_follows_its_last_row():
    gates, experts = planted(3, 8, 40, seed=5)
    forecaster = Forecaster(3, 8, 2, (1, 2))
    decode(forecaster, gates, experts)
    forecaster.start_request()
    forecaster.start(40, is_prefill=True)
    for layer in range(3):
        forecast = forecaster.hear(layer, gates[layer], experts[:, layer].copy())
    assert forecast.sum(axis=1).max() < 4.5  # one token's K = 2 of each layer, not forty tokens' union
    np.testing.assert_array_equal(forecaster.start(1), forecast[:2])


def test_a_request_leaves_nothing_when_frozen():
    gates, experts = planted(4, 8, 200, seed=6)
    for adapts in (True, False):
        forecaster = Forecaster(4, 8, 2, (1, 2, 3))
        decode(forecaster, gates[:, :100], experts[:100])
        forecaster.freeze(adapts)
        before = forecaster.state()
        first = decode(forecaster, gates[:, 100:], experts[100:])
        np.testing.assert_array_equal(decode(forecaster, gates[:, 100:], experts[100:]), first)
        for name, array in forecaster.state().items():
            np.testing.assert_array_equal(array, before[name])
        assert forecaster.is_frozen


def test_it_is_restored_as_it_was():
    gates, experts = planted(4, 8, 200, seed=7)
    first, second = Forecaster(4, 8, 2, (1, 2, 3), seed=1), Forecaster(4, 8, 2, (1, 2, 3), seed=2)
    decode(first, gates, experts)
    second.restore(first.state())
    first.start_request()
    np.testing.assert_array_equal(decode(first, gates, experts), decode(second, gates, experts))
    with pytest.raises(FinemoeError, match="shape"):
        Forecaster(4, 8, 2, (1, 2)).restore(first.state())


def test_the_routers_applied_ahead_are_heard():
    gates, experts = planted(4, 8, 400, seed=8)
    rng = np.random.default_rng(0)
    scrambled = rng.permutation(400)
    gates, experts = gates.copy(), experts.copy()
    for layer in range(4):  # now no layer follows from another
        order = scrambled if layer % 2 else np.arange(400)
        gates[layer], experts[:, layer] = gates[layer, order], experts[order, layer]
    forecaster, hits = Forecaster(4, 8, 2, (1, 2), strides=(1,)), 0
    for row in range(400):
        forecaster.start()
        for layer in range(4):
            ahead = gates[layer + 1 : layer + 2, row : row + 1] if layer < 3 else np.zeros((1, 1, 8), dtype=np.float32)
            forecast = forecaster.hear(layer, gates[layer, row : row + 1], experts[row : row + 1, layer].copy(), ahead)
            if row >= 300 and layer < 3:
                hits += len(set(np.argsort(-forecast[0])[:2]) & set(experts[row, layer + 1]))
    assert hits / (100 * 3 * 2) > 0.95


def test_a_layer_that_did_not_run_is_no_demand():
    gates, experts = planted(3, 8, 60, seed=9)
    forecaster = Forecaster(3, 8, 2, (1, 2, 3))
    for row in range(60):
        forecaster.start()
        for layer in range(3):
            is_idle = layer == 1
            probs = np.full((1, 8), 0.125, dtype=np.float32) if is_idle else gates[layer, row : row + 1]
            chosen = np.zeros((1, 0), dtype=np.int64) if is_idle else experts[row : row + 1, layer].copy()
            assert np.isfinite(forecaster.hear(layer, probs, chosen)).all()
    learned = forecaster.state()
    assert not learned["demands"][1].any()
    assert learned["demands"][[0, 2]].sum() == 60 * 2 * 2


def test_what_is_no_expert_is_not_demanded():
    """An id of J or more, as of a token that skips a layer, is left out; nothing is written where there is no room for it."""
    gates, experts = planted(3, 8, 60, seed=9)
    strange, plain = Forecaster(3, 8, 2, (1, 2, 3)), Forecaster(3, 8, 2, (1, 2, 3))
    for row in range(60):
        strange.start()
        plain.start()
        for layer in range(3):
            chosen = experts[row : row + 1, layer]
            skips = [8, 10**9][row % 2] if layer == 1 else -1
            told = np.array([[skips, chosen[0, 0]]]) if layer else chosen.copy()
            gate = gates[layer, row : row + 1]
            said = strange.hear(layer, gate, told), plain.hear(layer, gate, chosen[:, :1].copy() if layer else chosen.copy())
            np.testing.assert_array_equal(*said)
    for name, array in strange.state().items():
        np.testing.assert_array_equal(array, plain.state()[name])
    assert strange.state()["demands"].sum() == 60 * (2 + 1 + 1)


def test_a_gate_out_of_turn_is_refused():
    forecaster, gate, chosen = Forecaster(3, 8, 2), np.full((2, 8), 0.125, dtype=np.float32), np.zeros((2, 2), dtype=np.int64)
    forecaster.start(2)
    for layer, probs, experts in ((1, gate, chosen), (0, gate[:1], chosen[:1]), (0, gate, chosen[:1]), (0, gate[:, :7], chosen)):
        with pytest.raises(FinemoeError, match=f"the gate of layer {layer}"):
            forecaster.hear(layer, probs, experts)
    forecaster.hear(0, gate, chosen)
    with pytest.raises(FinemoeError, match="the gate of layer 0"):
        forecaster.hear(0, gate, chosen)


def test_entries_are_what_was_demanded_and_then_the_most_probable():
    probs = np.array([0.1, 0.4, 0.0, 0.2, 0.3], dtype=np.float32)
    ids, values = np.zeros(5, dtype=np.uint16), np.ones(5, dtype=np.float32)
    left = np.zeros(5, dtype=np.float32)
    ids[:2] = 3, 2
    keep_entries(probs, 2, ids, values, left)
    assert ids[:5].tolist()[:4] == [3, 2, 1, 4]
    np.testing.assert_allclose(values, np.sqrt([0.2, 0.0, 0.4, 0.3, 0.1]).astype(np.float32))
    ids[0] = 1
    keep_entries(np.array([0.0, 1.0, 0.0, 0.0, 0.0], dtype=np.float32), 1, ids, values, left)
    assert values.tolist() == [1, 0, 0, 0, 0]


def test_nothing_known_is_k_of_j():
    forecaster = Forecaster(3, 8, 2, (1, 2))
    np.testing.assert_allclose(forecaster.start(), np.full((2, 8), 0.25), atol=1e-6)
    forecaster.start_request()
    np.testing.assert_allclose(forecaster.start(3), np.full((2, 8), 1 - 0.75**3), atol=1e-6)


@pytest.mark.parametrize(
    "sizes", [(4, 8, 2, (1, 5)), (0, 8, 2, (1,)), (4, 8, 0, (2,)), (4, 8, 2, ()), (4, 8, 2, (0, 1)), (4, 8, 2, (2, 1))]
)
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(FinemoeError, match="layers"):
        Forecaster(*sizes)


@pytest.mark.parametrize("sizes", [(24, 32, 4, 8), (48, 128, 8, 8), (94, 128, 8, 8), (48, 512, 10, 8), (94, 512, 16, 8)])
def test_large_models_get_smaller_networks(sizes):
    layers, experts, top_k, num_distances = sizes
    units = default_units(*sizes)
    assert units % 8 == 0
    weights = layers * (layers / 2 + num_distances) * experts + 4 * layers * num_distances * experts
    assert 4 * units * weights < 250e6 or units == 16
    assert units * (2 * top_k * (layers + num_distances) + num_distances * experts) <= 100_000 or units == 16
