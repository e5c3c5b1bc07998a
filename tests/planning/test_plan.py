"""Plans: what fits, what is chosen, what is refused, and the form of the result."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import typer

import finemoe
from finemoe.cli import app
from finemoe.errors import FinemoeError
from finemoe.planning.choices import DISK_BYTES_PER_S, Choice, disk_bytes, room_bytes, with_disk
from finemoe.planning.loaded import loaded_models
from finemoe.planning.place import MOST_RESERVE_BYTES, place_of
from finemoe.planning.plan import ranked
from finemoe.simulation.synthetic import Recipe, synthetic_trace
from finemoe.simulation.testbed import Testbed

FIELDS = {
    "model_type": "qwen3_moe",
    "vocab_size": 1000,
    "hidden_size": 512,
    "moe_intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": True,
}
EXPERT = 2 * 3 * 512 * 1024  # bytes
BED = replace(Testbed.load("laptop-8gb"), title="a small machine")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    import json

    path = tmp_path_factory.mktemp("model") / "config.json"
    path.write_text(json.dumps(FIELDS), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def plans(model):
    """With memory for a few, half and all of the 96 experts."""
    return {size: finemoe.plan(model, f"{size}MiB", BED, context=100, formats=["mxfp4"]) for size in (60, 180, 400)}


def test_choices_fit_and_the_first_is_the_fastest(plans):
    for plan in plans.values():
        assert all(one.device_bytes <= plan.memory_bytes - plan.reserve_bytes for one in plan.choices)
        assert len(plan.choices) == 3
        slack = 1.02 if plan.best.is_lossy else 1.02 * 1.25
        assert plan.best.tpot_s[1] <= slack * min(one.tpot_s[1] for one in plan.choices)
        assert any(not one.is_lossy for one in plan.choices)


def test_more_memory_is_never_predicted_slower(plans):
    least = [min(one.tpot_s[1] for one in plan.choices) for plan in plans.values()]
    assert least == sorted(least, reverse=True)


def test_with_all_experts_in_memory_nothing_is_uncertain(plans):
    best = plans[400].best
    assert best.expert_format == "bf16"
    assert best.hit_rate[1] > 0.95
    assert best.tpot_s[1] <= 1.1 * best.tpot_s[0]


def test_assumed_routing_gives_a_range_and_a_trace_a_number(model, plans):
    trace = synthetic_trace(Recipe(0.2, 0.3, 0.3, 8), 6, 16, 2, 10, 20)
    found = finemoe.plan(model, "60MiB", BED, context=100, formats=[], trace=trace)
    assert found.best.tpot_s[0] == found.best.tpot_s[1]
    assert found.basis.startswith("recorded routing of this model: 3 requests, 60 tokens, after 7 others")
    low, high = plans[60].best.tokens_per_s
    assert low < high
    assert plans[60].basis.endswith("fitted to hit rates of gpt-oss-20b and gemma-4-26b")
    for layers, top_k in ((5, 2), (6, 4)):
        other = synthetic_trace(Recipe(0.2, 0.3, 0.3, 8), layers, 16, top_k, 5, 5)
        with pytest.raises(
            FinemoeError, match=f"the trace has {layers} layers x 16 experts / {top_k}, .* 6 layers x 16 experts / "
        ):
            finemoe.plan(model, "60MiB", BED, trace=other)


def test_the_result_is_plain_and_its_names_are_stable(plans):
    found = plans[60].to_dict()
    assert list(found) == [
        *("model", "machine", "memory_bytes", "host_memory_bytes", "context", "basis", "other_bytes", "kv_bytes"),
        *("reserve_bytes", "choices", "misfits", "notes"),
    ]
    assert list(found["choices"][0]) == [
        *("expert_format", "is_lossy", "policy", "eviction", "slots", "all_experts", "expert_memory_bytes", "device_bytes"),
        *("host_bytes", "disk_bytes", "tokens_per_s", "tpot_s", "hit_rate", "ttft_s", "command"),
    ]


def test_commands_name_options_that_exist(plans):
    known = {name for parameter in typer.main.get_command(app).commands["run"].params for name in parameter.opts}
    for plan in plans.values():
        for one in plan.choices:
            program, command, *words = shlex.split(one.command)
            assert (program, command) == ("finemoe", "run")
            assert {word for word in words if word.startswith("-")} <= known
            assert ("--expert-format" in words) == one.is_lossy


def test_too_little_memory_is_refused_with_what_would_fit(model):
    attention, norms, router = 512 * 64 * (8 + 2 + 2 + 8), 2 * 64 + 2 * 512, 16 * 512
    other, kv = 2 * (1000 * 512 + 512 + 6 * (attention + norms + router)), 2 * 6 * 2 * 2 * 64
    with pytest.raises(
        FinemoeError, match="does not fit: with one expert in memory and a context of 4,096 tokens it needs"
    ) as found:
        finemoe.plan(model, "16MiB", BED, formats=[])
    assert "a small machine has 16.0 MiB" in str(found.value)
    largest = int(str(found.value).split()[-2].replace(",", ""))
    reserve = int(0.08 * 16 * 2**20)
    assert largest == (16 * 2**20 - reserve - other - EXPERT) // kv
    assert finemoe.plan(model, "16MiB", BED, formats=[], context=largest).best.slots == 1
    with pytest.raises(FinemoeError, match="does not fit"):
        finemoe.plan(model, "16MiB", BED, formats=[], context=largest + 1)


def test_a_format_that_does_not_fit_says_by_how_much(model):
    found = finemoe.plan(model, "13MiB", BED, context=1, formats=["mxfp4"])
    (misfit,) = found.misfits
    assert misfit.expert_format == "mxfp4"  # it needs the room of an unpacked expert as well
    (sizes,) = loaded_models(model, model, ["mxfp4"])
    place = place_of(BED, memory_bytes=13 * 2**20)
    assert misfit.missing_bytes == sizes.smallest_bytes - room_bytes(sizes, place, 1) > 0


def test_what_host_memory_does_not_hold_is_read_from_disk(model):
    (sizes,) = loaded_models(model, model)
    place = place_of("laptop-8gb", host_bytes=sizes.all_experts_bytes // 4)
    assert disk_bytes(sizes, place) == sizes.all_experts_bytes - sizes.all_experts_bytes // 4
    mean = with_disk(sizes, place).load_bytes_per_s
    assert 1 / mean == pytest.approx(0.25 / place.testbed.load_bytes_per_s + 0.75 / DISK_BYTES_PER_S, rel=1e-6)
    found = finemoe.plan(model, "60MiB", BED, context=100, formats=[], host_memory="100MiB")
    assert "--host-memory 100.00MiB" in found.best.command
    assert "of the experts are on disk" in " ".join(found.notes)


def test_links(model):
    assert place_of("laptop-8gb", "24GB/s").testbed.load_bytes_per_s == 24e9
    with pytest.raises(FinemoeError, match="a paced link is for machines without a GPU"):
        place_of("laptop-8gb", "paced:24GB/s")
    with pytest.raises(FinemoeError, match="not a rate"):
        place_of("laptop-8gb", "24GB")
    assert place_of("laptop-8gb").reserve_bytes(1e12) == MOST_RESERVE_BYTES


def made_up(time_s, policy="on-demand", is_lossy=False):
    times = {"tokens_per_s": (1 / time_s,) * 2, "tpot_s": (time_s,) * 2, "hit_rate": (0.5, 0.5), "ttft_s": 1.0}
    return Choice("mxfp4" if is_lossy else "bf16", is_lossy, policy, None, 1, 2, 3, 4, 5, 0, command="", **times)


def test_a_simpler_choice_comes_before_one_that_gains_little():
    little, much = made_up(0.99, "finemoe-plus"), made_up(0.9, "finemoe-plus")
    assert ranked([made_up(1.0), little])[0].policy == "on-demand"
    assert ranked([made_up(1.0), much])[0].policy == "finemoe-plus"


def test_a_lossy_choice_must_gain_much():
    assert not ranked([made_up(1.0), made_up(0.85, is_lossy=True)])[0].is_lossy
    assert ranked([made_up(1.0), made_up(0.7, is_lossy=True)])[0].is_lossy


def test_an_exact_choice_is_among_the_first_three():
    lossy = [made_up(0.5 + number / 100, is_lossy=True) for number in range(4)]
    first, second, third, *_ = ranked([*lossy, made_up(2.0)])
    assert (first.is_lossy, second.is_lossy, third.is_lossy) == (True, True, False)


def test_the_next_best_choices_differ_in_format_or_in_speed():
    alike = [made_up(0.5 + number / 1000, policy) for number, policy in enumerate(("on-demand", "finemoe-plus", "finemoe-plus"))]
    slower, lossy = made_up(0.6, "on-demand"), made_up(0.8, is_lossy=True)
    assert ranked([*alike, slower, lossy]) == [alike[0], slower, lossy, *alike[1:]]


def test_of_formats_that_are_as_fast_the_more_precise_one_comes_first():
    coarse, fine = made_up(0.5, is_lossy=True), replace(made_up(0.505, is_lossy=True), expert_format="fp8", host_bytes=9)
    assert ranked([coarse, fine]) == [fine, coarse]


def test_commands_name_what_can_be_run(model):
    def named(name, **options):
        words = shlex.split(finemoe.plan(name, "8GB", BED, context=100, formats=[], **options).best.command)
        return words[words.index("-m") + 1]

    assert named(model) == str(Path(model).parent)
    assert named("gpt-oss-20b") == "openai/gpt-oss-20b"
    assert named("olmoe-1b-7b", gguf="Q4_K_M") == "FILE.gguf"
    notes = finemoe.plan("olmoe-1b-7b", "8GB", BED, context=100, gguf="Q4_K_M").notes
    assert "a GGUF file of mix Q4_K_M is lossy: the model then generates the tokens of the packed model" in notes


def test_a_context_beyond_the_models_positions_is_noted(model, tmp_path):
    import json

    short = tmp_path / "config.json"
    short.write_text(json.dumps(FIELDS | {"max_position_embeddings": 50}), encoding="utf-8")
    (note,) = (one for one in finemoe.plan(str(short), "60MiB", BED, context=100, formats=[]).notes if "positions" in one)
    assert note == "keys and values are counted for 100 tokens, but this model has positions for 50"
    assert not any("positions" in one for one in finemoe.plan(model, "60MiB", BED, context=100, formats=[]).notes)
