"""The ways that three things take through the package, as the files they pass: `python -m tests.journeys`.

A generated token whose experts are there (in the thread that computes), a prefetch (from the policy's answer to the bytes in
their slot) and a replayed row (from the trace to the report) are followed as the program runs, on a model of two MoE layers.
A stop is a file one of whose functions is called with something in hand: a tensor, an array, or an object made on the way (to
be asked for a property, such as a size, is none). Compiled functions are seen, too, but not what they call among themselves,
which is one piece of machine code. What a loop does again counts once. A return is a stop in a file that had been left.
"""

import gc
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

COMPILED: set[CodeType] = set()


def as_python(function: Any = None, **_: Any) -> Callable[..., Any]:
    """Instead of `finemoe.compiling.njit`: leaves a function as it is, but notes that it would be compiled."""
    if function is None:
        return as_python
    COMPILED.add(function.__code__)
    return function


if __name__ == "__main__":  # before anything is compiled
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.modules["numba"] = None  # type: ignore[assignment]
    warnings.simplefilter("ignore")
    from finemoe import compiling

    compiling.njit, compiling.borrowing = as_python, as_python
    from finemoe import native

    native.transition = as_python

import numpy as np
import torch
from transformers import MixtralConfig, MixtralForCausalLM

import finemoe
from finemoe.maps.store import ExpertMapStore
from finemoe.runtime import matcher
from finemoe.runtime.worker import Worker
from finemoe.traces import RoutingTrace

PACKAGE = Path(finemoe.__file__).parent
MOST = {"a generated token": (14, None), "a prefetch": (8, None), "a replayed row": (20, 5)}  # stops, and returns among them
LAYERS, EXPERTS, TOP_K = 2, 8, 2


class Steps:
    """Calls into the package's files with something in hand, and returns from them, by thread, in order.

    In hand is what the journey is about: tensors and arrays that no object of the package held before, and what was made since.
    """

    def __init__(self) -> None:
        self._events: list[tuple[str, str, str, str]] = []  # thread's name, what, file, function
        self._made: dict[int, Any] = {}
        self._old: dict[int, Any] = {}  # arrays and tensors that the package's objects hold from before

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Take down what the calling thread does in here, and what other threads do from now on until this is entered again."""
        self._events, self._made, self._old = [], {}, {id(value): value for value in _held_by_the_package()}
        sys.setprofile(self.note)
        try:
            yield
        finally:
            sys.setprofile(None)

    def note(self, frame: FrameType, what: str, _: Any) -> None:
        """For `sys.setprofile` and `threading.setprofile`."""
        code = frame.f_code
        if what == "call" and code.co_name == "__init__" and code.co_varnames:
            made = frame.f_locals[code.co_varnames[0]]
            self._made[id(made)] = made
        is_inner = code in COMPILED and frame.f_back is not None and frame.f_back.f_code in COMPILED
        is_stop = what == "call" and not is_inner and self._is_in_hand(frame)
        if code.co_filename.startswith(str(PACKAGE)) and (what == "return" or is_stop):
            file = str(Path(code.co_filename).relative_to(PACKAGE))
            self._events.append((threading.current_thread().name, what, file, code.co_name))

    def of(self, thread: str) -> list[tuple[str, str, str]]:
        """(what, file, function) of the thread of that name."""
        return [(what, file, function) for name, what, file, function in self._events if name == thread]

    def _is_in_hand(self, frame: FrameType) -> bool:
        code = frame.f_code
        values = [frame.f_locals.get(name) for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]]
        is_size = bool(values) and isinstance(getattr(type(values[0]), code.co_name, None), property | cached_property)
        return not is_size and any(self._is_of_it(value) for value in values)

    def _is_of_it(self, value: Any) -> bool:
        if type(value) in (tuple, list):  # not a cache's state, which is a tuple of its arrays
            return any(self._is_of_it(item) for item in value[:4])
        is_new = isinstance(value, torch.Tensor | np.ndarray) and id(value) not in self._old
        return is_new or isinstance(value, RoutingTrace) or id(value) in self._made


def _held_by_the_package() -> Iterator[Any]:
    for held in gc.get_objects():
        if str(type(held).__module__).startswith("finemoe"):
            values = held if isinstance(held, tuple) else getattr(held, "__dict__", {}).values()
            yield from (value for value in values if isinstance(value, torch.Tensor | np.ndarray))


def stops(files: list[str]) -> list[str]:
    """Files in the order entered: neither the same twice in a row, nor what a loop does again."""
    path = [file for number, file in enumerate(files) if number == 0 or files[number - 1] != file]
    length = 1
    while length <= len(path) // 2:
        begin = next(
            (b for b in range(len(path) - 2 * length + 1) if path[b : b + length] == path[b + length : b + 2 * length]), None
        )
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
    """Of one decode step under FineMoE's policy, with three quarters of the experts in memory, where all that is demanded is
    there and something is prefetched. Searches take long, uncompiled as they are, and go to the matcher's thread."""
    matcher.ThriftyWorker = Worker  # type: ignore[misc, assignment]
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
    token = [file for what, file, _ in steps.of("MainThread") if what == "call"]
    return stops(token), stops(_of_one_prefetch(steps.of("finemoe-matcher"), steps.of("finemoe-link")))


def _of_one_prefetch(searching: list[tuple[str, str, str]], loading: list[tuple[str, str, str]]) -> list[str]:
    """From the policy's answer at a gate on, which is in the midst of a compiled step: what follows it in the matcher's thread,
    and then in the link's."""
    begin = next(n for n, (what, file, name) in enumerate(searching) if name == "speak" and "hearing" in file)
    files = [searching[begin][1]]
    for what, file, name in searching[begin + 1 :]:
        if what == "call" and ("matcher" in file or name == "end_iteration"):  # the next that it hears
            break
        files += [file] if what == "call" else []
    return files + [file for what, file, _ in loading if what == "call"]


def replayed() -> list[str]:
    """Of a trace of one row under FineMoE's policy with a store of maps, with an instant link."""
    rng = np.random.default_rng(0)
    store = ExpertMapStore(LAYERS, EXPERTS, 0, 8, prefetch_distance=1)
    store.add(rng.dirichlet(np.ones(EXPERTS), size=(6, LAYERS)).astype(np.float32), None)
    ids = np.array([[rng.permutation(EXPERTS)[:TOP_K] for _ in range(LAYERS)]])
    served = RoutingTrace.from_topk(ids, np.full(ids.shape, 0.5, dtype=np.float32), np.array([0, 1]), EXPERTS)
    steps = Steps()
    with steps.taken():
        finemoe.replay(served, "finemoe", 0.5, history=store, prefetch_distance=1)
    files = [file for what, file, _ in steps.of("MainThread") if what == "call"]
    return stops(files[files.index("simulation/events.py") :])  # where rows leave the trace


def main() -> None:
    """Print every journey."""
    for name, path in journeys().items():
        most, returns = MOST[name]
        bounds = f"at most {most}" + ("" if returns is None else f", and {returns}")
        print(f"{name}: {len(set(path))} files, {len(path)} stops, {num_returns(path)} of them returns ({bounds})")
        print("".join(f"  {number:2}. {file}\n" for number, file in enumerate(path, start=1)))


if __name__ == "__main__":
    main()
