"""A routing trace as layer events: the experts that each iteration demands in each layer, as unions over its rows (DESIGN 4)."""

from collections.abc import Iterator

import numpy as np

from finemoe.policies.block import Block
from finemoe.traces import PREFILL, RoutingTrace

_MOST_ROWS, _MOST_VALUES = 512, 1 << 20  # limits of a block: rows, and gate values in them


def block_rows(trace: RoutingTrace) -> int:
    """Number of rows of a block, chosen such that memory stays bounded for any length of trace and width of model."""
    return max(64, min(_MOST_ROWS, _MOST_VALUES // (trace.num_layers * trace.num_experts)))


def iteration_blocks(trace: RoutingTrace, block_rows: int) -> Iterator[Block]:
    """The trace's iterations in order, in blocks of about `block_rows` rows (an iteration is never split). Memory that a mapped
    trace took for a block is freed before the next."""
    owners = np.repeat(np.arange(trace.num_requests), np.diff(trace.offsets))
    is_first = np.ones(trace.num_rows, dtype=np.bool_)
    is_first[1:] = (np.diff(owners) != 0) | (np.diff(trace.step) != 0)
    firsts = np.append(np.flatnonzero(is_first), trace.num_rows)
    begin = 0
    while begin < len(firsts) - 1:
        end = max(begin + 1, int(np.searchsorted(firsts, firsts[begin] + block_rows, side="right")) - 1)
        bounds = firsts[begin : end + 1]
        starts = bounds[:-1]
        yield Block(
            trace,
            rows=slice(int(bounds[0]), int(bounds[-1])),
            starts=bounds - bounds[0],
            requests=owners[starts],
            is_prefill=trace.phase[starts] == PREFILL,
            starts_request=np.isin(starts, trace.offsets[:-1]),
        )
        trace.release_pages()
        begin = end


def demanded_sets(trace: RoutingTrace, block: Block) -> tuple[np.ndarray, np.ndarray]:
    """The experts that every event of a block demands, iteration by iteration and layer by layer.

    Returns:
        begins [n·L + 1] and demanded: ascending expert ids, those of event e at demanded[begins[e]:begins[e + 1]].
    """
    num_layers, num_experts = trace.num_layers, trace.num_experts
    ids = trace.expert_ids[block.rows].astype(np.int64)
    owners = np.repeat(np.arange(block.num_iterations), np.diff(block.starts))
    if len(owners) == block.num_iterations:  # one row per iteration, as in decode: its experts are the set
        demanded = np.sort(ids.reshape(-1, ids.shape[2]), axis=1)
        return np.arange(len(demanded) + 1) * ids.shape[2], demanded.reshape(-1)
    events = owners[:, None] * num_layers + np.arange(num_layers)[None]
    is_demanded = np.zeros(block.num_iterations * num_layers * num_experts, dtype=np.bool_)
    is_demanded[events[:, :, None] * num_experts + ids] = True
    keys = np.flatnonzero(is_demanded)
    counts = np.bincount(keys // num_experts, minlength=block.num_iterations * num_layers)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), keys % num_experts


def tokens_of(trace: RoutingTrace, block: Block, begins: np.ndarray, demanded: np.ndarray) -> np.ndarray:
    """Number of rows that selected each demanded expert, one entry per entry of `demanded`."""
    if len(demanded) == block.num_iterations * trace.num_layers * trace.top_k and block.starts[-1] == block.num_iterations:
        return np.ones(len(demanded), dtype=np.int64)  # one row per iteration, as in decode
    ids = trace.expert_ids[block.rows].astype(np.int64)
    owners = np.repeat(np.arange(block.num_iterations), np.diff(block.starts))
    events = owners[:, None] * trace.num_layers + np.arange(trace.num_layers)[None]
    keys = (events[:, :, None] * trace.num_experts + ids).reshape(-1)
    counts = np.bincount(keys, minlength=block.num_iterations * trace.num_layers * trace.num_experts)
    tokens: np.ndarray = counts[np.repeat(np.arange(len(begins) - 1), np.diff(begins)) * trace.num_experts + demanded]
    return tokens


def contexts_of(contexts: np.ndarray, block: Block) -> np.ndarray:
    """Number of tokens that each iteration attends to, summed over its rows, [n]; contexts: [T] of every row of the trace."""
    sums: np.ndarray = np.add.reduceat(contexts[block.rows], block.starts[:-1])
    return sums
