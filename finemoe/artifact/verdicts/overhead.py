"""The claim on the synchronous overhead: Fig. 17."""

import pandas as pd

from finemoe.artifact.claims import Claim, Statement

_MOST_MS, _MOST_SHARE = 50.0, 0.01  # as the paper reports


def overhead_tests(live: pd.DataFrame, modelled: pd.DataFrame) -> pd.DataFrame:
    """The engine's measured synchronous work in an iteration as modelled for the paper's models.

    Args:
        live, modelled: by model, ms by part, as `figures.f17.measured_table` and `modelled_table` return them.
    Returns:
        By model: engine_us_per_layer; engine_ms of an iteration; whole_ms, the modelled iteration with the engine's work;
        share, the one of the other; is_short and is_small_share, whether they are within what the paper reports.
    """
    engine_ms = live.engine_ms_per_layer * live.num_layers
    whole_ms = modelled.attention_ms + modelled.experts_ms + modelled.waiting_ms + engine_ms
    tests = pd.DataFrame({"engine_us_per_layer": 1e3 * live.engine_ms_per_layer, "engine_ms": engine_ms, "whole_ms": whole_ms})
    tests = tests.reindex(modelled.index).assign(share=engine_ms / whole_ms)
    return tests.assign(is_short=tests.engine_ms < _MOST_MS, is_small_share=tests.share <= _MOST_SHARE)


def overhead_claim(tests: pd.DataFrame) -> Claim:
    """The synchronous overhead is below 50 ms and about 1 % of the iteration.

    Args:
        tests: as `overhead_tests` returns them.
    """
    return Claim.judged(
        [
            Statement.of(f"below {_MOST_MS:g} ms", "all three models", tests.is_short),
            Statement.of("at most 1 % of an iteration", "all three models", tests.is_small_share),
        ],
        id="F17",
        artefact="Fig. 17",
        claim="FineMoE's synchronous overhead is small: below 50 ms and 1 % of an iteration",
        reported="< 50 ms, 1 % of the iteration",
        reproduced="; ".join(
            f"{row.Index} {row.engine_ms:.1f} ms, {row.share:.0%} of {row.whole_ms:.0f} ms" for row in tests.itertuples()
        ),
        panel="measured engine time in the modelled iteration of the paper's sizes",
        executor="measured and simulated",
        why=f"Collecting the context and accounting take {tests.engine_us_per_layer.mean():.0f} µs a layer on this CPU, in "
        f"Python; below 50 ms for {int(tests.is_short.sum())} of {len(tests)} models, at most 1 % of the iteration for "
        f"{int(tests.is_small_share.sum())}. On this hardware no model's iteration takes 5 s, of which 50 ms "
        "would be 1 %.",
    )
