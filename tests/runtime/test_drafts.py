"""Drafts: what is accepted and what rejected drafts demand, against what plain hooks see of the model alone."""

import copy

import numpy as np
import pytest
import torch

import finemoe
from finemoe.cache.state import ABSENT, LOADING, RESIDENT
from finemoe.draft_counts import DraftCounts
from finemoe.models.layers import find_moe_layers
from finemoe.runtime.drafts import Drafts
from tests.runtime.models import build, half_right

REPEATED = torch.tensor([[7, 8, 9, 7, 8, 9, 7, 8, 9, 7, 8]])  # prompt lookup finds drafts in it
TOKENS = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}


class Steps:
    """Of every forward of a plain model: the tokens fed, those in its cache before, and each layer's selected experts [T, K]."""

    def __init__(self, model) -> None:
        self.seen: list[tuple[int, int, list[np.ndarray]]] = []
        model.register_forward_pre_hook(self._note, with_kwargs=True)
        for layer in find_moe_layers(model):
            layer.experts.register_forward_pre_hook(lambda module, args: self.seen[-1][2].append(args[1].numpy()))

    def _note(self, module, args, kwargs) -> None:
        self.seen.append((kwargs["input_ids"].shape[1], kwargs["past_key_values"].get_seq_length(), []))

    def expected(self) -> tuple[int, DraftCounts]:
        """The accesses and the counts of drafts, by their definitions."""
        accesses, counts = 0, DraftCounts()
        for (fed, past, layers), later in zip(self.seen, [*self.seen[1:], None], strict=True):
            kept = fed if later is None else later[1] - past
            accesses += sum(len(np.unique(one[:kept])) for one in layers)
            rejected = sum(len(np.setdiff1d(one, one[:kept])) for one in layers)
            counts = counts.plus(DraftCounts(rejected_accesses=rejected))
            if past and fed > 1:
                is_open = later is None
                drafts, accepted = (0, 0) if is_open else (fed - 1, kept - 1)
                counts = counts.plus(DraftCounts(1, int(is_open), drafts, accepted))
        return accesses, counts


@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("helper", ["prompt lookup", "assistant"])
def test_rejected_drafts_are_counted_apart(helper, share):
    model = build("mixtral")
    options = {"prompt_lookup_num_tokens": 3} if helper == "prompt lookup" else {"assistant_model": half_right(model)}
    steps = Steps(reference := copy.deepcopy(model))
    expected = reference.generate(REPEATED, **TOKENS, **options)
    accesses, counts = steps.expected()
    assert counts.num_drafts > counts.num_accepted > 0
    with finemoe.offload(model, share, "on-demand", asynchronous=False) as engine:
        if share == 1.0:
            engine.preload()
        assert torch.equal(model.generate(REPEATED, **TOKENS, **options), expected)
        report, records = engine.report(), engine.records
    assert (report.accesses, report.drafts.rejected_accesses) == (accesses, counts.rejected_accesses)
    assert report.drafts.numbers[:4] == counts.numbers[:4]
    assert report.demand_bytes == report.misses * records.record_bytes
    assert (report.drafts.rejected_bytes > 0) == (share < 1)
    one = report.requests[0]
    assert (one.accesses, one.hits, one.demand_bytes, one.drafts) == (accesses, report.hits, report.demand_bytes, report.drafts)
    known = report.num_decode_steps - counts.num_open_steps
    assert report.tokens_per_step == 1 + counts.num_accepted / known
    rows = dict(report.rows())
    assert rows["drafts"].startswith(
        f"{counts.num_accepted} of {counts.num_drafts} accepted, {report.tokens_per_step:.2f} tokens"
    )
    assert f"{report.tpot_s / report.tokens_per_step * 1e3:.2f} ms a token" in rows["drafts"]


def test_without_drafts_a_step_is_a_token():
    model = build("mixtral")
    with finemoe.offload(model, 0.3, "on-demand") as engine:
        model.generate(REPEATED, **TOKENS)
        report = engine.report()
    assert (report.tokens_per_step, report.drafts) == (1.0, DraftCounts())
    assert "drafts" not in dict(report.rows())


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_model_that_drafts_for_itself_is_counted_as_two_requests(share):
    """One engine, two caches in turn: each counts for itself, and settling one leaves the other alone."""
    model = build("mixtral")
    options = {"assistant_model": model}
    expected = copy.deepcopy(model).generate(REPEATED, **TOKENS)
    with finemoe.offload(model, share, "on-demand", asynchronous=False) as engine:
        assert torch.equal(model.generate(REPEATED, **TOKENS, **options), expected)
        report = engine.report()
    assert len(report.requests) == 2
    for name in ("accesses", "hits", "misses", "demand_bytes", "num_decode_steps"):
        assert sum(getattr(one, name) for one in report.requests) == getattr(report, name)
    assert sorted(one.drafts.num_steps for one in report.requests) == [0, report.drafts.num_steps]
    assert report.drafts.num_accepted == report.drafts.num_drafts > 0


def test_a_reset_between_a_step_and_what_became_of_it():
    model = build("mixtral")
    with finemoe.offload(model, 0.3, "on-demand", asynchronous=False) as engine:
        layer = model.model.layers[0]
        resets = iter([False] * 3 + [True] + [False] * 20)
        handle = layer.register_forward_pre_hook(lambda *_: engine.reset_counters() if next(resets) else None)
        model.generate(REPEATED, **TOKENS, prompt_lookup_num_tokens=3)
        handle.remove()
        report = engine.report()
    assert min(*report.layer_hits, *report.layer_misses, *report.drafts.numbers, report.demand_bytes) >= 0
    assert report.accesses == sum(one.accesses for one in report.requests)


def test_what_became_of_drafts():
    drafts = Drafts(request=3, past_tokens=10, num_tokens=4, num_drafts=3)
    selected = np.array([[0, 1], [1, 2], [5, 6], [6, 7]])
    drafts.note(0, selected, [0, 1, 2, 5, 6, 7], [RESIDENT, ABSENT, LOADING, RESIDENT, LOADING, ABSENT])
    drafts.note(1, selected[:2], [0, 1, 2], [RESIDENT] * 3)  # a layer that saw other rows
    assert [drafts.num_rejected(past) for past in (14, 12, 11, 10, 15, 0)] == [0, 2, 3, None, None, None]
    assert drafts.rejected(0) == []
    assert drafts.rejected(2) == [(0, 1, 1, 1)]  # 5, 6 and 7
    assert drafts.rejected(3) == [(0, 1, 2, 1)]  # 2 as well
