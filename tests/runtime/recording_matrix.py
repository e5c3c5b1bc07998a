"""Families x modes of generation: `python -m tests.runtime.recording_matrix [FAMILY ...]` counts what is recorded rightly.

Without arguments, every family that finemoe's test suite builds. It fails if anything is neither equal nor refused in
one line, unless Transformers itself computes something else in that mode.
"""

import sys
from collections import Counter
from dataclasses import dataclass

import torch
import transformers
from tqdm import tqdm

import finemoe
from finemoe.errors import FinemoeError
from tests.runtime import families
from tests.runtime.recordings import MODES, PROMPTS, TOLERANCE, Characters, Mode, differences, side_by_side

LENGTH = 7
# In the last kind plain Transformers itself computes other logits in that mode than in one forward over the same tokens, so that
# nothing tells right from wrong: sparse attention that breaks ties by the number of keys, a state dropped between pieces.
RIGHT = ("equal", "refused", "no reference")


@dataclass(frozen=True)
class Outcome:
    """What came of one mode: "equal", "refused", "no reference", or what should not be, with the reason."""

    family: str
    mode: str
    kind: str
    reason: str = ""


def outcomes(family: str) -> list[Outcome]:
    """What comes of every mode of a family, given by arguments."""
    try:
        model = families.build(family)
    except families.CannotBuild as error:
        return [Outcome(family, "", "refused", f"not built: {error}")]
    return [_outcome(model, family, name) for name in MODES]


def _outcome(model: transformers.PreTrainedModel, family: str, name: str) -> Outcome:
    mode = MODES[name]
    torch.manual_seed(0)
    options = {"tokenizer": Characters(), "max_new_tokens": LENGTH, "batch_size": mode.batch_size} | mode.options
    try:
        trace = finemoe.record(model, PROMPTS, **options)
    except FinemoeError as error:
        return Outcome(family, name, "refused" if "\n" not in str(error) else "several lines", str(error))
    except Exception as error:  # any other is a fault, whatever it is
        return Outcome(family, name, "foreign error", f"{type(error).__name__}: {error}")
    worst = max(differences(model, trace))
    if worst < TOLERANCE:
        return Outcome(family, name, "equal")
    return Outcome(family, name, "different" if _is_reference(model, mode) else "no reference", f"{worst:.4f}")


def _is_reference(model: transformers.PreTrainedModel, mode: Mode) -> bool:
    """Whether plain Transformers' logits in a mode are those of one forward over the same tokens."""
    options = {key: value for key, value in mode.options.items() if key not in ("do_sample", "top_k", "num_return_sequences")}
    options |= {"max_new_tokens": LENGTH, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    for begin in range(0, len(PROMPTS), mode.batch_size):
        batch, pads = side_by_side(PROMPTS[begin : begin + mode.batch_size])
        done = model.generate(**batch, **options)
        beams = getattr(done, "beam_indices", torch.arange(len(pads))[:, None].expand(-1, LENGTH))
        for row, pad in enumerate(pads):
            with torch.no_grad():
                whole = model(done.sequences[row : row + 1, pad:-1], use_cache=False).logits[0, -LENGTH:]
            steps = torch.stack([step[beam] for step, beam in zip(done.logits, beams[row], strict=False)])
            if not torch.allclose(steps, whole.float(), atol=1e-4):
                return False
    return True


def main(names: list[str]) -> int:
    """Print the counts; fail if anything is neither equal nor refused."""
    transformers.logging.set_verbosity_error()
    found = [one for name in tqdm(names or families.family_names(), desc="families") for one in outcomes(name)]
    for mode in MODES:
        print(mode, dict(Counter(one.kind for one in found if one.mode == mode)))
    for reason, count in Counter((one.family, one.kind, one.reason) for one in found if one.kind != "equal").items():
        print(count, *reason, sep=" | ")
    print(len({one.family for one in found}), "families", len(MODES), "modes", dict(Counter(one.kind for one in found)))
    return 0 if {one.kind for one in found} <= set(RIGHT) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
