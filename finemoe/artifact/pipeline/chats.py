"""Chats of ten turns: how much of every turn the expert cache still holds, against cold starts and a history that is fed again.

`python -m finemoe.artifact.pipeline.chats` runs the miniatures on this machine and writes two tables. Counts come from engines
that search and load in line, so they are the same on every run; times come from a paced link. The replies are the model's own,
fixed beforehand without an engine, so every way of chatting feeds and generates the same tokens.
"""

import copy
import itertools
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from transformers import DynamicCache

import finemoe
from finemoe.artifact.pipeline.noise import busy_share
from finemoe.artifact.pipeline.serving import COUNTS, TIMES
from finemoe.artifact.pipeline.timing import one_expert_bytes, paced_link
from finemoe.artifact.plotting import machine, save_table
from finemoe.artifact.progress import progress
from finemoe.artifact.prompts import load_prompts
from finemoe.errors import FinemoeError
from finemoe.models.shipped import NAMES
from finemoe.paths import DATA, MINIATURES
from finemoe.runtime.loading import load_model

SYSTEMS = ("on-demand", "finemoe", "finemoe-plus")
SHARES = (0.25, 0.5)
NUM_TURNS = 10
# How a chat goes on: over a kept key-value cache, the same with a policy that takes every turn for a new request, the same with
# a new engine for every turn, and with the whole history fed again.
WAYS = ("kept", "kept, policy starts anew", "kept, engine starts anew", "history fed again")
_TOPIC = "cooking"  # served prompts on it suffice for ten turns


@dataclass(frozen=True)
class Turn:
    """One turn: token ids [1, n] of the whole conversation before it, of the user's message, and of the reply."""

    history: torch.Tensor
    message: torch.Tensor
    reply: torch.Tensor


def messages_on(topic: str, num_turns: int) -> list[str]:
    """A user's messages on one topic: the beginnings of served prompts, as turns of the miniatures' chat format.

    Raises:
        FinemoeError: there are not so many.
    """
    table = load_prompts("dialogues").to_pandas().query("split == 'served' and topic == @topic")
    first = [prompt.split("\n")[0].removeprefix("User: ") for prompt in table["prompt"]][:num_turns]
    if len(first) < num_turns:
        raise FinemoeError(f"dialogues has {len(first)} served prompts about {topic}; a chat of {num_turns} turns needs as many")
    return [f"{'' if number == 0 else chr(10)}User: {text}\nAssistant:" for number, text in enumerate(first)]


def held_chat(model: Any, tokenizer: Any, messages: Sequence[str], num_tokens: int) -> list[Turn]:
    """Hold a chat with a model that is not offloaded; every reply has `num_tokens` tokens."""
    cache, history, turns = DynamicCache(config=model.config), torch.zeros((1, 0), dtype=torch.long), list[Turn]()
    for text in messages:
        message = tokenizer(text, return_tensors="pt", add_special_tokens=not turns)["input_ids"]
        tokens = replied(model, torch.cat([history, message], 1), cache, num_tokens)
        turns.append(Turn(history, message, tokens[:, history.shape[1] + message.shape[1] :]))
        history = tokens
    return turns


def replied(model: Any, tokens: torch.Tensor, cache: Any, num_tokens: int) -> torch.Tensor:
    """The conversation and the reply to it, [1, n]; the cache may hold the conversation's beginning."""
    lengths = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens}
    found: torch.Tensor = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), past_key_values=cache, do_sample=False, pad_token_id=0, **lengths
    )
    return found


