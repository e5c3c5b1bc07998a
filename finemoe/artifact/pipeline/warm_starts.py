"""What a warm-up profile is worth: the first request of a run that starts cold, and of one that starts from earlier runs.

`python -m finemoe.artifact.pipeline.warm_starts` serves conversations with the miniatures, saves a profile, and serves others
from it, each by an engine of its own. Counts come from engines that search and load in line, so they are the same on every run.
"""

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

import finemoe
from finemoe.artifact.plotting import save_table
from finemoe.artifact.progress import progress
from finemoe.artifact.prompts import load_prompts
from finemoe.models.shipped import NAMES, resolve
from finemoe.paths import DATA
from finemoe.runtime.loading import load_tokenizer

SYSTEMS = ("on-demand", "finemoe", "finemoe-plus")
STARTS = ("cold", "from a profile")


def start_rows(
    source: str, system: str, earlier: Sequence[str], served: Sequence[str], num_tokens: int, expert_memory: float
) -> list[dict[str, Any]]:
    """A row per served prompt and start: what the prompt and its answer, the first request of an engine, found and loaded.

    Args:
        source: name of a miniature, or a folder. system: the policy. earlier: prompts of the run that the profile is of.
    """
    tokenizer, rows = load_tokenizer(source), []

    def serve(prompts: Sequence[str], profile: Path | None, out: Path | None = None) -> dict[str, Any]:
        loaded, engine = finemoe.load(resolve(source), expert_memory, system, asynchronous=False, profile=profile)
        model: Any = loaded
        with engine:
            loaded_bytes = engine.report().prefetched_bytes
            for prompt in prompts:
                inputs = tokenizer(prompt, return_tensors="pt")
                model.generate(**inputs, max_new_tokens=num_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
            if out is not None:
                engine.save_profile(out)
            report = engine.report()
            return {
                "accesses": report.accesses,
                "hits": report.hits,
                "demand_bytes": report.demand_bytes,
                "preloaded_bytes": loaded_bytes,
            }

    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "a.profile"
        serve(earlier, None, profile)
        for number, prompt in enumerate(served):
            for start in STARTS:
                found = serve([prompt], None if start == STARTS[0] else profile)
                rows.append({"prompt": number, "start": start, **found, "profile_bytes": profile.stat().st_size})
    return rows


def write_table(
    output: Annotated[Path, typer.Option(help="where to write the counts")] = DATA / "reference" / "warm_starts_counted.csv",
    models: Annotated[list[str], typer.Option("--model")] = list(NAMES),  # noqa: B006
    expert_memory: Annotated[float, typer.Option(help="share of all routed experts")] = 0.25,
    num_earlier: Annotated[int, typer.Option(help="number of prompts before the profile is saved", min=1)] = 12,
    num_served: Annotated[int, typer.Option(help="number of prompts served from it, each alone", min=1)] = 6,
    num_tokens: Annotated[int, typer.Option(help="tokens generated for each prompt", min=2)] = 32,
) -> None:
    """Count, and write the table."""
    prompts = load_prompts("dialogues").to_pandas().query("split == 'served'")["prompt"].tolist()
    earlier, served = prompts[:num_earlier], prompts[num_earlier : num_earlier + num_served]
    rows: list[dict[str, Any]] = []
    for name, system in progress(list(itertools.product(models, SYSTEMS)), "warm starts", "cell"):
        cell = {"model": name, "system": system, "expert_memory": expert_memory, "earlier": num_earlier}
        rows += [cell | row for row in start_rows(name, system, earlier, served, num_tokens, expert_memory)]
    save_table(pd.DataFrame(rows).assign(executor="measured, in line"), output)


if __name__ == "__main__":
    typer.run(write_table)
