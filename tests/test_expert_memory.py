"""What `finemoe info` recommends, and whether its reason is true."""

import numpy as np
import pytest

import finemoe
from finemoe.cli.expert_memory import ExpertMemory
from finemoe.simulation.synthetic import Recipe, synthetic_trace

LAYERS, EXPERTS, TOP_K = 12, 32, 3
TRACE = synthetic_trace(Recipe(0.2, 0.3, 0.6, 8), LAYERS, EXPERTS, TOP_K, 1, 40).decode()


def hits_with(slots: int) -> int:
    return finemoe.replay(TRACE, "on-demand", slots / (LAYERS * EXPERTS), eviction="lru").hits


def test_with_fewer_slots_than_a_tokens_cycle_lru_hits_nothing():
    shared = sum(
        len(np.intersect1d(now, before))
        for token, last in zip(TRACE.expert_ids[1:], TRACE.expert_ids[:-1], strict=True)
        for now, before in zip(token, last, strict=True)
    )
    assert shared > 0
    assert hits_with((LAYERS - 1) * TOP_K) == 0
    assert hits_with(LAYERS * TOP_K) >= shared


@pytest.mark.parametrize(
    ("sizes", "slots", "text"),
    [((24, 32, 4), 120, "1.25 x the 96 experts"), ((2, 4, 4), 8, "all experts, at most 1.25 x the 8")],
)
def test_a_quarter_more_than_a_token_activates_but_no_more_than_there_are(sizes, slots, text):
    memory = ExpertMemory(1000, 300, *sizes)
    facts = memory.facts()
    assert facts["recommended_slots"] == slots
    assert facts["recommended_expert_memory_bytes"] == slots * 1000 + 300
    assert facts["recommended_because"].startswith(text)
    assert facts["smallest_expert_memory_bytes"] == 1300
    assert "room" not in ExpertMemory(1000, 0, *sizes).facts()["smallest_because"]
