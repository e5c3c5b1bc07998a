"""Tables and numbers of docs/generation.md: chats over a kept cache, and drafts."""

from collections.abc import Callable, Iterator
from itertools import chain

import pandas as pd

from finemoe.artifact.docs.tables import Number, groups, milliseconds, percent, rows, shipped, slug
from finemoe.artifact.markdown import pipe_table
from finemoe.artifact.pipeline.chats import WAYS
from finemoe.units import format_bytes

_CHATS, _CHAT_TIMES = "reference/chats_counted.csv", "reference/chats_measured.csv"
_DRAFTS, _DRAFT_TIMES = "reference/drafts_counted.csv", "reference/drafts_measured.csv"
_SHORT = dict(zip(WAYS, ("kept", "policy anew", "engine anew", "history again"), strict=True))


def generation_blocks() -> dict[str, str]:
    """The page's tables, by the name of their marks."""
    return {"chats": _chats(), "times of chats": _chat_times(), "drafts": _drafts()}


def generation_numbers() -> Iterator[Number]:
    """Numbers in sentences."""
    return chain(_chat_numbers(), _draft_numbers())


def _means(path: str, *columns: str) -> pd.DataFrame:
    """Means over all turns but the first, by model, expert memory, system and way, in order of appearance."""
    table = shipped(path)
    return table[table.turn > 1].groupby(["model", "expert_memory", "system", "way"], sort=False)[list(columns)].mean()


def _chats() -> str:
    means, lines = _means(_CHATS, "hit_rate", "demand_bytes"), []
    for (model, memory, system), part in groups(means.reset_index(), "model", "expert_memory", "system"):
        cells = {_SHORT[one.way]: f"{percent(one.hit_rate, 1)}, {format_bytes(one.demand_bytes)}" for one in rows(part)}
        lines.append({"model": model, "memory": percent(memory), "system": system, **cells})
    return pipe_table(pd.DataFrame(lines)) + "\n"


def _chat_times() -> str:
    table, lines = shipped(_CHAT_TIMES), []
    times = table[table.turn > 1].groupby(["model", "system", "way"], sort=False).ttft_s.median().reset_index()
    for (model, system), part in groups(times, "model", "system"):
        cells = {_SHORT[one.way]: milliseconds(one.ttft_s) for one in rows(part)}
        lines.append({"model": model, "system": system, **cells})
    return pipe_table(pd.DataFrame(lines)) + "\n"


def _drafts() -> str:
    counted = shipped(_DRAFTS)
    times, lines = _draft_times(), []
    for (model, system), part in groups(counted, "model", "system"):
        plain_s = sum(times[model, system, "no drafts"])
        for one in rows(part):
            moved = f"{format_bytes(one.bytes_per_token)}"
            moved += f" + {format_bytes(one.assistant_bytes_per_token)}" if one.assistant_bytes_per_token else ""
            lines.append(
                {
                    "model": model,
                    "system": system,
                    "drafts": one.way,
                    "accepted": "" if pd.isna(one.accepted) else percent(one.accepted),
                    "tokens a step": f"{one.tokens_per_step:.2f}",
                    "hit rate": percent(one.hit_rate, 1),
                    "experts a token": f"{one.accesses_per_token:.0f}",
                    "bytes a token": moved,
                    "time a token": " + ".join(
                        f"{seconds / plain_s:.1f}" for seconds in times[model, system, one.way] if seconds
                    ),
                }
            )
    return pipe_table(pd.DataFrame(lines)) + "\n"


def _draft_times() -> dict[tuple[str, str, str], tuple[float, float]]:
    """Seconds per token of the model and of the assistant, by model, system and way."""
    table = shipped(_DRAFT_TIMES)
    return {(one.model, one.system, one.way): (one.decode_s_per_token, one.assistant_s_per_token) for one in rows(table)}


def _chat_numbers() -> Iterator[Number]:
    rates = _means(_CHATS, "hit_rate").hit_rate.unstack("way")
    for system, part in rates.groupby("system", sort=False):
        for way, short in _SHORT.items():
            text = _range(part[way], lambda share: f"{100 * share:.0f}") + " %"
            meaning = f"hit rate of turns 2 to 10 under {system}, {short}, over models and sizes"
            yield Number(f"chat_hits_{slug(str(system))}_{slug(short)}", text, _CHATS, meaning)
        gained = _range(100 * (part[WAYS[0]] - part[WAYS[2]]), lambda points: f"{points:.1f}") + " points"
        yield Number(f"chat_gain_{slug(str(system))}", gained, _CHATS, f"hit rate kept minus engine anew, {system}")
        kept = _range(100 * (part[WAYS[0]] - part[WAYS[1]]), lambda points: f"{points:+.1f}") + " points"
        yield Number(f"chat_policy_{slug(str(system))}", kept, _CHATS, f"hit rate kept minus policy anew, {system}")
    first = shipped(_CHAT_TIMES).iloc[0]
    yield Number("chat_load", f"{first.load_ms:g} ms", _CHAT_TIMES, "what one expert takes on the paced link of chats")
    yield Number("chat_machine", str(first.machine), _CHAT_TIMES, "where chats were timed")


def _draft_numbers() -> Iterator[Number]:
    counted = shipped(_DRAFTS)
    moved = counted.bytes_per_token + counted.assistant_bytes_per_token
    ratios = counted.assign(moved=moved).pivot(index=["model", "system"], columns="way", values="moved")
    alone = counted.pivot(index=["model", "system"], columns="way", values="bytes_per_token")
    for way in ("prompt lookup", "assistant"):
        for system in dict.fromkeys(counted.system):
            part, own = (table.xs(system, level="system") for table in (ratios, alone))
            name = f"{slug(way)}_{slug(system)}"
            text = _range(part[way] / part["no drafts"], lambda ratio: f"{ratio:.2f}")
            yield Number(f"draft_bytes_{name}", text, _DRAFTS, f"bytes a token with {way} over those without, {system}")
            text = _range(own[way] / own["no drafts"], lambda ratio: f"{ratio:.2f}")
            yield Number(f"draft_own_bytes_{name}", text, _DRAFTS, f"the same without the assistant's own, {system}")
        chosen = counted[counted.way == way]
        for column in ("accepted", "rejected_share"):
            text = _range(100 * chosen[column], lambda share: f"{share:.0f}") + " %"
            yield Number(f"draft_{column}_{slug(way)}", text, _DRAFTS, f"{column} with {way}, over models and systems")
        steps = _range(chosen.tokens_per_step, lambda tokens: f"{tokens:.1f}")
        yield Number(f"draft_tokens_{slug(way)}", steps, _DRAFTS, f"tokens a step with {way}, over models and systems")
        experts = counted.pivot(index=["model", "system"], columns="way", values="accesses_per_token")
        text = _range(experts[way] / experts["no drafts"], lambda value: f"{value:.2f}")
        yield Number(f"draft_experts_{slug(way)}", text, _DRAFTS, f"experts a token with {way} over those without")
    yield Number("draft_machine", str(shipped(_DRAFT_TIMES).machine.iloc[0]), _DRAFT_TIMES, "where drafts were timed")


def _range(values: "pd.Series[float]", text: Callable[[float], str]) -> str:
    """The least and the greatest value, or one if they read the same."""
    least, most = text(float(values.min())), text(float(values.max()))
    return least if least == most else f"{least} to {most}"
