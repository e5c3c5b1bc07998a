"""Tables of requests made up for tests."""

import pandas as pd


def requests(**seconds: list[float]) -> pd.DataFrame:
    """A table of three requests for each system, with these TPOTs; hit rates of one half."""
    rows = [
        {"system": name.replace("_", "-"), "request": number, "tpot_s": s, "ttft_s": 2 * s, "num_decode_steps": 10 + number}
        | {"hits": 5, "accesses": 10, "demand_bytes": 1, "prefetched_bytes": 2, "wasted_bytes": 0}
        for name, values in seconds.items()
        for number, s in enumerate(values)
    ]
    return pd.DataFrame(rows).replace("on-demand", "on-demand (LRU)")
