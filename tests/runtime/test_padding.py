"""Padding is computed, and costs loads of its own; but no request's count knows of it, so that a padded batch has the hits and
misses of its own replay."""

import numpy as np
import pytest
import torch
from transformers import BatchEncoding

import finemoe
from finemoe.models.layers import find_moe_layers
from finemoe.runtime.phases import Call
from tests.runtime import families
from tests.runtime.models import build

STEPS = {"max_new_tokens": 6, "min_new_tokens": 6}
LIVE = ("finemoe", "finemoe-plus", "moe-infinity", "promoe", "mixtral-offloading", "deepspeed-inference", "on-demand")


class Ready:
    """A tokenizer that has one batch."""

    padding_side, pad_token_id = "left", 0

    def __init__(self, batch) -> None:
        self._batch = batch

    def __call__(self, prompts, return_tensors, padding, **_):
        return BatchEncoding(self._batch)


def batch_of(lengths: list[int], width: int, side: str = "left") -> dict[str, torch.Tensor]:
    tokens = torch.randint(2, 96, (len(lengths), width), generator=torch.Generator().manual_seed(7))
    place = torch.arange(width)[None]
    ends = torch.tensor(lengths)[:, None]
    mask = (place >= width - ends if side == "left" else place < ends).long()
    return {"input_ids": tokens, "attention_mask": mask}  # padding of any tokens, which select experts of their own


def selections(model, forward) -> list[torch.Tensor]:
    """What each MoE layer's experts are called with, [T, K], layer by layer."""
    seen: list[torch.Tensor] = []
    handles = [
        layer.experts.register_forward_pre_hook(lambda module, args: seen.append(args[1].clone()))
        for layer in find_moe_layers(model)
    ]
    with torch.no_grad():
        forward(model)
    for handle in handles:
        handle.remove()
    return seen


def distinct(seen: list[torch.Tensor], rows: torch.Tensor) -> int:
    return sum(len(one[rows].unique()) for one in seen)


@pytest.mark.parametrize("policy", LIVE)
@pytest.mark.parametrize(("share", "devices"), [(0.3, 1), (0.1, 1), (0.4, 2)])
def test_a_padded_batch_has_the_counts_of_its_replay(policy, share, devices):
    model, batch = build("qwen2_moe"), batch_of([1, 4, 2], 11)
    trace = finemoe.record(model, ["a", "b", "c"], tokenizer=Ready(batch), batch_size=3, lookahead=(1,), **STEPS)
    expected = model.generate(**batch, **STEPS, do_sample=False)
    with finemoe.offload(model, share, policy, devices=devices, asynchronous=False) as engine:
        assert torch.equal(model.generate(**batch, **STEPS, do_sample=False), expected)
        live, record_bytes = engine.report(), engine.records.record_bytes
    replayed = finemoe.replay(trace, policy, share, devices=devices, expert_bytes=record_bytes, batch_size=3)
    names = ["accesses", "layer_hits", "layer_misses", "prefetched_bytes", "demand_bytes", "wasted_bytes", "useful_bytes"]
    assert {name: getattr(live, name) for name in names} == {name: getattr(replayed, name) for name in names}
    assert live.padding_accesses > 0
    assert live.padding_bytes % record_bytes == 0
    assert (replayed.padding_accesses, replayed.padding_bytes) == (0, 0)


MASKS = {
    "left": lambda mask: {"attention_mask": mask},
    "right": lambda mask: {"attention_mask": mask},
    "boolean": lambda mask: {"attention_mask": mask.bool()},
    "4-D": lambda mask: {"attention_mask": four_dimensional(mask)},
    "4-D, added": lambda mask: {"attention_mask": (~four_dimensional(mask)).float() * torch.finfo(torch.float32).min},
}


def four_dimensional(mask: torch.Tensor) -> torch.Tensor:
    causal = torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool).tril()
    return causal[None, None] & mask.bool()[:, None, None, :]


