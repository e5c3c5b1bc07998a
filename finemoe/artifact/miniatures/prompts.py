"""Generate the embedded prompt sets: `python -m finemoe.artifact.miniatures.prompts` writes them to their files."""

import json
from random import Random

import typer

from finemoe.artifact.miniatures import grammar
from finemoe.files import write_text
from finemoe.paths import PROMPTS
from finemoe.workloads import GENRES

NUM_PROMPTS = 400
_SEED = 20_260_101


def make_prompts(genre: str) -> list[dict[str, str]]:
    """The embedded prompts of a genre, all different, in their fixed order."""
    random = Random(f"{genre}-{_SEED}")
    draw = grammar.question if genre == "questions" else grammar.dialogue_prompt
    prompts: dict[str, str] = {}
    while len(prompts) < NUM_PROMPTS:
        text, scene = draw(random)
        prompts.setdefault(grammar.as_prompt(text), scene["topic"])
    splits = ["history"] * round(0.7 * NUM_PROMPTS) + ["served"] * (NUM_PROMPTS - round(0.7 * NUM_PROMPTS))
    random.shuffle(splits)
    return [
        {"id": f"{genre}-{number:03d}", "prompt": prompt, "topic": topic, "split": split}
        for number, ((prompt, topic), split) in enumerate(zip(prompts.items(), splits, strict=True))
    ]


def write_prompts() -> None:
    """Write the embedded prompt sets to their files."""
    for genre in GENRES:
        write_text(PROMPTS / f"{genre}.jsonl", "".join(json.dumps(row) + "\n" for row in make_prompts(genre)))


if __name__ == "__main__":
    typer.run(write_prompts)
