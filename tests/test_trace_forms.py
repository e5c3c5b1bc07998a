"""Whatever form a trace's content is given in: what is accepted replays, and is saved and loaded with equal content; what is not
is refused in one line that names the argument."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import finemoe
from finemoe.errors import FinemoeError
from finemoe.maps.store import ExpertMapStore
from finemoe.policies.base import PolicySetup
from finemoe.traces import RoutingTrace
from tests.test_traces import STRIDES, assert_same, make_trace

ARRAYS = [field.name for field in dataclasses.fields(RoutingTrace) if isinstance(getattr(make_trace(), field.name), np.ndarray)]
VECTORS = [name for name in ARRAYS if getattr(make_trace(), name).ndim == 1]
NAMES = ("request_ids", "splits")


def strided(array: np.ndarray) -> np.ndarray:
    return np.repeat(array, 2, axis=0)[::2]


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def ragged(array: np.ndarray) -> list:
    return [*array.tolist()[:-1], [0, 1, 2, 3, 4, 5, 6]]


TAKEN: dict[str, Callable[[np.ndarray], Any]] = {
    "as it is": lambda array: array,
    "list": lambda array: array.tolist(),
    "tuple": lambda array: tuple(array.tolist()),
    "rows": list,
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "little-endian": lambda array: array.astype(array.dtype.newbyteorder("<")),
    "Fortran": np.asfortranarray,
    "strided": strided,
    "backwards": lambda array: array[::-1].copy()[::-1],
    "read-only": read_only,
    "64 bits": lambda array: array.astype(np.int64 if array.dtype.kind in "iu" else np.float64),
    "32 bits": lambda array: array.astype(np.uint32 if array.dtype.kind in "iu" else np.float32),
    "tensor": lambda array: torch.from_numpy(array.copy()),
}
REFUSED: dict[str, Callable[[np.ndarray], Any]] = {
    "objects": lambda array: array.astype(object),
    "texts": lambda array: array.astype(str),
    "truth values": lambda array: array.astype(bool),
    "complex": lambda array: array.astype(complex),
    "128 bits": lambda array: array.astype(np.longdouble),
    "ragged": ragged,
    "generator": iter,
    "one number": lambda array: 3,
    "text": lambda array: "012",
    "masked": lambda array: np.ma.MaskedArray(array, np.zeros(array.shape, bool)),
    "tensor that learns": lambda array: torch.from_numpy(array.astype(np.float32)).requires_grad_(),
    "bfloat16": lambda array: torch.from_numpy(array.astype(np.float32)).bfloat16(),
}
TAKEN_NAMES: dict[str, Callable[[tuple], Any]] = {
    "tuple": tuple,
    "list": list,
    "array": np.array,
    "objects": lambda values: np.array(values, dtype=object),
    "generator": iter,
    "Series": pd.Series,
    "Index": pd.Index,
    "NumPy's": lambda values: tuple(np.array(values)),
    "dictionary": dict.fromkeys,
}
REFUSED_NAMES: dict[str, Callable[[tuple], Any]] = {
    "one text": lambda values: "abc",
    "one number": lambda values: 3,
    "set": lambda values: {"a", "b", "c"},
    "bytes": lambda values: [b"a", b"b", b"c"],
    "fractions": lambda values: np.array([0.0, 1.0, 2.0]),
    "truth values": lambda values: [True, False, True],
    "nothings": lambda values: [None] * 3,
    "nested": lambda values: [["a"], ["b"], ["c"]],
    "paths": lambda values: [object()] * 3,
}
COUNTS = {"plain": int, "NumPy's": np.int64, "one byte": np.uint8, "0-d": lambda n: np.array([n]).max()}
REFUSED_COUNTS = [4.0, "6", True, None, 0, -1, np.float32(6), np.array([6]), np.bool_(True)]


def kept(trace: RoutingTrace, folder) -> RoutingTrace:
    """Saved and loaded, in memory and mapped, with equal content."""
    trace.save(folder / "a.trace")
    for mapped in (True, False):
        found = RoutingTrace.load(folder / "a.trace", mapped)
        assert_same(found, trace)
    return found


def assert_content(found: RoutingTrace, expected: RoutingTrace) -> None:
    """The same values; types may be wider."""
    for field in dataclasses.fields(RoutingTrace):
        value, wanted = getattr(found, field.name), getattr(expected, field.name)
        np.testing.assert_array_equal(value, wanted, err_msg=field.name)
        if not isinstance(wanted, np.ndarray):
            assert type(value) is type(wanted)
            assert value == wanted


def refusal(make: Callable[[], Any], *names: str) -> None:
    with pytest.raises(FinemoeError) as caught:
        make()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(names), message


@settings(max_examples=60)
@given(st.data())
def test_what_is_accepted_is_saved_and_loaded_and_what_is_not_is_named(tmp_path_factory, data):
    """The trace in any mixture of forms."""
    trace = make_trace(data.draw(st.integers(0, 99)))
    is_taken = data.draw(st.booleans())
    forms = {name: data.draw(st.sampled_from(sorted(TAKEN)), name) for name in ARRAYS}
    given_as = {name: TAKEN[form](getattr(trace, name)) for name, form in forms.items()}
    for name in NAMES:
        given_as[name] = TAKEN_NAMES[data.draw(st.sampled_from(["tuple", "list", "array", "generator", "Series"]))](
            getattr(trace, name)
        )
    given_as["num_experts"] = COUNTS[data.draw(st.sampled_from(sorted(COUNTS)))](trace.num_experts)
    given_as["lookahead_strides"] = data.draw(st.sampled_from([list(STRIDES), np.array(STRIDES), torch.tensor(STRIDES)]))
    given_as["model"] = data.draw(st.sampled_from([trace.model, np.str_(trace.model)]))
    if is_taken:
        found = kept(RoutingTrace(**given_as), tmp_path_factory.mktemp("trace"))
        assert_content(found, trace)
        return
    name = data.draw(st.sampled_from(ARRAYS))
    given_as[name] = REFUSED[data.draw(st.sampled_from(sorted(REFUSED)))](getattr(trace, name))
    refusal(lambda: RoutingTrace(**given_as), name)


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("form", TAKEN)
def test_every_form_of_an_array_is_taken(name, form, tmp_path):
    trace = make_trace()
    given_as = {name: TAKEN[form](getattr(trace, name))}
    assert_content(kept(dataclasses.replace(trace, **given_as), tmp_path), trace)


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("form", REFUSED)
def test_every_other_form_is_refused(name, form):
    trace = make_trace()
    refusal(lambda: dataclasses.replace(trace, **{name: REFUSED[form](getattr(trace, name))}), name)


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("form", [pd.Series, pd.Index])
def test_columns_of_a_table_are_taken(name, form, tmp_path):
    trace = make_trace()
    assert_content(kept(dataclasses.replace(trace, **{name: form(getattr(trace, name))}), tmp_path), trace)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", TAKEN_NAMES)
def test_names_are_taken_from_any_sequence(name, form, tmp_path):
    values = ("a", "history", "€")
    found = kept(dataclasses.replace(make_trace(), **{name: TAKEN_NAMES[form](values)}), tmp_path)
    assert (getattr(found, name), {type(value) for value in getattr(found, name)}) == (values, {str})


@pytest.mark.parametrize("form", ["tuple", "array", "generator", "Series", "NumPy's"])
def test_requests_may_have_numbers_for_names(form, tmp_path):
    found = kept(dataclasses.replace(make_trace(), request_ids=TAKEN_NAMES[form]((7, 0, 2**40))), tmp_path)
    assert found.request_ids == (7, 0, 2**40)
    assert {type(number) for number in found.request_ids} == {int}
    assert found.select(np.array([2, 0])).request_ids == (2**40, 7)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", REFUSED_NAMES)
def test_other_names_are_refused(name, form):
    refusal(lambda: dataclasses.replace(make_trace(), **{name: REFUSED_NAMES[form](("a", "b", "c"))}), name)


@pytest.mark.parametrize("value", REFUSED_COUNTS, ids=repr)
def test_a_number_of_experts_that_is_none_is_refused(value):
    trace = make_trace()
    refusal(lambda: dataclasses.replace(trace, num_experts=value), "num_experts is")
    refusal(lambda: RoutingTrace.from_topk(trace.expert_ids, trace.expert_probs, trace.offsets, value), "num_experts is")


@pytest.mark.parametrize("value", [1, "12", [1.0, 3.0], [True], np.array(["1", "3"]), {1, 3}, [None]], ids=repr)
def test_strides_that_are_none_are_refused(value):
    refusal(lambda: dataclasses.replace(make_trace(), lookahead_strides=value), "lookahead_strides must be")


@pytest.mark.parametrize("value", [3, b"m", ["m"], np.array(["m"]), object], ids=str)
def test_a_model_that_is_no_text_is_refused(value):
    refusal(lambda: dataclasses.replace(make_trace(), model=value), "model must be a string")


def test_what_is_not_known_may_be_none(tmp_path):
    trace = make_trace()
    nothing = dict.fromkeys(("tokens", "embedding_table", "embedding_index", "lookahead_ids", "lookahead_probs"))
    nothing |= dict.fromkeys(("request_ids", "splits", "lookahead_strides", "model"))
    found = kept(dataclasses.replace(trace, **nothing), tmp_path)
    assert (found.request_ids, found.splits, found.lookahead_strides, found.model) == ((), (), (), "")
    for name in set(ARRAYS) - {*nothing, "probs"}:
        refusal(lambda name=name: dataclasses.replace(trace, **{name: None}), name)


@pytest.mark.parametrize("form", [*TAKEN, "whole fractions"])
def test_top_k_input_in_every_form(form, tmp_path):
    """`from_topk` takes whole numbers in any type, since tables hold them so."""
    trace = make_trace()
    expected = RoutingTrace.from_topk(
        trace.expert_ids, trace.maps()[..., :2] * 0 + 0.5, trace.offsets, 6, trace.step, trace.phase
    )
    take = TAKEN.get(form, lambda array: array.astype(float))
    arrays = [take(getattr(expected, name)) for name in ("expert_ids", "expert_probs", "offsets")]
    details = {name: take(getattr(expected, name)) for name in ("step", "phase")}
    assert_same(kept(RoutingTrace.from_topk(*arrays, np.int64(6), **details), tmp_path), expected)


@pytest.mark.parametrize("form", REFUSED)
@pytest.mark.parametrize("name", ["expert_ids", "expert_probs", "offsets", "step", "phase"])
def test_top_k_input_in_no_usable_form(form, name):
    trace = make_trace()
    good = {field: getattr(trace, field) for field in ("expert_ids", "expert_probs", "offsets", "step", "phase")}
    good["expert_probs"] = np.full(trace.expert_ids.shape, 0.5)
    refusal(lambda: RoutingTrace.from_topk(**(good | {name: REFUSED[form](good[name])}), num_experts=6), name)


def test_ids_alone_are_refused_with_the_remedy():
    ids = make_trace().expert_ids
    refusal(lambda: RoutingTrace.from_topk(ids, None, [0, len(ids)], 6), "expert_probs is None; if only the experts are known")
    assert RoutingTrace.from_topk(ids, np.full(ids.shape, 1 / 2), [0, len(ids)], 6).maps().max() == 0.5


def test_offsets_that_are_no_rows_are_not_rounded():
    ids = make_trace().expert_ids
    refusal(lambda: RoutingTrace.from_topk(ids, np.full(ids.shape, 0.5), [0, 2.7, len(ids)], 6), "offsets must be integers")


@pytest.mark.parametrize("form", [list, tuple, iter, np.array, torch.tensor, pd.Series, lambda values: np.array(values, ">u8")])
def test_requests_and_rows_are_chosen_by_any_sequence_of_numbers(form, tmp_path):
    trace = make_trace()
    assert_same(kept(trace.select(form([2, 0])), tmp_path), trace.select(np.array([2, 0])))
    arranged = trace.arranged(form([3, 4, 0, 1]), [0, 2, 4])
    assert_same(kept(arranged, tmp_path), trace.arranged(np.array([3, 4, 0, 1]), np.array([0, 2, 4])))


@pytest.mark.parametrize("chosen", [[0.0], [True, False, True], ["r0"], 0, [[0, 1]], "0", [None]], ids=repr)
def test_requests_and_rows_that_are_no_numbers_are_refused(chosen):
    trace = make_trace()
    refusal(lambda: trace.select(chosen), "requests")
    refusal(lambda: trace.arranged(chosen, [0, 1]), "rows")
    refusal(lambda: trace.arranged([15], [0, 1]), "there is no row 15; the trace has 15")
    refusal(lambda: trace.arranged([-1], [0, 1]), "there is no row -1")


@pytest.mark.parametrize("form", ["list", "big-endian", "strided", "Fortran", "read-only", "64 bits"])
def test_every_form_replays_alike(form):
    trace = make_trace(lengths=(4, 5, 4, 6))
    taken = dataclasses.replace(trace, **{name: TAKEN[form](getattr(trace, name)) for name in ARRAYS})
    for policy in ("finemoe", "promoe"):
        reports = [
            finemoe.replay(one.split("served"), policy, 0.5, history=one.split("history"), prefetch_distance=1)
            for one in (trace, taken)
        ]
        assert repr(reports[0]) == repr(reports[1])  # with figures that are none, which equal nothing


@settings(max_examples=30)
@given(
    st.lists(st.sampled_from([int, np.int64, np.uint8, np.int16]), min_size=5, max_size=5),
    st.sampled_from(["m", np.str_("m"), None]),
)
def test_a_store_of_numpy_sizes_is_saved_and_loaded(tmp_path_factory, types, model):
    path = tmp_path_factory.mktemp("store") / "a.maps"
    sizes = [kind(size) for kind, size in zip(types, (3, 6, 5, 4, 2), strict=True)]
    store = ExpertMapStore(*sizes, model=model)
    trace = make_trace()
    store.add(trace.maps(), trace.embeddings())
    store.save(path)
    found = ExpertMapStore.load(path)
    assert (found.capacity, found.prefetch_distance, found.model) == (4, 2, model or "")
    np.testing.assert_array_equal(found.maps(), store.maps())
    np.testing.assert_array_equal(found.embeddings(), store.embeddings())


@pytest.mark.parametrize("value", [3.0, "3", True, None, np.float64(3), [3]], ids=repr)
@pytest.mark.parametrize("name", ["num_layers", "num_experts", "embedding_dim", "capacity", "prefetch_distance"])
def test_a_store_of_no_size_is_refused(name, value):
    sizes = {"num_layers": 3, "num_experts": 6, "embedding_dim": 5, "capacity": 4, "prefetch_distance": 2}
    refusal(lambda: ExpertMapStore(**(sizes | {name: value})), f"{name} is")


def test_options_of_numpy_numbers_are_saved_with_a_store(tmp_path):
    setup = PolicySetup(np.int64(3), np.int64(6), np.int64(2), prefetch_distance=np.uint8(2), store_capacity=np.int64(9))
    store = ExpertMapStore(setup.num_layers, setup.num_experts, 0, setup.store_capacity, setup.prefetch_distance, np.str_("m"))
    store.save(tmp_path / "a.maps")
    assert ExpertMapStore.load(tmp_path / "a.maps", "m").capacity == 9


@pytest.mark.parametrize("form", TAKEN)
def test_records_in_every_form_enter_a_store(form):
    trace = make_trace()
    expected, found = ExpertMapStore(3, 6, 5, 9, 2), ExpertMapStore(3, 6, 5, 9, 2)
    expected.add(trace.maps(), trace.embeddings())
    found.add(TAKEN[form](trace.maps()), TAKEN[form](trace.embeddings()))
    np.testing.assert_array_equal(found.map_codes, expected.map_codes)
    np.testing.assert_array_equal(found.embedding_codes, expected.embedding_codes)
    nearest = found.nearest_embeddings(TAKEN[form](trace.embeddings()))
    np.testing.assert_array_equal(nearest, expected.nearest_embeddings(trace.embeddings()))


@pytest.mark.parametrize("form", sorted(set(REFUSED) - {"truth values"}))
def test_other_records_are_refused_by_a_store(form):
    maps, embeddings = make_trace().maps(), make_trace().embeddings()
    store = ExpertMapStore(3, 6, 5, 9, 2)
    refusal(lambda: store.add(REFUSED[form](maps), embeddings), "maps")
    refusal(lambda: store.add(maps, REFUSED[form](embeddings)), "embeddings")
    assert len(store) == 0
    store.add(maps, embeddings)
    refusal(lambda: store.nearest_embeddings(REFUSED[form](embeddings)), "embeddings")


def test_values_that_single_precision_does_not_hold_are_refused():
    trace = make_trace()
    huge = np.full(trace.embedding_table.shape, 1e300)
    refusal(lambda: dataclasses.replace(trace, embedding_table=huge), "embedding_table holds 1e+300 in entry 0")
    refusal(lambda: ExpertMapStore(3, 6, 5).add(trace.maps(), np.full((15, 5), 1e300)), "embeddings hold")


def test_names_of_more_digits_than_a_file_can_hold_are_refused():
    refusal(lambda: dataclasses.replace(make_trace(), request_ids=(1, 2, 10**5000)), "request_ids has a whole number of 16610")
