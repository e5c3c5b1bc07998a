"""The importer of the public gpt-oss-20b routing, on files of the publisher's shape and on the external sample."""

import gzip
import json

import numpy as np
import pytest

from finemoe.errors import FinemoeError
from finemoe.importers import Options, import_trace
from finemoe.importers.gpt_oss import NUM_EXPERTS, load_gpt_oss

ARRAYS = ("expert_ids", "expert_probs")


def routing(rows: int, layers: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Experts and probabilities [rows, layers, 4], in no order; probabilities as exact in half precision as the publisher's."""
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.permutation(NUM_EXPERTS)[:4] for _ in range(rows * layers)]).reshape(rows, layers, 4)
    return ids, rng.dirichlet(np.ones(4), size=(rows, layers)).astype(np.float16)


def write_npz(path, num_requests=10, tokens=4, **changes):
    ids, probs = routing(num_requests * tokens)
    offsets = np.arange(num_requests + 1) * tokens
    arrays = {"expert_ids": ids.astype(np.uint8), "expert_probs": probs, "offsets": offsets} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return ids, probs


def raw_request(rows=5, layers=3, seed=0, first=99):
    """A request as the publisher writes it."""
    ids, probs = routing(rows, layers, seed)
    tokens = [
        {
            f"token_{first + row}": {
                f"layer_{layer}": {
                    "selected_experts": ids[row, layer].tolist(),
                    "selected_probs": probs[row, layer].astype(float).tolist(),
                }
                for layer in range(layers)
            }
        }
        for row in range(rows)
    ]
    return {"row_index": 7 + seed, "dataset": "set", "category": "kind", "router_data": tokens}


def write_raw(path, request):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(request)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def assert_routes(trace, rows, ids, probs):
    """The rows hold the given experts with their probabilities, by descending probability."""
    for row, wanted_ids, wanted_probs in zip(range(trace.num_rows)[rows], ids, probs, strict=True):
        for layer in range(trace.num_layers):
            order = sorted(range(4), key=lambda place: -wanted_probs[layer, place])
            assert trace.expert_ids[row, layer].tolist() == [wanted_ids[layer, place] for place in order]
            assert trace.expert_probs[row, layer].tolist() == [wanted_probs[layer, place] for place in order]


def test_an_npz_comes_by_descending_probability_and_is_split_7_to_3(tmp_path):
    ids, probs = write_npz(tmp_path / "trace.npz")
    trace = load_gpt_oss(tmp_path / "trace.npz")
    assert_routes(trace, slice(None), ids, probs)
    assert (trace.offsets.tolist(), trace.request_ids) == (list(range(0, 41, 4)), ())
    assert trace.splits.count("history") == 7
    assert trace.splits == load_gpt_oss(tmp_path / "trace.npz").splits
    assert len({load_gpt_oss(tmp_path / "trace.npz", seed).splits for seed in range(5)}) > 1


