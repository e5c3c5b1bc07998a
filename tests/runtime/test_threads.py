"""Who may be inside a model: one thread at a time, whichever way it comes in, and nobody after a fork; what dropping leaves."""

import gc
import os
import threading
import weakref
from collections.abc import Callable

import pytest
import torch

import finemoe
from finemoe import native
from finemoe.errors import EngineError
from finemoe.runtime import lifetime
from finemoe.runtime.board import MUTEX
from finemoe.runtime.lifetime import Lifetime
from finemoe.runtime.session import Session
from tests.runtime.models import build, padded_batch

WAIT_S = 20


class Paused:
    """A forward in a thread of its own that waits inside a module until it is told to go on."""

    def __init__(self, forward, module) -> None:
        self._go_on, self.entered, self.found = threading.Event(), threading.Event(), []
        self._handle = module.register_forward_pre_hook(self._pause)
        self._thread = threading.Thread(target=self._run, args=(forward,))
        self._thread.start()
        assert self.entered.wait(WAIT_S)

    def _pause(self, *_) -> None:
        if threading.current_thread() is self._thread:
            self.entered.set()
            assert self._go_on.wait(WAIT_S)

    def _run(self, forward) -> None:
        with torch.no_grad():
            self.found.append(forward())

    def finish(self) -> torch.Tensor:
        self._go_on.set()
        self._thread.join(WAIT_S)
        self._handle.remove()
        return self.found[0]


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return padded_batch()


def inside(model, batch, entry: str) -> tuple[torch.Tensor, Callable[[], Paused]]:
    """What a forward gives, the model's or one past it; and how to start it in a thread that pauses inside a layer's experts."""
    forwards = {"model": lambda: model(**batch).logits, "inner": lambda: model.model(**batch).last_hidden_state}
    with torch.no_grad():
        expected = forwards[entry]()
    return expected, lambda: Paused(forwards[entry], model.model.layers[1].mlp.experts.act_fn)


@pytest.mark.parametrize("entry", ["model", "inner"])
@pytest.mark.parametrize("policy", ["finemoe", "mixtral-offloading", "on-demand"])
def test_an_embedding_elsewhere_is_no_iteration(batch, policy, entry):
    """Another thread that only embeds a prompt must not clear what a running layer protects."""
    model = build("mixtral")
    expected, enter = inside(model, batch, entry)
    with finemoe.offload(model, 0.1, policy) as engine:
        paused = enter()
        before = engine.iteration.number
        model.get_input_embeddings()(torch.arange(5)[None])
        assert engine.iteration.number == before
        assert torch.equal(paused.finish(), expected)


@pytest.mark.parametrize("action", ["forward", "inner forward", "preload", "close"])
@pytest.mark.parametrize("entry", ["model", "inner"])
def test_whoever_comes_while_a_layer_runs_is_refused_and_harms_nobody(batch, entry, action):
    model = build("mixtral")
    expected, enter = inside(model, batch, entry)
    engine = finemoe.offload(model, 0.1)
    actions = {
        "forward": lambda: model(**batch),
        "inner forward": lambda: model.model(**batch),
        "preload": engine.preload,
        "close": engine.close,
    }
    paused = enter()
    with torch.no_grad(), pytest.raises(EngineError, match="one thread at a time"):
        actions[action]()
    assert torch.equal(paused.finish(), expected)
    engine.close()
    with torch.no_grad():
        found = model(**batch).logits if entry == "model" else model.model(**batch).last_hidden_state
    assert torch.equal(found, expected)


def test_a_forward_that_waits_while_the_engine_closes_goes_on_without_it(batch):
    model = build("mixtral")
    with torch.no_grad():
        expected = model(**batch).logits
    engine, found = finemoe.offload(model, 0.3), []

    def serve() -> None:
        with torch.no_grad():
            found.append(model(**batch).logits)

    with engine.session.door:
        thread = threading.Thread(target=serve)
        thread.start()
        engine.close()
    thread.join(WAIT_S)
    assert torch.equal(found[0], expected)


@pytest.mark.parametrize("host_memory", [None, 0])
def test_a_forked_process_is_told_and_its_parent_goes_on(batch, host_memory):
    model = build("mixtral")
    with finemoe.offload(model, 0.3, host_memory=host_memory), torch.no_grad():
        expected = model(**batch).logits
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                model(**batch)
                answer = "no error"
            except EngineError as error:
                answer = str(error)
            finally:
                lifetime.end_all()  # as at its exit
                os.write(writer, answer.encode())
                os._exit(0)
        os.close(writer)
        assert "offload the model in it, after the fork" in os.read(reader, 1000).decode()
        os.waitpid(child, 0)
        os.close(reader)
        assert torch.equal(model(**batch).logits, expected)


