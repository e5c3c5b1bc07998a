"""What `expert_format` costs, measured with the miniatures: `python -m tests.packed.loss_table` writes docs/packed_experts.md.

Texts are those that the miniatures' training held out; prompts are those that are served, which they never saw either. Every
model is loaded as a user loads it, with all experts on the device, in bf16.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

import finemoe
from finemoe.artifact.miniatures.corpus import training_texts
from finemoe.artifact.miniatures.tokenizer import EOS
from finemoe.intervals import Interval, bootstrap_mean, bootstrap_ratio
from finemoe.models.shipped import NAMES
from finemoe.paths import ROOT
from finemoe.runtime.loading import load_tokenizer
from finemoe.workloads import GENRES, read_prompts

PAGE = ROOT / "docs" / "packed_experts.md"
MARKS = ("<!-- loss: begin -->", "<!-- loss: end -->")
FORMATS = (None, "fp8", "int8", "mxfp4")
NUM_TEXTS = {"conversations": 96, "documentation": 64}  # the first that were held out
TEXTS = {"conversations": "conversations", "documentation": "docstrings of Python"}  # for people
MOST_TOKENS = 256  # of a text, as many as the miniatures were trained on at once
NUM_PROMPTS = 32  # of each genre
NEW_TOKENS = 32
BATCH = 16


@dataclass(frozen=True)
class Measured:
    """One model, text by text and prompt by prompt.

    Attributes:
        nats: [texts] a text's summed cross-entropy; counts: [texts] its predicted tokens, by source.
        tokens: [prompts] what it wrote, until its end; argmax: [prompts] what it would write in each place of what the exact
            model wrote.
        expert_bytes: of all experts' records.
    """

    nats: dict[str, np.ndarray]
    counts: dict[str, np.ndarray]
    tokens: list[list[int]]
    argmax: list[list[int]]
    expert_bytes: int


def batches(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Rows in their order, a batch at a time."""
    return (rows[begin : begin + BATCH] for begin in range(0, len(rows), BATCH))


def padded(rows: Sequence[Sequence[int]], on_the_left: bool) -> dict[str, torch.Tensor]:
    """Token ids and the mask of a batch; 0 fills it."""
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        place = slice(width - len(row), width) if on_the_left else slice(0, len(row))
        ids[number, place], mask[number, place] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def logits_of(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
    """Logits after each token of each row, [tokens, vocabulary] float32."""
    for batch in batches(rows):
        logits = model(**padded(batch, on_the_left=False)).logits.float()
        yield from (one[: len(row)] for one, row in zip(logits, batch, strict=True))


def nats_of(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Each row's summed cross-entropy of all its tokens but the first."""
    found = [
        torch.nn.functional.cross_entropy(logits[:-1].double(), torch.tensor(row)[1:], reduction="sum").item()
        for logits, row in zip(logits_of(model, rows), rows, strict=True)
    ]
    return np.array(found)


def argmax_after(model: PreTrainedModel, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]]) -> list[list[int]]:
    """The likeliest token at each place of what was written after prompts, given all before it."""
    rows = [[*prompt, *tokens] for prompt, tokens in zip(prompts, written, strict=True)]
    found = zip(logits_of(model, rows), prompts, strict=True)
    return [logits[len(prompt) - 1 : -1].argmax(dim=1).tolist() for logits, prompt in found]


@torch.no_grad()
def written_by(model: PreTrainedModel, prompts: Sequence[Sequence[int]], num_tokens: int, eos: int | None) -> list[list[int]]:
    """Greedy continuations, each up to its end, that included."""
    found: list[list[int]] = []
    for batch in batches(prompts):
        told = {"do_sample": False, "max_new_tokens": num_tokens, "pad_token_id": 0, "eos_token_id": eos}
        inputs = padded(batch, on_the_left=True)
        rows = model.generate(**inputs, **told)[:, inputs["input_ids"].shape[1] :].tolist()
        found += [row[: row.index(eos) + 1] if eos in row else row for row in rows]
    return found


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens are equal before the first that differ."""
    equal = [a == b for a, b in zip(one, other, strict=False)]
    return equal.index(False) if False in equal else len(equal)


def measured(
    model: PreTrainedModel,
    texts: dict[str, list[list[int]]],
    prompts: Sequence[Sequence[int]],
    exact: Measured | None,
    eos: int | None,
    expert_bytes: int = 0,
    num_tokens: int = NEW_TOKENS,
) -> Measured:
    """All of a model; exact: the model to agree with, None for that one itself."""
    written = written_by(model, prompts, num_tokens, eos)
    return Measured(
        nats={source: nats_of(model, rows) for source, rows in texts.items()},
        counts={source: np.array([len(row) - 1 for row in rows]) for source, rows in texts.items()},
        tokens=written,
        argmax=argmax_after(model, prompts, written if exact is None else exact.tokens),
        expert_bytes=expert_bytes,
    )


def perplexity(one: Measured, source: str) -> Interval:
    """Of the texts of a source."""
    return Interval(*map(np.exp, bootstrap_ratio(one.nats[source], one.counts[source])))


def growth(one: Measured, exact: Measured, source: str) -> Interval:
    """By which share perplexity exceeds the exact model's on the same texts."""
    return Interval(*map(np.expm1, bootstrap_ratio(one.nats[source] - exact.nats[source], one.counts[source])))