def test_an_npz_takes_its_requests_names_from_the_list_beside_it(tmp_path):
    write_npz(tmp_path / "trace.npz", num_requests=2)
    lines = [json.dumps({"request": i, "dataset": "set", "category": f"kind {i}"}) for i in range(2)]
    (tmp_path / "requests.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    assert load_gpt_oss(tmp_path / "trace.npz").request_ids == ("set/kind 0/0", "set/kind 1/1")
    (tmp_path / "requests.jsonl.gz").write_bytes(gzip.compress(lines[0].encode()))
    with pytest.raises(FinemoeError, match=r"trace.npz: request_ids has 1 entries for 2 requests"):
        load_gpt_oss(tmp_path / "trace.npz")
    (tmp_path / "requests.jsonl.gz").write_bytes(gzip.compress(b'{"request": 0, "dataset": "set"}'))
    with pytest.raises(FinemoeError, match=r"requests.jsonl.gz: a request lacks category"):
        load_gpt_oss(tmp_path / "trace.npz")


@pytest.mark.parametrize("name", ["True_True_examples.json", "True_True_examples.json.gz"])
def test_a_file_of_the_publisher_is_one_request(tmp_path, name):
    trace = load_gpt_oss(write_raw(tmp_path / name, raw_request()))
    assert_routes(trace, slice(None), *routing(5))
    assert (trace.offsets.tolist(), trace.request_ids, trace.num_experts) == ([0, 5], ("set/kind/7",), NUM_EXPERTS)
    assert trace.step.tolist() == [0, 1, 2, 3, 4]


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path):
    write_raw(tmp_path / "b" / "False_True_examples.json", raw_request(rows=2, seed=2))
    write_raw(tmp_path / "a" / "True_True_examples.json.gz", raw_request(rows=4, seed=1))
    write_raw(tmp_path / "a" / "True_True.json", {"sample_count": 3})
    trace = load_gpt_oss(tmp_path)
    assert (trace.offsets.tolist(), trace.request_ids) == ([0, 4, 6], ("set/kind/8", "set/kind/9"))
    assert_routes(trace, trace.rows_of(0), *routing(4, seed=1))
    assert_routes(trace, trace.rows_of(1), *routing(2, seed=2))
    assert sorted(trace.splits) == ["history", "served"]


def lose_layer(request):
    del request["router_data"][3]["token_102"]["layer_1"]


def lose_last_layer(request):
    del request["router_data"][3]["token_102"]["layer_2"]


def set_layer(key, value):
    def change(request):
        request["router_data"][3]["token_102"]["layer_1"][key] = value

    return change


def lose_key(request):
    del request["router_data"][3]["token_102"]["layer_1"]["selected_probs"]


def lose_expert(request):
    for layer in request["router_data"][3]["token_102"].values():
        layer["selected_experts"].pop()
        layer["selected_probs"].pop()


def lose_token(request):
    del request["router_data"][3]


def join_tokens(request):
    request["router_data"][3] |= request["router_data"].pop(4)


def flatten_token(request):
    request["router_data"][3] = []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lose_layer, "row 3 lacks layer_1"),
        (lose_last_layer, r"row 3 has \(2, 4\) layers and experts, but row 0 \(3, 4\)"),
        (lose_key, "row 3 lacks selected_probs"),
        (lose_expert, r"row 3 has \(3, 3\) layers and experts, but row 0 \(3, 4\)"),
        (lose_token, "row 3 is token 103, not 102"),
        (join_tokens, "row 3 is not in the publisher's format"),
        (flatten_token, "row 3 is not in the publisher's format"),
        (set_layer("selected_experts", [1, 2, 3]), r"row 3 is not .* its layers list \[3, 4\] experts or probabilities"),
        (set_layer("selected_experts", [1, 2, 3, 32]), "expert_ids hold 32, outside 0..31, in row 3, layer 1"),
        (set_layer("selected_experts", [1, 2, 3, 3]), "expert_ids name expert 3 twice in row 3, layer 1"),
        (set_layer("selected_experts", [1, 2, 3, 0.5]), "row 3 is not in the publisher's format"),
        (set_layer("selected_probs", [0.5, 0.5, 0.5, 0.5]), "sum to 2.000 over the K experts, not 1, in row 3, layer 1"),
        (set_layer("selected_probs", [0.5, 0.5, "0", 0]), "row 3 is not in the publisher's format"),
        (set_layer("selected_probs", [1.5, -0.5, 0, 0]), r"negative, NaN or infinite \(-0.5\) in row 3, layer 1"),
        (lambda request: request.pop("category"), "a request lacks category"),
        (lambda request: request.pop("router_data"), "is not a request with router_data"),
        (lambda request: request["router_data"].clear(), "is not a request with router_data"),
    ],
)
def test_what_is_wrong_in_a_publishers_file_is_named_with_file_and_row(tmp_path, change, message):
    request = raw_request()
    change(request)
    write_raw(tmp_path / "a_examples.json", raw_request())
    write_raw(tmp_path / "b_examples.json", request)
    with pytest.raises(FinemoeError, match=rf"b_examples.json: .*{message}"):
        load_gpt_oss(tmp_path)


