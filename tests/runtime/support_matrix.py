"""Writes the support matrix of docs/models.md from what really runs: `make families`.

Every family of the installed Transformers is built tiny, loaded and offloaded under every policy, in fp32 and bf16, at three
cache sizes, and compared with eager; the section between the page's two marks is replaced by what came out.
"""

import re
import sys

import torch
import transformers
from tqdm import tqdm

from finemoe.errors import FinemoeError
from finemoe.paths import ROOT
from tests.runtime import families
from tests.runtime.test_families import compare_with_eager

PAGE = ROOT / "docs" / "models.md"
MARKS = ("<!-- families: written by `make families` -->", "<!-- end of families -->")
OUTSIDE = ("dbrx", "doge", "jetmoe", "llama4", "longcat_flash", "nllb_moe", "step3p7", "switch_transformers")


def outcome(name: str) -> str:
    """Empty if the family is bit-equal to eager, else the reason why not."""
    try:
        for dtype in (torch.float32, torch.bfloat16):
            compare_with_eager(name, dtype)
    except families.CannotBuild as error:
        return f"not built: {error}"
    except FinemoeError as error:
        return str(error)
    except AssertionError as error:
        return f"differs from eager: {str(error).splitlines()[0]}"
    return ""


def section(outcomes: dict[str, str]) -> str:
    """The matrix as Markdown."""
    works = [name for name, reason in outcomes.items() if not reason]
    fails = {name: reason for name, reason in outcomes.items() if reason}
    lines = [
        f"Transformers {transformers.__version__} dispatches the experts of {len(outcomes)} families through the interface that "
        f"finemoe uses. Of {len(works)} a tiny model was built, offloaded under every policy at three cache sizes, in fp32 and "
        "bf16, and found bit-equal to eager in logits and (where it generates) greedy tokens:",
        "",
        ", ".join(f"`{name}`" for name in works) + ".",
        "",
        "| not supported | reason |",
        "|---|---|",
        *(f"| `{name}` | {reason} |" for name, reason in fails.items()),
        f"| {', '.join(f'`{name}`' for name in OUTSIDE)} | Transformers does not dispatch their experts through that interface |",
        "| models quantised in memory, PEFT adapters, models dispatched by Accelerate "
        "| refused by `offload` with what to do instead |",
    ]
    return "\n".join(lines)


def main() -> int:
    """Run every family, write the section, and fail if fewer than 58 work."""
    outcomes = {name: outcome(name) for name in tqdm(families.family_names(), desc="families")}
    text = PAGE.read_text(encoding="utf-8")
    inside = re.compile(re.escape(MARKS[0]) + ".*" + re.escape(MARKS[1]), re.DOTALL)
    PAGE.write_text(inside.sub(lambda _: f"{MARKS[0]}\n{section(outcomes)}\n{MARKS[1]}", text), encoding="utf-8")
    num_working = sum(not reason for reason in outcomes.values())
    print(f"{num_working} of {len(outcomes)} families are bit-equal to eager")
    return 0 if num_working >= 58 else 1


if __name__ == "__main__":
    sys.exit(main())
