"""An interrupt at any line of attaching or closing leaves a whole engine or a whole model; at any of recording, the model."""

import dis
import functools
import itertools
import sys
import threading

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

import finemoe
from finemoe.paths import ROOT
from finemoe.runtime import seam
from tests.runtime.models import padded_batch

RUNTIME = str(ROOT / "finemoe" / "runtime")
OPTIONS = {
    "finemoe": {"policy": "finemoe"},
    "looks ahead": {"policy": "mixtral-offloading"},
    "on disk": {"policy": "finemoe", "host_memory": 0, "devices": 2},
    "everything": {"policy": "no-offload"},
}
# Where attaching is walked through instruction by instruction.
ATTACHING = {"engine.py", "attachment.py", "worker.py", "lifetime.py"}


def tiny() -> MixtralForCausalLM:
    """The smallest model with two MoE layers, so that every line's turn comes."""
    torch.manual_seed(0)
    config = MixtralConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        vocab_size=96,
        num_local_experts=2,
        num_experts_per_tok=1,
        max_position_embeddings=32,
    )
    model = MixtralForCausalLM(config).eval()
    model.set_experts_implementation("eager")
    return model


@functools.cache
def exits_of_withs(code) -> frozenset[int]:
    """Offsets of instructions that call a `with` statement's `__exit__` after its block has ended well: a tracer can raise there,
    and the exit is never called; a signal is heard at calls and jumps only, which are inside the block."""
    found: set[int] = set()
    instructions = list(dis.get_instructions(code))
    for place in range(len(instructions) - 3):
        three = instructions[place : place + 3]
        if all(one.opname == "LOAD_CONST" and one.argval is None for one in three):
            rest = itertools.takewhile(lambda one: one.opname != "POP_TOP", instructions[place:])
            found.update(one.offset for one in rest)
    return frozenset(found)


class InterruptAt:
    """Raises KeyboardInterrupt at the n-th traced event (a line or a single instruction) of the package's runtime, once.

    Args:
        files, functions: where; None is everywhere. By instruction it ends where an engine is complete: what comes after that
            only hands it over, and no interrupt is heard there (a line has no boundary there).
    """

    def __init__(
        self, at: int, files: set[str] | None = None, functions: set[str] | None = None, by_instruction: bool = False
    ) -> None:
        self.remaining, self._files, self._functions = at, files, functions
        self._is_complete = False
        self._kind, self._by_instruction = "opcode" if by_instruction else "line", by_instruction

    def __call__(self, frame, event, argument):
        self._is_complete = self._is_complete or (self._by_instruction and frame.f_code.co_name == "forget")
        if self._is_complete or not self._is_traced(frame.f_code):
            return None
        frame.f_trace_opcodes = self._by_instruction
        if event == self._kind:
            self.remaining -= 1
            if self.remaining <= 0 and frame.f_lasti not in exits_of_withs(frame.f_code):
                sys.settrace(None)
                raise KeyboardInterrupt
        return self

    def _is_traced(self, code) -> bool:
        name = code.co_filename
        is_ours = name.startswith(RUNTIME) and (self._files is None or name.rsplit("/", 1)[-1] in self._files)
        return is_ours and (self._functions is None or code.co_name in self._functions)


def is_interrupted(function, tracer) -> bool:
    """Whether the tracer struck while a function ran."""
    previous = sys.gettrace()
    sys.settrace(tracer)
    try:
        function()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(previous)
    return False


def facts_of(model) -> dict:
    """What must be as before: attributes and hooks of every module, and where weights lie."""
    facts = {}
    for name, module in model.named_modules():
        hooks = {key: list(value) for key, value in module.__dict__.items() if "_hooks" in key and isinstance(value, dict)}
        facts[name] = (set(module.__dict__), id(module.__dict__.get("config")), hooks)
    facts["parameters"] = [(id(one), one.shape, one.untyped_storage().nbytes() >= one.nbytes) for one in model.parameters()]
    return facts


def threads() -> list[str]:
    """Those of the package that do not end; readers of a disk whose read was broken off are not waited for by it."""
    for thread in threading.enumerate():
        if thread.name.startswith("finemoe-disk"):
            thread.join(10)
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("finemoe")]


class Whole:
    """What a model is before there is an engine, to be compared with what it is later."""

    def __init__(self, model) -> None:
        self._model, self._facts = model, facts_of(model)
        self._weights = [one.clone() for one in model.parameters()]
        self._logits = self._run()

    def require(self, event: int) -> None:
        assert facts_of(self._model) == self._facts, f"event {event}"
        assert threads() == [], f"event {event}"
        assert all(map(torch.equal, self._model.parameters(), self._weights)), f"event {event}"

    def require_same_bits(self, event: int) -> None:
        assert torch.equal(self._run(), self._logits), f"event {event}"

    @torch.no_grad()
    def _run(self) -> torch.Tensor:
        return self._model(**padded_batch(1)).logits


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("kind", "by_instruction"), [*((kind, False) for kind in OPTIONS), ("looks ahead", True)], ids=str)
def test_an_interrupt_anywhere_in_attaching_leaves_the_model_as_it_was(kind, by_instruction):
    model, made = tiny(), []
    whole = Whole(model)
    functions = {"attach", "_attach", "begin", "start"} if by_instruction else None
    files = ATTACHING if by_instruction else None

    def attach() -> None:
        made.append(finemoe.offload(model, 0.6, **OPTIONS[kind]))

    for event in itertools.count(1):
        if not is_interrupted(attach, InterruptAt(event, files, functions, by_instruction)):
            break
        whole.require(event)
    assert event > 100
    whole.require_same_bits(event)
    made[0].close()
    whole.require(event)
    whole.require_same_bits(event)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", OPTIONS)
def test_an_interrupt_anywhere_in_closing_leaves_a_whole_engine_or_a_whole_model(kind):
    model, kept = tiny(), 0
    whole = Whole(model)
    for event in itertools.count(1):
        engine = finemoe.offload(model, 0.6, **OPTIONS[kind])
        is_struck = is_interrupted(engine.close, InterruptAt(event))
        if seam.is_connected(model.model.layers[0].mlp.experts):
            kept += 1
            whole.require_same_bits(event)
            engine.report()
            engine.close()
        whole.require(event)
        if not is_struck:
            break
    whole.require_same_bits(event)
    assert event > 100
    assert 0 < kept < 20