@pytest.mark.parametrize("policy", ["finemoe", "on-demand", "moe-infinity"])
def test_an_engine_that_is_dropped_leaves_nothing(batch, policy):
    model = build("mixtral")
    engine = finemoe.offload(model, 0.3, policy)
    with torch.no_grad():
        model(**batch)
    memory = engine.memories.memories[0]
    left = [weakref.ref(one) for one in (model, engine, engine.records, memory.pool)]
    ending, board = [thread for thread in threading.enumerate() if thread.name.startswith("finemoe")], memory.board
    del memory
    native.lock(board.places[MUTEX])  # which the worker needs to end: whoever happens to collect must not wait for it
    try:
        del model, engine
        gc.collect()
        assert [left[0](), left[1]()] == [None, None]
    finally:
        native.unlock(board.places[MUTEX])
    assert ending
    for thread in ending:
        thread.join(WAIT_S)
        assert not thread.is_alive()
    gc.collect()
    assert [reference() for reference in left] == [None] * 4


def test_an_embedding_after_a_padded_batch_is_no_padded_batch():
    """Prompts may be embedded by hand and handed over as such, after a batch with padding."""
    model = build("mixtral")
    batch = {"input_ids": torch.arange(2, 62).reshape(3, 20), "attention_mask": torch.ones(3, 20, dtype=torch.long)}
    batch["attention_mask"][0, :15] = 0
    prompt = torch.arange(3, 19)[None]
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    with torch.no_grad():
        embedded = model.get_input_embeddings()(prompt)
        expected = model.generate(inputs_embeds=embedded, **options)
        with finemoe.offload(model, 0.3):
            model.generate(**batch, **options)
            embedded = model.get_input_embeddings()(prompt)
            assert torch.equal(model.generate(inputs_embeds=embedded, **options), expected)
            model.generate(**batch, **options)


def test_an_exception_is_not_replaced_by_a_refusal_to_close(batch):
    model = build("mixtral")
    expected, enter = inside(model, batch, "model")
    engine = finemoe.offload(model, 0.3)
    paused, first = enter(), ValueError("first")
    engine.__exit__(ValueError, first, None)
    assert "one thread at a time" in first.__notes__[0]
    assert torch.equal(paused.finish(), expected)
    engine.close()
    with pytest.raises(EngineError, match="this engine is closed"):
        engine.preload()


def test_a_refused_forward_leaves_the_running_ones_padding_alone():
    model, learned = build("mixtral"), []
    batch = {"input_ids": torch.arange(2, 62).reshape(3, 20), "attention_mask": torch.ones(3, 20, dtype=torch.long)}
    batch["attention_mask"][0, :15] = 0
    with finemoe.offload(model, 0.3, asynchronous=False) as engine:
        start = engine.policy.start_iteration
        engine.policy.start_iteration = lambda context: learned.append(context.num_rows) or start(context)
        paused = Paused(lambda: model(**batch).logits, model.model.embed_tokens)
        with torch.no_grad(), pytest.raises(EngineError, match="one thread at a time"):
            model(**batch)
        paused.finish()
    assert learned == [45]


def keepers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "finemoe-keeper"]


def test_the_end_of_one_engine_leaves_another_its_own(batch):
    """Whoever closes must not wait for a thread that another engine needs, though it begins in between."""

    class Parts:
        """Stand in for what is stopped; `closed` says how often."""

        def __init__(self) -> None:
            self.closed = 0

        def close(self) -> None:
            self.closed += 1

    def watched() -> tuple[Session, Parts, Lifetime]:
        session, parts = Session(), Parts()
        watch = Lifetime(session, parts, parts, None)
        watch.begin()
        return session, parts, watch

    old, old_parts, first = watched()
    new, new_parts, _ = watched()
    closing = threading.Thread(target=first.cancel, daemon=True)
    closing.start()
    closing.join(WAIT_S)
    assert not closing.is_alive()
    assert len(keepers()) == 1
    left = keepers()
    del old, new
    gc.collect()
    for thread in left:
        thread.join(WAIT_S)
    assert (old_parts.closed, new_parts.closed, keepers()) == (0, 2, [])