def test_files_of_different_models_are_not_mixed(tmp_path):
    write_raw(tmp_path / "a_examples.json", raw_request(layers=3))
    write_raw(tmp_path / "b_examples.json", raw_request(layers=2))
    with pytest.raises(FinemoeError, match=r"b_examples.json: has \(2, 4\) .* but a_examples.json \(3, 4\)"):
        load_gpt_oss(tmp_path)


def test_unusable_files_are_named(tmp_path):
    with pytest.raises(FinemoeError, match=r"none.npz: no such trace"):
        load_gpt_oss(tmp_path / "none.npz")
    with pytest.raises(FinemoeError, match=r"has no \*_examples.json"):
        load_gpt_oss(tmp_path)
    write_npz(tmp_path / "part.npz", expert_probs=None)
    with pytest.raises(FinemoeError, match=r"part.npz: lacks the array\(s\) expert_probs"):
        load_gpt_oss(tmp_path / "part.npz")
    write_npz(tmp_path / "odd.npz", expert_probs=np.ones((40, 3, 3)) / 3)
    with pytest.raises(FinemoeError, match=r"odd.npz: .* differ in shape"):
        load_gpt_oss(tmp_path / "odd.npz")
    write_npz(tmp_path / "late.npz", offsets=np.array([0, 8, 4, 40]))
    with pytest.raises(FinemoeError, match=r"late.npz: offsets must rise, but request 1"):
        load_gpt_oss(tmp_path / "late.npz")


@pytest.mark.parametrize("name", ["a_examples.json", "a_examples.json.gz", "folder"])
def test_the_format_is_found(tmp_path, name):
    path = tmp_path / name
    (tmp_path / "folder").mkdir()
    write_raw(path / "a_examples.json" if name == "folder" else path, raw_request())
    found = import_trace(path, None, Options())
    assert (found.format, found.trace.model, found.trace.num_experts) == ("gpt-oss", "gpt-oss-20b", 32)
    assert (found.experts_from, found.notes, set(found.trace.phase.tolist())) == ("stated in the file", (), {1})
    known = load_gpt_oss(path)
    assert found.trace.request_ids == known.request_ids
    np.testing.assert_array_equal(np.sort(found.trace.expert_ids), np.sort(known.expert_ids))


@pytest.mark.parametrize("name", ["a.npz", "a_examples.json", "a_examples.json.gz"])
def test_damaged_files_are_named(tmp_path, name):
    path = tmp_path / name
    write_npz(path) if path.suffix == ".npz" else write_raw(path, raw_request())
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"\xff" * 40):
        path.write_bytes(damaged)
        with pytest.raises(FinemoeError, match=f"{name}: damaged, or of another format"):
            load_gpt_oss(path)


def test_the_publishers_files_hold_what_the_npz_holds(shared_data):
    folder = shared_data / "routing" / "gpt-oss-20b"
    if not (folder / "raw").is_dir():
        pytest.skip("the gpt-oss-20b routing is not among the external data")
    whole, raw = load_gpt_oss(folder / "decode_traces.npz"), load_gpt_oss(folder / "raw")
    assert (whole.num_requests, whole.num_rows, whole.num_layers, whole.top_k) == (369, 107442, 24, 4)
    with gzip.open(folder / "requests.jsonl.gz", "rt", encoding="utf-8") as lines:
        numbers = {request["prompt"]: request["request"] for request in map(json.loads, lines)}
    files = sorted((folder / "raw").glob("*_examples.json.gz"))
    assert raw.num_requests == len(files) > 0
    for index, path in enumerate(files):
        request = json.loads(gzip.decompress(path.read_bytes()))
        number = numbers[request["original_prompt"]]
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(raw, name)[raw.rows_of(index)], getattr(whole, name)[whole.rows_of(number)])
        assert raw.request_ids[index] == f"{request['dataset']}/{request['category']}/{request['row_index']}"
        assert whole.request_ids[number] == f"{request['dataset']}/{request['category']}/{number}"
