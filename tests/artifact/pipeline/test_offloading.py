"""Tables of the live engine's passes: counts of those in line, times of those measured, the model without offloading first."""

import pandas as pd

from finemoe.artifact.figures.run_offloading import draw
from finemoe.artifact.pipeline.offloading import counts_of, has_two_passes, times_of
from finemoe.artifact.pipeline.serving import COUNTS, TIMES, Served

POLICIES = ("finemoe", "deepspeed-inference", "on-demand")
PROMPTS = pd.DataFrame({"id": ["a", "b"], "prompt": ["x", "y"]})
RESIDENT = [Served((1,), 0.5, {}), Served((2,), 0.6, {})]


def made_up() -> pd.DataFrame:
    passes = [(name, flag) for name in POLICIES for flag in [False, True][: 1 + has_two_passes(name)]]
    rows = [
        {
            "policy": name,
            "expert_memory": 0.25,
            "asynchronous": flag,
            "request": request,
            "tokens_equal": True,
            "seconds": 1.0 + flag,
        }
        | dict.fromkeys(COUNTS, 10 + flag)
        | dict.fromkeys(TIMES, 0.1 + flag)
        for name, flag in passes
        for request in PROMPTS.id
    ]
    return pd.DataFrame(rows).assign(model="mixtral-mini", dataset="questions")


def test_only_systems_that_work_next_to_inference_have_a_second_pass():
    assert [has_two_passes(name) for name in POLICIES] == [True, False, False]


def test_counts_are_of_passes_in_line():
    counts = counts_of(made_up())
    assert len(counts) == len(POLICIES) * len(PROMPTS)
    assert set(counts.hits) == {10}
    assert "asynchronous" not in counts


def test_times_are_of_measured_passes_and_begin_with_the_model_itself():
    times = times_of(made_up(), PROMPTS, RESIDENT)
    assert times.policy.tolist()[:2] == ["resident"] * 2
    assert times.seconds.tolist()[:2] == [0.5, 0.6]
    by_policy = times.groupby("policy").seconds.first()
    assert by_policy.to_dict() == {"resident": 0.5, "finemoe": 2.0, "deepspeed-inference": 1.0, "on-demand": 1.0}


def test_the_drawing_has_a_bar_for_every_policy():
    results = made_up()
    fig = draw(counts_of(results).assign(hit_rate=0.5), times_of(results, PROMPTS, RESIDENT).assign(machine="a machine"))
    assert [len(axis.containers) for axis in fig.axes] == [len(POLICIES)] * 2
    assert [axis.get_xlabel() for axis in fig.axes] == ["expert hit rate", "TPOT (ms)"]
