"""Gains made up for verdicts."""

import pandas as pd

from finemoe.artifact.verdicts.gains import REPORTED_GAINS


def gains(value: float = 0.5, **on_real_routing: float) -> pd.DataFrame:
    """The same gain over every baseline, with intervals of ± 0.01, but for the baselines named on real routing."""
    rows = [
        {"model": model, "dataset": "d", "quantity": quantity, "baseline": baseline, "gain": gain, "low": gain - 0.01}
        | {"high": gain + 0.01, "reported": 0.5}
        for model in ("mixtral-mini", "gpt-oss-20b")
        for quantity, reported in REPORTED_GAINS.items()
        for baseline in reported
        for gain in [on_real_routing.get(baseline, value) if model == "gpt-oss-20b" else value]
    ]
    return pd.DataFrame(rows)
