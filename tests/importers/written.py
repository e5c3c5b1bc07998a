"""One small routing, and how each format has it: tests write it in several and expect one trace."""

import base64
import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finemoe.traces import DECODE, PREFILL, RoutingTrace

ARRAYS = ("expert_ids", "expert_probs", "offsets", "step", "phase")
COLUMNS = ("request", "token", "phase", "layer", "slot", "expert", "weight")


@dataclass(frozen=True)
class Written:
    """ids, weights: [T, L, K]; lengths, prompts: tokens of each request, and of its prompt."""

    ids: np.ndarray
    weights: np.ndarray
    lengths: tuple[int, ...] = (5, 4)
    prompts: tuple[int, ...] = (3, 1)

    @property
    def offsets(self) -> list[int]:
        return [0, *np.cumsum(self.lengths).tolist()]

    def requests(self):
        """(number, ids, weights, prompt length) of each."""
        for number, prompt in enumerate(self.prompts):
            rows = slice(*self.offsets[number : number + 2])
            yield number, self.ids[rows], self.weights[rows], prompt

    def long_rows(self) -> list[tuple]:
        """In the order of COLUMNS."""
        return [
            (
                number,
                token,
                "prefill" if token < prompt else "decode",
                layer,
                slot,
                int(expert),
                float(weights[token, layer, slot]),
            )
            for number, ids, weights, prompt in self.requests()
            for token in range(len(ids))
            for layer in range(ids.shape[1])
            for slot, expert in enumerate(ids[token, layer])
        ]


def make(layers: int = 3, experts: int = 7, top_k: int = 2, seed: int = 0) -> Written:
    """Routing whose weights do not sum to 1, unsorted."""
    rng = np.random.default_rng(seed)
    ids = np.argsort(rng.random((9, layers, experts)), axis=-1)[..., :top_k]
    return Written(ids, rng.uniform(0.1, 1, ids.shape).astype(np.float32))


def expected(one: Written, has_weights: bool = True) -> dict[str, np.ndarray]:
    """The arrays of its trace, worked out token by token in plain Python."""
    ids, probs = np.zeros_like(one.ids), np.zeros(one.ids.shape, np.float16)
    for token, layer in np.ndindex(one.ids.shape[:2]):
        pairs = [
            (expert, np.float32(weight)) for expert, weight in zip(one.ids[token, layer], one.weights[token, layer], strict=True)
        ]
        pairs.sort(key=lambda pair: (-pair[1], pair[0]) if has_weights else pair[0])
        ids[token, layer] = [expert for expert, _ in pairs]
        total = sum(float(weight) for _, weight in pairs)
        probs[token, layer] = [weight / total if has_weights else 1 / len(pairs) for _, weight in pairs]
    step, phase = [], []
    for length, prompt in zip(one.lengths, one.prompts, strict=True):
        step += [0] * prompt + list(range(1, length - prompt + 1))
        phase += [PREFILL] * prompt + [DECODE] * (length - prompt)
    return dict(zip(ARRAYS, (ids, probs, one.offsets, step, phase), strict=True))


def assert_is(trace: RoutingTrace, one: Written, has_weights: bool = True) -> None:
    arrays = expected(one, has_weights)
    assert trace.has_weights is has_weights
    for name in ARRAYS:
        if name == "expert_probs":
            np.testing.assert_allclose(trace.expert_probs, arrays[name], rtol=1e-3)
        else:
            np.testing.assert_array_equal(getattr(trace, name), arrays[name], err_msg=name)


def assert_same(one: RoutingTrace, other: RoutingTrace) -> None:
    """Equal in every array, name and flag."""
    for name in ARRAYS:
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    for name in ("request_ids", "has_weights", "num_experts"):
        assert getattr(one, name) == getattr(other, name), name


def write_csv(path: Path, one: Written, columns: tuple[str, ...] = COLUMNS, rows: list[tuple] | None = None) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in one.long_rows() if rows is None else rows:
            values = dict(zip(COLUMNS, row, strict=True))
            writer.writerow([repr(value) if isinstance(value := values[name], float) else value for name in columns])
    return path


def write_npz(path: Path, one: Written, **changes) -> Path:
    arrays = {"expert_ids": one.ids, "weights": one.weights, "offsets": one.offsets, "prompt_tokens": one.prompts}
    np.savez(path, **{name: value for name, value in (arrays | changes).items() if value is not None})
    return path


def write_jsonl(path: Path, objects: list) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in objects))
    return path


def request_objects(one: Written) -> list[dict]:
    return [
        {"request": number, "expert_ids": ids.tolist(), "weights": weights.astype(float).tolist(), "prompt_tokens": prompt}
        for number, ids, weights, prompt in one.requests()
    ]


def write_route_trace(path: Path, one: Written, num_experts: int = 7) -> Path:
    """As BigMoeOnEdge's docs/telemetry.md lays it out."""
    layers, top_k = one.ids.shape[1:]
    header = ["# route_trace v1", f"# model=m.gguf arch=a n_layer={layers} n_expert={num_experts} n_expert_used={top_k}"]
    header += [f"# layer={layer} expert_bytes={100 + layer} dense_bytes=7" for layer in range(layers)]
    rows = [
        f"{request},{0 if phase == 'prefill' else 1},{token},{layer},{slot},{expert},{weight!r},0,0"
        for request, token, phase, layer, slot, expert, weight in one.long_rows()
    ]
    path.write_text("\n".join([*header, "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes", *rows]) + "\n")
    return path


def npy_as_base64(array: np.ndarray) -> str:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return base64.b64encode(buffer.getvalue()).decode()


def vllm_responses(one: Written) -> list[dict]:
    """As v0.22 answers /v1/completions: routing of all tokens but the last that was generated."""
    return [
        {
            "id": f"cmpl-{number}",
            "object": "text_completion",
            "model": "tiny",
            "choices": [{"index": 0, "text": "...", "routed_experts": npy_as_base64(ids.astype(np.uint8))}],
            "usage": {"prompt_tokens": prompt, "completion_tokens": len(ids) - prompt + 1},
        }
        for number, ids, _, prompt in one.requests()
    ]


def sglang_responses(one: Written) -> list[dict]:
    """As /generate answers: flat int32 in base64, and lengths in meta_info."""
    return [
        {
            "text": "...",
            "meta_info": {
                "id": f"req-{number}",
                "prompt_tokens": prompt,
                "completion_tokens": len(ids) - prompt + 1,
                "routed_experts": base64.b64encode(ids.astype(np.int32).tobytes()).decode(),
            },
        }
        for number, ids, _, prompt in one.requests()
    ]