@pytest.mark.parametrize("policy", ["finemoe", "on-demand"])
@pytest.mark.parametrize("form", MASKS)
@pytest.mark.parametrize("lengths", [[2, 12, 1], [0, 12], [0, 0]], ids=str)
def test_padding_is_counted_apart_and_computed_like_the_rest(policy, form, lengths):
    model = build("mixtral")
    batch = batch_of(lengths, 12, "right" if form == "right" else "left")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    given = MASKS[form](mask)

    def forward(one):
        return one(input_ids=ids, **given).logits

    with torch.no_grad():
        expected = forward(model)
    seen = selections(model, forward)
    real = mask.flatten().bool()
    with finemoe.offload(model, 0.3, policy, asynchronous=False) as engine, torch.no_grad():
        assert torch.equal(forward(model).nan_to_num(), expected.nan_to_num()), "padding's own logits included"
        report = engine.report()
    assert report.accesses == distinct(seen, real)
    assert report.padding_accesses == distinct(seen, torch.ones_like(real)) - distinct(seen, real)
    assert report.requests[0].padding_accesses == report.padding_accesses
    assert ("padding alone" in dict(report.rows())) == (report.padding_accesses > 0)
    assert report.to_dict()["padding_bytes"] == report.padding_bytes


def test_a_mask_given_by_position_and_one_of_a_static_cache():
    model, batch = build("mixtral"), batch_of([2, 12, 1], 12)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    seen = selections(model, lambda one: one(ids, mask))
    real = mask.flatten().bool()
    with finemoe.offload(model, 0.3, "on-demand") as engine, torch.no_grad():
        model(ids, mask)
        first = engine.report()
        engine.reset_counters()
        model.model(ids, mask)
        second = engine.report()
        engine.reset_counters()
        options = {"max_new_tokens": 1, "do_sample": False, "cache_implementation": "static"}
        model.generate(**batch, **options)
        third = engine.report()
    assert [one.accesses for one in (first, second, third)] == [distinct(seen, real)] * 3


def test_a_mask_for_all_rows_and_masks_by_kind_of_attention():
    model, batch = build("mixtral"), batch_of([5, 5], 12)
    ids, mask = batch["input_ids"], four_dimensional(batch["attention_mask"])
    for given in (mask, mask[:1], {"sliding_attention": mask}, {"linear_attention": None, "full_attention": mask[:1]}):
        call = Call(model, (ids,), {"attention_mask": given})
        assert torch.equal(call.padding(2, 12), batch["attention_mask"].bool())
    seen = selections(model, lambda one: one(ids, mask[:1]))
    with finemoe.offload(model, 0.3, "on-demand") as engine, torch.no_grad():
        model(ids, mask[:1])
        assert engine.report().accesses == distinct(seen, batch["attention_mask"].flatten().bool())


def test_padding_where_everything_is_resident():
    model, batch = build("mixtral"), batch_of([1, 12], 12)
    seen = selections(model, lambda one: one(**batch))
    real = batch["attention_mask"].flatten().bool()
    with finemoe.offload(model, 1.0, "on-demand") as engine, torch.no_grad():
        engine.preload()
        assert torch.equal(model(**batch).logits, build("mixtral")(**batch).logits)
        report = engine.report()
    assert (report.accesses, report.hits, report.padding_bytes) == (distinct(seen, real), distinct(seen, real), 0)
    assert report.padding_accesses == distinct(seen, torch.ones_like(real)) - distinct(seen, real)
    assert report.unused_resident_bytes > 0, "what only padding used was not used by anyone"


@pytest.mark.parametrize("options", [{}, {"link": "paced:1GB/s"}, {"host_memory": 0}, {"devices": 3}], ids=str)
def test_padding_beside_workers_stays_lossless(options):
    """Slots may go to other experts while padding's are computed; its weights lie elsewhere."""
    model, batch = build("mixtral"), batch_of([1, 2, 1], 12)
    expected = model.generate(**batch, **STEPS, do_sample=False)
    with torch.no_grad():
        logits = model(**batch).logits
    with finemoe.offload(model, 0.1, **options) as engine, torch.no_grad():
        for _ in range(4):
            assert torch.equal(model.generate(**batch, **STEPS, do_sample=False), expected)
            assert torch.equal(model(**batch).logits, logits)
        report = engine.report()
    assert report.padding_accesses > 0
    assert report.num_prefills == 8


@pytest.mark.parametrize("name", ["gpt_oss", "deepseek_v3"])
def test_a_family_with_a_forward_of_its_own(name):
    model = families.build(name)
    model.set_experts_implementation("eager")
    ids, mask = torch.arange(40, 80).reshape(2, 20), torch.ones(2, 20, dtype=torch.long)
    mask[0, :18] = 0
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits
        with finemoe.offload(model, 0.2, "on-demand") as engine:
            assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, expected)
            assert not np.isnan(engine.report().hit_rate)
