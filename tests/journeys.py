"""The ways that three things take through the package, as the files they pass: `python -m tests.journeys`.

A generated token whose experts are there (in the thread that computes), a prefetch (from the policy's answer to the bytes in their
slot) and a replayed row are followed as the program runs, on a model of two MoE layers, with the compiled functions as Python so
that their files are seen, too. A stop is a file that control enters by a call; what a loop does again counts once. A return is a
stop in a file that had been left.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

if __name__ == "__main__":
    os.environ["NUMBA_DISABLE_JIT"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from transformers import MixtralConfig, MixtralForCausalLM

import finemoe
from finemoe.traces import RoutingTrace

PACKAGE = Path(finemoe.__file__).parent
MOST = {"a generated token": (14, None), "a prefetch": (8, None), "a replayed row": (20, 5)}  # stops, and returns among them
LAYERS, EXPERTS, TOP_K = 2, 8, 2


class Steps:
    """Calls into the package's files and returns from them, by thread, in order: (thread's name, what, file, function)."""

    def __init__(self) -> None:
        self._events: list[tuple[str, str, str, str]] = []

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Take down what the calling thread does in here, and what other threads do from now on until this is entered again."""
        self._events = []
        sys.setprofile(self.note)
        try:
            yield
        finally:
            sys.setprofile(None)

    def note(self, frame: FrameType, what: str, _: Any) -> None:
        """For `sys.setprofile` and `threading.setprofile`."""
        path = frame.f_code.co_filename
        if what in ("call", "return") and path.startswith(str(PACKAGE)):
            file = str(Path(path).relative_to(PACKAGE))
            self._events.append((threading.current_thread().name, what, file, frame.f_code.co_name))

    def of(self, is_mine: Callable[[str], bool]) -> list[tuple[str, str, str]]:
        """(what, file, function) of the threads whose names are meant."""
        return [event for name, *event in self._events if is_mine(name)]  # type: ignore[misc]


def stops(files: list[str]) -> list[str]:
    """Files in the order entered: neither the same twice in a row, nor what a loop does again."""
    path = [file for number, file in enumerate(files) if number == 0 or files[number - 1] != file]
    length = 1
    while length <= len(path) // 2:
        begin = next((b for b in range(len(path) - 2 * length + 1) if path[b : b + length] == path[b + length : b + 2 * length]), None)
        if begin is None:
            length += 1
        else:
            del path[begin : begin + length]
            length = 1
    return path


def num_returns(path: list[str]) -> int:
    """Stops in a file that had been left."""
    return len(path) - len(set(path))


def journeys() -> dict[str, list[str]]:
    """The stops of each journey."""
    token, prefetch = live()
    return {"a generated token": token, "a prefetch": prefetch, "a replayed row": replayed()}


def live() -> tuple[list[str], list[str]]:
    """Of one decode step under FineMoE's policy, with three quarters of the experts in memory, where all that is demanded is there
    and something is prefetched."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = MixtralConfig(**sizes, vocab_size=96, intermediate_size=48, num_local_experts=EXPERTS, num_experts_per_tok=TOP_K)
    model, steps = MixtralForCausalLM(config).eval(), Steps()
    threading.setprofile(steps.note)
    try:
        with torch.no_grad(), finemoe.offload(model, 0.75, "finemoe", prefetch_distance=1) as engine:
            cache = model(input_ids=torch.arange(20, 26)[None], use_cache=True).past_key_values
            for token in range(26, 96):
                before = engine.report()
                with steps.taken():
                    model(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True)
                after = engine.report()  # waits for the matcher
                if after.misses + after.late == before.misses + before.late and after.prefetched_bytes > before.prefetched_bytes:
                    break
    finally:
        threading.setprofile(None)  # type: ignore[arg-type]
    own = steps.of(lambda name: name == "MainThread")
    beside = steps.of(lambda name: name != "MainThread")
    return stops([file for what, file, _ in own if what == "call"]), stops(_of_one_prefetch(beside))


def _of_one_prefetch(events: list[tuple[str, str, str]]) -> list[str]:
    """From the policy's answer at the first gate on: what follows it in the matcher's thread, and in the link's."""
    begin = next(n for n, (what, file, name) in enumerate(events) if (what, name) == ("return", "on_gate") and "policies" in file)
    files = [events[begin][1]]
    for what, file, name in events[begin + 1 :]:
        if what == "call":
            if name in ("_end", "end_iteration", "on_gate", "distribution"):  # the next that the matcher is told
                break
            files.append(file)
    return files


def replayed() -> list[str]:
    """Of a trace of one row under FineMoE's policy with a history, with an instant link."""
    history, served = (_trace(seed, rows) for seed, rows in ((0, 6), (1, 1)))
    steps = Steps()
    with steps.taken():
        finemoe.replay(served, "finemoe", 0.5, history=history, prefetch_distance=1)
    return stops([file for what, file, _ in steps.of(lambda name: True) if what == "call"])


def _trace(seed: int, num_rows: int) -> RoutingTrace:
    rng = np.random.default_rng(seed)
    ids = np.stack([[rng.permutation(EXPERTS)[:TOP_K] for _ in range(LAYERS)] for _ in range(num_rows)])
    return RoutingTrace.from_topk(ids, np.full(ids.shape, 0.5, dtype=np.float32), np.array([0, num_rows]), EXPERTS)


def main() -> None:
    """Print every journey."""
    for name, path in journeys().items():
        most, returns = MOST[name]
        bounds = f"at most {most}" + ("" if returns is None else f", and {returns}")
        print(f"{name}: {len(set(path))} files, {len(path)} stops, {num_returns(path)} of them returns ({bounds})")
        print("".join(f"  {number:2}. {file}\n" for number, file in enumerate(path, start=1)))


if __name__ == "__main__":
    main()