def chat_rows(
    model: Any, turns: Sequence[Turn], way: str, system: str, expert_memory: float, **options: Any
) -> list[dict[str, Any]]:
    """Hold the chat again with an offloaded model; one row per turn.

    Args:
        way: one of WAYS. system: the policy. expert_memory, options: as in `finemoe.offload`.
    Returns:
        Rows (turn, num_fed, num_tokens, and the counts and times of that turn's report).
    Raises:
        FinemoeError: a reply differs from the one without an engine.
    """
    rows, cache = [], DynamicCache(config=model.config)
    offload = partial(finemoe.offload, model, expert_memory, system, **options)
    with ExitStack() as stack:
        engine = stack.enter_context(closing(offload()))
        for number, turn in enumerate(turns):
            if way == "kept, engine starts anew" and number:
                stack.pop_all().close()
                engine = stack.enter_context(closing(offload()))
            if way == "kept, policy starts anew":
                cache = copy.deepcopy(cache)  # which the engine has not seen
            if way == "history fed again":
                cache = DynamicCache(config=model.config)
            engine.reset_counters()
            tokens, num_past = torch.cat([turn.history, turn.message], 1), cache.get_seq_length()
            found = replied(model, tokens, cache, turn.reply.shape[1])
            report = engine.report().to_dict()
            if found[0].tolist() != torch.cat([tokens, turn.reply], 1)[0].tolist():
                raise FinemoeError(f"turn {number + 1}, {way}, under {system}: the reply differs from the one without an engine")
            sizes = {"turn": number + 1, "num_fed": tokens.shape[1] - num_past, "num_tokens": turn.reply.shape[1]}
            rows.append(sizes | {name: report[name] for name in [*COUNTS, *TIMES]})
    return rows


def counted(name: str, num_turns: int, num_tokens: int, shares: Sequence[float] = SHARES) -> pd.DataFrame:
    """The counts of one miniature's chats, which are the same on every run: every size, system and way."""
    model, tokenizer = load_model(str(MINIATURES / name))
    turns, rows = held_chat(model, tokenizer, messages_on(_TOPIC, num_turns), num_tokens), list[dict[str, Any]]()
    for share, system, way in progress(list(itertools.product(shares, SYSTEMS, WAYS)), name, "chat"):
        cell = {"model": name, "system": system, "expert_memory": share, "way": way}
        rows += [cell | row for row in chat_rows(model, turns, way, system, share, asynchronous=False)]
    return pd.DataFrame(rows).drop(columns=TIMES).assign(executor="measured, in line")


def timed(name: str, num_turns: int, num_tokens: int, load_s: float) -> pd.DataFrame:
    """The same with times, at a quarter of the experts, over a link on which an expert takes `load_s`."""
    model, tokenizer = load_model(str(MINIATURES / name))
    turns = held_chat(model, tokenizer, messages_on(_TOPIC, num_turns), num_tokens)
    link, rows = paced_link(one_expert_bytes(model) / load_s), list[dict[str, Any]]()
    for system, way in progress(list(itertools.product(SYSTEMS, WAYS)), f"{name}, timed", "chat"):
        found = chat_rows(model, turns, way, system, SHARES[0], link=link)
        cell = {"model": name, "system": system, "expert_memory": SHARES[0], "way": way, "busy": busy_share()}
        rows += [cell | row for row in found]
    return pd.DataFrame(rows).assign(load_ms=load_s * 1e3, executor="paced", machine=machine())


def write_tables(
    counts: Annotated[Path, typer.Option(help="where to write the counts")] = DATA / "reference" / "chats_counted.csv",
    times: Annotated[Path, typer.Option(help="where to write the times")] = DATA / "reference" / "chats_measured.csv",
    models: Annotated[list[str], typer.Option("--model")] = list(NAMES),  # noqa: B006
    num_turns: Annotated[int, typer.Option(min=2)] = NUM_TURNS,
    num_tokens: Annotated[int, typer.Option(help="tokens of every reply", min=2)] = 16,
    load_ms: Annotated[float, typer.Option(help="time to load an expert over the paced link, in ms; 0 measures no times")] = 1.0,
) -> None:
    """Count and time chats, and write both tables."""
    table = pd.concat([counted(name, num_turns, num_tokens) for name in models])
    save_table(table, counts)
    typer.echo(
        table.pivot_table(index=["model", "expert_memory", "system"], columns="way", values="hit_rate").round(3).to_string()
    )
    if load_ms:
        measured = pd.concat([timed(name, num_turns, num_tokens, load_ms / 1e3) for name in models])
        save_table(measured, times)
        later = measured[measured.turn > 1]
        typer.echo(later.pivot_table(index=["model", "system"], columns="way", values="ttft_s").round(3).to_string())


if __name__ == "__main__":
    typer.run(write_tables)
