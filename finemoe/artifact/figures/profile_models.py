"""What a recorded trace holds of each request (notebooks/stages/1_profile_models.ipynb)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from finemoe.artifact.analysis.entropy import entropy_bits
from finemoe.artifact.plotting import model_title, provenance, use_style
from finemoe.traces import DECODE, RoutingTrace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLOCK_ROWS = 1024  # the maps of all rows at once would take a gigabyte


def request_table(routing: RoutingTrace, topics: Sequence[str]) -> pd.DataFrame:
    """One row for each request of a trace.

    Args:
        topics: of the requests, in their order.
    Returns:
        Rows (request, topic, split, prompt_tokens, decode_steps, entropy_bits, experts_used): entropy_bits is the mean entropy of
        the gates' distributions, experts_used the share of all experts that the request activates at least once.
    """
    blocks = [slice(begin, begin + _BLOCK_ROWS) for begin in range(0, routing.num_rows, _BLOCK_ROWS)]
    entropies = np.concatenate([entropy_bits(routing.maps(block)).mean(axis=1) for block in blocks])
    rows = [routing.rows_of(request) for request in range(routing.num_requests)]
    first_ids = np.arange(routing.num_layers)[None, :, None] * routing.num_experts  # of each layer
    all_experts = routing.num_layers * routing.num_experts
    return pd.DataFrame(
        {
            "request": routing.request_ids,
            "topic": topics,
            "split": routing.splits,
            "prompt_tokens": [int((routing.phase[r] != DECODE).sum()) for r in rows],
            "decode_steps": [int((routing.phase[r] == DECODE).sum()) for r in rows],
            "entropy_bits": [entropies[r].mean() for r in rows],
            "experts_used": [len(np.unique(routing.expert_ids[r] + first_ids)) / all_experts for r in rows],
        }
    )


def draw(table: pd.DataFrame, model: str, dataset: str) -> "Figure":
    """Histograms over requests: entropy of the gates, and how much of the model a request uses.

    Args:
        table: as from `request_table`. model, dataset: their names.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    use_style()
    fig, axes = plt.subplots(1, 2)
    sns.histplot(table, x="entropy_bits", hue="split", ax=axes[0], element="step")
    sns.histplot(table, x="experts_used", hue="split", ax=axes[1], element="step", legend=False)
    axes[0].set(xlabel="mean gate entropy of a request (bits)", ylabel="requests", title=model_title(model))
    axes[1].set(xlabel="share of all experts a request uses", ylabel="requests", title=dataset)
    num_rows = table.prompt_tokens.sum() + table.decode_steps.sum()
    provenance(fig, f"recorded routing, {len(table)} requests, {num_rows} token rows")
    return fig
