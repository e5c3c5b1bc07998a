"""The small trace that golden counts are taken on: eight requests of a made-up model, with everything a trace can hold.

`python -m tests.simulation.golden` wrote tests/simulation/data/golden.trace; the file, not this program, is what tests read.
"""

from pathlib import Path

import numpy as np

from finemoe.traces import DECODE, PREFILL, RoutingTrace

FILE = Path(__file__).with_name("data") / "golden.trace"
LAYERS, EXPERTS, TOP_K, DIM = 4, 6, 2, 3
STRIDES = (1, 2)


def make(seed: int = 7) -> RoutingTrace:
    """Requests with a prompt of 2 or 3 tokens and 8 decoded ones; each has a topic that its routing follows."""
    rng = np.random.default_rng(seed)
    topics = rng.dirichlet(np.full(EXPERTS, 0.4), size=(3, LAYERS))
    lengths = [2 + request % 2 + 8 for request in range(8)]
    owners = np.repeat(np.arange(8), lengths)
    noise = rng.dirichlet(np.ones(EXPERTS), size=(len(owners), LAYERS))
    probs = (0.6 * topics[owners % 3] + 0.4 * noise).astype(np.float16)
    ids = np.argsort(-probs, axis=-1, kind="stable")[..., :TOP_K]
    step = np.concatenate([np.maximum(np.arange(length) - (length - 9), 0) for length in lengths])
    ahead_ids, ahead_probs = look_ahead(probs, rng)
    return RoutingTrace(
        expert_ids=ids.astype(np.uint8),
        expert_probs=np.take_along_axis(probs, ids, axis=-1),
        offsets=np.cumsum([0, *lengths]).astype(np.int64),
        num_experts=EXPERTS,
        step=step.astype(np.int32),
        phase=np.where(step == 0, PREFILL, DECODE).astype(np.uint8),
        probs=probs,
        embedding_table=rng.normal(size=(9, DIM)).astype(np.float16),
        embedding_index=(owners % 3 * 3 + rng.integers(0, 3, len(owners))).astype(np.int32),
        splits=tuple("served" if request % 3 == 2 else "history" for request in range(8)),
        request_ids=tuple(f"golden-{request}" for request in range(8)),
        model="golden",
        lookahead_strides=STRIDES,
        lookahead_ids=ahead_ids,
        lookahead_probs=ahead_probs,
    )


def look_ahead(probs: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """What the layers ahead will say, blurred; zeros past the last layer."""
    ids = np.zeros((len(probs), len(STRIDES), LAYERS, 2 * TOP_K), dtype=np.uint8)
    kept = np.zeros(ids.shape, dtype=np.float16)
    for place, stride in enumerate(STRIDES):
        blurred = 0.7 * probs[:, stride:] + 0.3 * rng.dirichlet(np.ones(EXPERTS), size=(len(probs), LAYERS - stride))
        chosen = np.argsort(-blurred.astype(np.float16), axis=-1, kind="stable")[..., : 2 * TOP_K]
        ids[:, place, : LAYERS - stride] = chosen
        kept[:, place, : LAYERS - stride] = np.take_along_axis(blurred.astype(np.float16), chosen, axis=-1)
    return ids, kept


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    make().save(FILE)
