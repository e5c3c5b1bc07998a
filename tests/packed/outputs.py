"""What of a model is compared bit for bit."""

from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel

_GENERATION = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True, "pad_token_id": 0}
_NAMES = ("prefill", "tokens of the batch", "logits of the batch", "tokens of one prompt", "logits of one prompt")


@torch.no_grad()
def outputs(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """Prefill's logits of a left-padded batch of three, its greedy continuation, and that of the last prompt, with all logits on
    the way."""
    found = [model(**batch).logits]
    for rows, steps in ((slice(None), 3), (slice(2, 3), 5)):
        told = {name: tensor[rows] for name, tensor in batch.items()}
        done = model.generate(**told, **_GENERATION, max_new_tokens=steps, min_new_tokens=steps)
        found += [done.sequences, torch.stack(done.logits)]
    return found


def assert_equal(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> None:
    """Every bit of what `outputs` gives, types included; the reference's are finite."""
    for name, one, other in zip(_NAMES, found, expected, strict=True):
        assert one.dtype == other.dtype, name
        assert other.isfinite().all(), f"{name}: the reference is of no use"
        assert torch.equal(one, other), f"{name}: {(one != other).float().mean():.1%} differ"
