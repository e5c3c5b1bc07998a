"""Modes of generation x families: `python -m tests.runtime.generation_matrix` writes the table of docs/generation.md.

In every mode, a tiny random model of each family gives everything that it returns (tokens, and scores and logits where there are
any) without an engine and offloaded, under several policies with a cold and with a warm cache; all must be equal bit for bit. An
assistant is offloaded as well, with an engine of its own. Where Transformers refuses a mode, the reason is its own.
"""

import contextlib
import copy
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import transformers
from tqdm import tqdm
from transformers import PreTrainedModel

import finemoe
from finemoe.errors import first_line
from finemoe.paths import ROOT
from finemoe.report import Report
from tests.runtime import families
from tests.runtime.generation_modes import MODES, Mode

PAGE = ROOT / "docs" / "generation.md"
MARKS = ("<!-- modes: written by `python -m tests.runtime.generation_matrix` -->", "<!-- end of modes -->")
FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "olmoe", "deepseek_v2")
POLICIES = ("finemoe", "on-demand", "finemoe-plus")
SHARE = 0.3
EQUAL = "equal"


@dataclass(frozen=True)
class Outcome:
    """What came of a mode: EQUAL, or the reason why not; and the report of the first run, if there was one."""

    text: str
    report: Report | None = None


def outcome(model: PreTrainedModel, mode: Mode, policies: Sequence[str] = POLICIES) -> Outcome:
    """Run one mode without an engine and with one. The model is left as it was."""
    assistant = None if mode.assistant_of is None else mode.assistant_of(model)
    try:
        expected = mode.run(copy.deepcopy(model), copy.deepcopy(assistant))
    except Exception as error:  # whatever Transformers raises is its refusal
        return Outcome(f"refused by Transformers: {first_line(error).replace('`', '')}")
    first: Report | None = None
    for policy in policies:
        with finemoe.offload(model, SHARE, policy) as engine, contextlib.ExitStack() as stack:
            if assistant is not None:
                stack.enter_context(finemoe.offload(assistant, SHARE, "on-demand"))
            for _ in range(2):  # with a cold cache, and with a warm one
                found = mode.run(model, assistant)
                if not are_equal(found, expected):
                    return Outcome(f"differs under {policy}")
                first = first or engine.report()
    return Outcome(EQUAL, first)


def are_equal(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> bool:
    """Whether all tensors are, bit for bit."""
    pairs = zip(found, expected, strict=False)
    return len(found) == len(expected) and all(torch.equal(one, other) for one, other in pairs)


def row(name: str, outcomes: dict[str, Outcome]) -> str:
    """A mode's row of the table: in which families it is equal, and what the first one's report counts."""
    equal = [family for family, one in outcomes.items() if one.text == EQUAL]
    reasons = dict.fromkeys(one.text for one in outcomes.values() if one.text != EQUAL)
    others = [family for family in outcomes if family not in equal]
    where = "all" if not others else f"all but {', '.join(others)}: {'; '.join(reasons)}" if equal else "; ".join(reasons)
    report = outcomes[equal[0]].report if equal else None
    counts = ["–"] * 5
    if report is not None:
        counts = [
            str(report.num_prefills),
            str(report.num_decode_steps),
            str(report.num_unknown_steps),
            str(len(report.requests)),
            f"{report.tokens_per_step:.1f}" if report.num_decode_steps else "–",
        ]
    return "| " + " | ".join([name, f"`{MODES[name].call}`", where.replace("|", "\\|"), *counts]) + " |"


def rows_of(names: Sequence[str] = tuple(MODES), kinds: Sequence[str] = FAMILIES) -> list[str]:
    """The rows of these modes."""
    built = {kind: families.build(kind) for kind in kinds}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            row(name, {kind: outcome(model, MODES[name]) for kind, model in built.items()})
            for name in tqdm(names, desc="modes", disable=len(names) < len(MODES))
        ]


def section(rows: Sequence[str]) -> str:
    """The table as Markdown."""
    models = ", ".join(f"`{name}`" for name in FAMILIES)
    lines = [
        f"Transformers {transformers.__version__}; tiny random models of {models} in fp32 on a CPU, {SHARE:.0%} of the experts "
        f"in memory, under {', '.join(f'`{name}`' for name in POLICIES)}, each with a cold and a warm cache. *Equal*: tokens "
        "and, where they are returned, the scores and logits of every step are those of the model without an engine, bit for "
        "bit. The counts are those of the first family's report.",
        "",
        "| mode | how | equal in | prefills | decode steps | not timed | requests | tokens a step |",
        "|---|---|---|---:|---:|---:|---:|---:|",
        *rows,
    ]
    return "\n".join(lines)


def main() -> int:
    """Write the section; fail if a mode is neither equal nor refused by Transformers."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    rows = rows_of()
    print("\n".join(rows))
    page = PAGE.read_text(encoding="utf-8")
    begin, end = (page.index(mark) for mark in MARKS)
    PAGE.write_text(f"{page[:begin]}{MARKS[0]}\n{section(rows)}\n{page[end:]}", encoding="utf-8")
    return 1 if any("differs" in one for one in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