def agreement(one: Measured, exact: Measured) -> Interval:
    """Share of places where both would write the same after the same tokens."""
    pairs = list(zip(one.argmax, exact.argmax, strict=True))
    equal = [sum(a == b for a, b in zip(mine, theirs, strict=True)) for mine, theirs in pairs]
    return bootstrap_ratio(np.array(equal), np.array([len(theirs) for _, theirs in pairs]))


def prefix_length(one: Measured, exact: Measured) -> Interval:
    """Tokens that both write alike, each going on from its own."""
    return bootstrap_mean(np.array([common_prefix(*pair) for pair in zip(one.tokens, exact.tokens, strict=True)]))


@cache
def held_out_texts() -> dict[str, list[str]]:
    """By source. Those of a Python other than the miniatures' may be among what they were trained on."""
    texts = {source: held[: NUM_TEXTS[source]] for source, held in training_texts()[1].items()}
    assert {source: len(rows) for source, rows in texts.items()} == NUM_TEXTS
    return texts


def held_out(tokenizer: Any) -> dict[str, list[list[int]]]:
    """The texts' tokens."""
    end = tokenizer.convert_tokens_to_ids(EOS)
    encoded = {source: tokenizer(rows, verbose=False)["input_ids"] for source, rows in held_out_texts().items()}
    return {source: [[*row, end][:MOST_TOKENS] for row in rows] for source, rows in encoded.items()}


def served(tokenizer: Any) -> list[list[int]]:
    """The prompts' tokens."""
    rows = [row["prompt"] for genre in GENRES for row in [r for r in read_prompts(genre) if r["split"] == "served"][:NUM_PROMPTS]]
    return [list(ids) for ids in tokenizer(rows)["input_ids"]]


def measured_formats(name: str) -> dict[str | None, Measured]:
    """A miniature in every format."""
    tokenizer = load_tokenizer(name)
    texts, prompts, eos = held_out(tokenizer), served(tokenizer), tokenizer.convert_tokens_to_ids(EOS)
    found: dict[str | None, Measured] = {}
    for form in tqdm(FORMATS, desc=name):
        model, engine = finemoe.load(name, 1.0, "on-demand", dtype="bfloat16", expert_format=form)
        with engine:
            found[form] = measured(model, texts, prompts, found.get(None), eos, engine.records.host_bytes)
    return found


def section(found: dict[str, dict[str | None, Measured]]) -> str:
    """The table as Markdown."""
    exact = next(iter(found.values()))[None]
    num_tokens = {source: f"{int(counts.sum()):,}" for source, counts in exact.counts.items()}
    lengths = [len(tokens) for models in found.values() for tokens in models[None].tokens]
    lines = [
        "All experts are on the device, a CPU with one thread; torch "
        f"{torch.__version__.split('+')[0]}, bf16. Texts: "
        + " and ".join(f"{NUM_TEXTS[source]} {TEXTS[source]} ({tokens} tokens)" for source, tokens in num_tokens.items())
        + f" that training held out, at most {MOST_TOKENS} tokens of each. Prompts: {len(exact.tokens)} of the served ones, none "
        f"of them in the training data, each continued greedily by {NEW_TOKENS} tokens. *Same next token*: the share of "
        "positions at which the model chooses the same token as the bf16 model, given the bf16 model's text up to there. *Same "
        f"beginning*: tokens before the first difference, when each model continues its own text, of {np.mean(lengths):.4g}. "
        "Brackets: 95 % intervals over texts or prompts; those of *above bf16* compare the same texts.",
        "",
        "| model | experts in | expert bytes | of bf16 | "
        + " | ".join(f"perplexity, {source} | above bf16" for source in NUM_TEXTS)
        + " | same next token | same beginning |",
        "|---|---|---:|---:|" + "---:|" * (2 * len(NUM_TEXTS) + 2),
    ]
    for name, models in found.items():
        lines += [_row(name, form, one, models[None]) for form, one in models.items()]
    return "\n".join(lines)


def _row(name: str, form: str | None, one: Measured, exact: Measured) -> str:
    cells = [name, form or "bf16", f"{one.expert_bytes:,}", f"{one.expert_bytes / exact.expert_bytes:.3f}"]
    for source in NUM_TEXTS:
        cells.append(_shown(perplexity(one, source), ".3f"))
        cells.append(_shown(growth(one, exact, source), "+z.2f", 100, " %") if form else "")
    cells += [_shown(agreement(one, exact), ".1f", 100, " %"), _shown(prefix_length(one, exact), ".1f")] if form else ["", ""]
    return "| " + " | ".join(cells) + " |"


def _shown(interval: Interval, form: str, scale: float = 1, unit: str = "") -> str:
    value, low, high = (f"{float(bound) * scale:{form}}" for bound in interval)
    return f"{value}{unit} [{low}, {high}]"


def inside(page: str) -> re.Match[str] | None:
    """What stands between a page's marks."""
    return re.search(re.escape(MARKS[0]) + "\n(.*)\n?" + re.escape(MARKS[1]), page, re.DOTALL)


def main() -> None:
    """Measure, print the table, and write it into the page."""
    torch.set_num_threads(1)
    table = section({name: measured_formats(name) for name in NAMES})
    print(table)
    page = PAGE.read_text(encoding="utf-8")
    found = inside(page)
    assert found is not None, f"{PAGE}: lacks the marks {MARKS}"
    PAGE.write_text(page[: found.start()] + f"{MARKS[0]}\n{table}\n{MARKS[1]}" + page[found.end() :], encoding="utf-8")


if __name__ == "__main__":
    main()
