"""Whatever fails, the caller hears of it within seconds, no wrong token comes out, and what can go on goes on."""

import ctypes
import os
import signal
import threading

import numpy as np
import pytest
import torch

import finemoe
from finemoe.cache.state import LOADING
from finemoe.errors import EngineError, FinemoeError
from finemoe.maps.store import ExpertMapStore
from finemoe.models.layers import find_moe_layers
from finemoe.runtime import attachment, fetching, hearing, lean, transitions
from finemoe.runtime.link import Link
from finemoe.runtime.tiers import ExpertStore
from tests.runtime.models import build, padded_batch

GENERATION = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


class Interrupts:
    """Stands before a function and raises KeyboardInterrupt at its n-th call."""

    def __init__(self, function, at: int) -> None:
        self._function, self.remaining = function, at

    def __call__(self, *args, **kwargs):
        self.remaining -= 1
        if self.remaining == 0:
            raise KeyboardInterrupt
        return self._function(*args, **kwargs)


EVERYWHERE = ["compute", "demand", "land"]
STRIKES = [
    *(("on-demand", where, {}) for where in EVERYWHERE),
    *(("on-demand", where, {"host_memory": 0}) for where in ("record", "start_copy", "end_demand")),
    *(("finemoe", where, {}) for where in (*EVERYWHERE, "record", "copy", "take_next", "settle", "speak")),
    ("finemoe", "post", {"prefetch_distance": 4}),
]


@pytest.mark.parametrize("at", [1, 2, 7, 20])
@pytest.mark.parametrize(("policy", "where", "options"), STRIKES)
def test_an_interrupt_anywhere_and_then_again(policy, where, options, at, monkeypatch):
    """All in the calling thread: what strikes a worker is that worker's failure."""
    model, batch = build("mixtral"), padded_batch()
    expected = model.generate(**batch, **GENERATION)
    with finemoe.offload(model, 0.2, policy, asynchronous=False, **options) as engine:
        memory = engine.memories.memories[0]
        holder, name = {
            "record": (engine.records, "record"),
            "copy": (memory.link, "copy"),
            "compute": (lean, "linear"),
            "take_next": (fetching, "take_next"),
            "settle": (fetching, "settle"),
            "post": (hearing, "post"),
            "speak": (hearing, "speak"),
        }.get(where, (transitions, where))
        monkeypatch.setattr(holder, name, Interrupts(getattr(holder, name), at))
        with pytest.raises(KeyboardInterrupt):
            model.generate(**batch, **GENERATION)
        monkeypatch.undo()
        for _ in range(2):
            assert torch.equal(model.generate(**batch, **GENERATION), expected)
        cache = memory.cache
        assert cache.num_admitted - cache.num_evicted == cache.num_held


@pytest.mark.parametrize("at", [1, 2, 7, 20])
def test_an_interrupt_beside_workers_and_then_again(at, monkeypatch):
    model, batch = build("mixtral"), padded_batch()
    expected = model.generate(**batch, **GENERATION)
    with finemoe.offload(model, 0.2) as engine:
        monkeypatch.setattr(lean, "linear", Interrupts(lean.linear, at))
        with pytest.raises(KeyboardInterrupt):
            model.generate(**batch, **GENERATION)
        monkeypatch.undo()
        for _ in range(2):
            assert torch.equal(model.generate(**batch, **GENERATION), expected)
        cache = engine.memories.memories[0].cache
        assert cache.num_admitted - cache.num_evicted == cache.num_held


@pytest.mark.parametrize("policy", ["finemoe", "on-demand"])
def test_a_disk_that_fails_for_a_while(policy, monkeypatch):
    model, batch = build("mixtral"), padded_batch()
    expected = model.generate(**batch, **GENERATION)
    with finemoe.offload(model, 0.2, policy, host_memory=0):
        monkeypatch.setattr(os, "preadv", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(EngineError, match="reading an expert from disk failed"):
            model.generate(**batch, **GENERATION)
        monkeypatch.undo()
    assert torch.equal(model.generate(**batch, **GENERATION), expected)


@pytest.mark.parametrize("policy", ["finemoe", "on-demand"])
@pytest.mark.parametrize("fault", ["short", "changed"])
def test_a_disk_that_lost_the_experts(policy, fault):
    model, batch = build("mixtral"), padded_batch()
    engine = finemoe.offload(model, 0.2, policy, host_memory=0)
    file = engine.records.disk.fileno()
    if fault == "short":
        os.ftruncate(file, 10)
    else:
        os.pwrite(file, os.urandom(engine.records.disk_bytes), 0)
    with pytest.raises(EngineError, match="disk"):
        model.generate(**batch, **GENERATION)
    with pytest.raises(EngineError, match="disk"):
        engine.close()
    assert find_moe_layers(model)[0].experts.gate_up_proj.isnan().all(), "what cannot be given back is NaN, never wrong"
    with pytest.raises(EngineError, match="engine that held this model's experts is closed"):
        model.generate(**batch, **GENERATION)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("finemoe")]


def test_more_memory_than_is_free_is_refused_with_what_fits(monkeypatch):
    from finemoe.runtime import pool

    model = build("mixtral")
    monkeypatch.setattr(pool, "free_bytes", lambda device: 5 * 18432 + 7)
    message = (
        r"294912 bytes for experts cannot be allocated on cpu; lower expert_memory to at most 92160 bytes: 90\.0 KiB are free$"
    )
    with pytest.raises(FinemoeError, match=message):
        finemoe.offload(model, 0.5)
    finemoe.offload(model, 92160).close()


def test_memory_that_pytorch_holds_unused_is_free(monkeypatch):
    from finemoe.runtime.free_memory import free_bytes

    told = {"mem_get_info": (100, 1000), "memory_reserved": 60, "memory_allocated": 45}
    for name, value in told.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert free_bytes(torch.device("cuda", 0)) == 115
    assert free_bytes(torch.device("meta")) is None
    assert free_bytes(torch.device("cpu")) > 1 << 20


def test_no_memory_for_the_slots_leaves_the_model_as_it_was(monkeypatch):
    model, batch = build("mixtral"), padded_batch()
    with torch.no_grad():
        expected = model(**batch).logits
    from finemoe.runtime import pool

    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(pool.torch, "zeros", fail)
    with pytest.raises(
        FinemoeError, match="294912 bytes for experts cannot be allocated on cpu; lower expert_memory to at most 276480 bytes"
    ):
        finemoe.offload(model, 0.5)
    monkeypatch.undo()
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, expected)


def test_a_failure_while_the_experts_are_taken_gives_them_back(monkeypatch):
    model, batch = build("mixtral"), padded_batch()
    with torch.no_grad():
        expected = model(**batch).logits
    write = ExpertStore.write

    def fail_late(self, layer, expert, weights):
        if (layer, expert) == (2, 3):
            raise OSError("no space")
        write(self, layer, expert, weights)

    monkeypatch.setattr(ExpertStore, "write", fail_late)
    with pytest.raises(OSError, match="no space"):
        finemoe.offload(model, 0.5)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, expected)


@pytest.mark.parametrize("policy", ["finemoe", "on-demand"])
def test_a_router_that_emits_nan_names_the_layer_before_a_token_comes_out(policy):
    model = build("mixtral")
    with torch.no_grad():
        find_moe_layers(model)[2].router.weight[0] = float("nan")
    with finemoe.offload(model, 0.5, policy), pytest.raises(EngineError, match="MoE layer 2 emitted NaN"):
        model.generate(**padded_batch(), max_new_tokens=1)


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        (0, "one expert takes"),
        (-5, "must not be negative"),
        (0.0, r"must be in \(0, 1\]"),
        (-0.5, r"must be in \(0, 1\]"),
        (float("nan"), r"must be in \(0, 1\]"),
        ("0GiB", "one expert takes"),
        ("-1GiB", "not a byte count"),
        (None, "must be a share in"),
    ],
)
def test_absurd_memory_is_refused(memory, message):
    with pytest.raises(FinemoeError, match=message):
        finemoe.offload(build("mixtral"), memory)


def test_more_memory_than_there_are_experts_is_all_of_them():
    model = build("mixtral")
    with finemoe.offload(model, "900TiB", "on-demand") as engine:
        assert engine.expert_memory_bytes == engine.records.host_bytes


def test_a_store_of_another_model_is_refused(tmp_path):
    store = ExpertMapStore(4, 8, 32, 10, model="SomeOtherForCausalLM-0123")
    with pytest.raises(FinemoeError, match=r"the history is of 'SomeOther.*record one with this model"):
        finemoe.offload(build("mixtral"), 0.5, history=store)
    rng = np.random.default_rng(0)
    store.add(rng.dirichlet(np.ones(8), size=(3, 4)).astype(np.float32), rng.normal(size=(3, 32)))
    store.save(tmp_path / "maps.store")
    content = bytearray((tmp_path / "maps.store").read_bytes())
    content[-3] ^= 255
    (tmp_path / "maps.store").write_bytes(content)
    with pytest.raises(FinemoeError, match="does not match its checksum"):
        ExpertMapStore.load(tmp_path / "maps.store")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 0}, "at least one"),
        ({"devices": "gpu"}, "unknown device 'gpu'"),
        ({"devices": "cuda"}, "no usable CUDA"),
        ({"devices": []}, "list of devices"),
        ({"host_memory": -1}, "must not be negative"),
        ({"host_memory": "lots"}, "not a byte count"),
    ],
)
def test_absurd_options_are_refused(options, message):
    if options.get("devices") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(FinemoeError, match=message):
        finemoe.offload(build("mixtral"), 0.5, **options)


@pytest.mark.parametrize("where", ["record", "copy", "reserve", "settle"])
@pytest.mark.parametrize("at", [1, 5])
def test_an_interrupted_preload_and_then_on(where, at, monkeypatch):
    model, batch = build("mixtral"), padded_batch()
    expected = model.generate(**batch, **GENERATION)
    with finemoe.offload(model, 0.5, "on-demand") as engine:
        memory = engine.memories.memories[0]
        holder = {"record": engine.records, "copy": memory.link}.get(where, fetching)
        monkeypatch.setattr(holder, where, Interrupts(getattr(holder, where), at))
        with pytest.raises(KeyboardInterrupt):
            engine.preload()
        monkeypatch.undo()
        if at == 1:
            engine.preload()
        assert torch.equal(model.generate(**batch, **GENERATION), expected)
        assert memory.cache.num_admitted - memory.cache.num_evicted == memory.cache.num_held


@pytest.mark.parametrize("at", [1, 3, 9, 30])
def test_an_interrupt_while_prefetching_in_line_and_then_again(at, monkeypatch):
    """In line the caller itself loads what was predicted: before the first layer, and at the gates."""
    model, batch = build("mixtral"), padded_batch()
    expected = model.generate(**batch, **GENERATION)
    with finemoe.offload(model, 0.2, asynchronous=False) as engine:
        model.generate(**batch, **GENERATION)  # there is something to predict from
        memory = engine.memories.memories[0]
        monkeypatch.setattr(memory, "copy_in_chunks", Interrupts(memory.copy_in_chunks, at))
        with pytest.raises(KeyboardInterrupt):
            model.generate(**batch, **GENERATION)
        monkeypatch.undo()
        assert torch.equal(model.generate(**batch, **GENERATION), expected)
        report = engine.report()
    assert report.useful_bytes >= 0
    assert report.prefetched_bytes == report.useful_bytes + report.wasted_bytes + report.unused_resident_bytes


def test_an_inner_module_called_from_two_threads_is_refused(monkeypatch):
    model, batch = build("mixtral"), padded_batch()
    inside, go_on, found = threading.Event(), threading.Event(), {}
    linear = lean.linear

    def pause(*args):
        if threading.current_thread().name == "first":
            inside.set()
            go_on.wait(10)
        return linear(*args)

    def first():
        with torch.no_grad():
            found["first"] = model.model(**batch).last_hidden_state

    with torch.no_grad():
        expected = model.model(**batch).last_hidden_state
        with finemoe.offload(model, 0.3, "on-demand"):
            monkeypatch.setattr(lean, "linear", pause)
            thread = threading.Thread(target=first, name="first")
            thread.start()
            assert inside.wait(10)
            with pytest.raises(EngineError, match="one thread at a time"):
                model.model(**batch)
            go_on.set()
            thread.join(10)
            assert torch.equal(found["first"], expected)
            assert torch.equal(model.model(**batch).last_hidden_state, expected)


def test_devices_of_different_kinds_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(FinemoeError, match="different kinds"):
        finemoe.offload(build("mixtral"), 0.5, devices=["cpu", "cuda:0"])


def test_an_interrupted_recovery_goes_on_where_it_was(monkeypatch):
    model, batch = build("mixtral"), padded_batch()
    expected = model.generate(**batch, **GENERATION)
    with finemoe.offload(model, 0.2, "on-demand") as engine:
        memory = engine.memories.memories[0]
        for holder, name, at in ((transitions, "land", 7), (fetching, "empty", 1)):  # inside a layer, then while recovering
            monkeypatch.setattr(holder, name, Interrupts(getattr(holder, name), at))
            with pytest.raises(KeyboardInterrupt):
                model.generate(**batch, **GENERATION)
        monkeypatch.undo()
        assert torch.equal(model.generate(**batch, **GENERATION), expected)
        assert (memory.cache.state != LOADING).all()


@pytest.mark.parametrize("embeds", [False, True])
def test_an_inner_module_called_after_an_interrupt_before_the_first_layer(embeds, monkeypatch):
    model, batch = build("mixtral"), padded_batch()
    if embeds:  # then not even the embedding layer runs
        vectors = model.get_input_embeddings()(batch["input_ids"]).detach()
        then = {"inputs_embeds": vectors, "attention_mask": batch["attention_mask"]}
    else:
        then = batch
    with torch.no_grad():
        expected = model.model(**then).last_hidden_state
        with finemoe.offload(model, 0.2, asynchronous=False) as engine:
            model.model(**batch)  # there is something to predict from
            memory = engine.memories.memories[0]
            monkeypatch.setattr(memory, "copy_in_chunks", Interrupts(memory.copy_in_chunks, 1))
            with pytest.raises(KeyboardInterrupt):
                model.model(**batch)
            assert engine.iteration.layer < 0, "the interrupt was to strike while the first layers are prefetched"
            monkeypatch.undo()
            assert torch.equal(model.model(**then).last_hidden_state, expected)
            assert (memory.cache.state != LOADING).all()


@torch.inference_mode()
def test_an_engine_made_in_inference_mode_serves_and_gives_back_a_model_for_all_modes():
    model, batch = build("mixtral"), padded_batch()
    expected = model.generate(**batch, **GENERATION)
    with finemoe.offload(model, 0.3, "finemoe") as engine:
        for _ in range(3):
            assert torch.equal(model.generate(**batch, **GENERATION), expected)
        assert engine.report().prefetched_bytes > 0
    experts = model.model.layers[0].mlp.experts
    assert not any(parameter.data.is_inference() for parameter in experts.parameters())


def test_a_preload_beside_another_thread_s_forward_is_refused(monkeypatch):
    model, batch = build("mixtral"), padded_batch()
    inside, go_on = threading.Event(), threading.Event()
    linear = lean.linear

    def pause(*args):
        inside.set()
        go_on.wait(10)
        return linear(*args)

    def forward():
        with torch.no_grad():
            model(**batch)

    with finemoe.offload(model, 0.3, "on-demand") as engine:
        monkeypatch.setattr(lean, "linear", pause)
        thread = threading.Thread(target=forward)
        thread.start()
        assert inside.wait(10)
        with pytest.raises(EngineError, match="one thread at a time"):
            engine.preload()
        go_on.set()
        thread.join(10)
        engine.preload()


def test_a_failure_after_the_last_iteration_is_raised_by_the_report(monkeypatch):
    """Nobody calls the model again, so that the report is what must raise it."""
    model, batch = build("mixtral"), padded_batch()
    with finemoe.offload(model, 0.3) as engine, torch.no_grad():
        monkeypatch.setattr(engine.policy, "end_iteration", lambda: (_ for _ in ()).throw(RuntimeError("the moon is in the way")))
        model(**batch)
        with pytest.raises(EngineError, match="moon"):
            engine.report()


def test_a_device_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(FinemoeError, match="'cuda:7' was requested, but there are 2 CUDA devices"):
        finemoe.offload(build("mixtral"), 0.3, devices="cuda:7")


def test_a_forward_that_begins_beside_another_thread_s_preload_waits_for_it():
    model, batch = build("mixtral"), padded_batch()
    inside, go_on = threading.Event(), threading.Event()
    copying: list[str] = []
    with torch.no_grad(), finemoe.offload(model, 0.3, "on-demand") as engine:
        expected = model(**batch).logits
        engine.memories.reset()

        class Pausing(Link):
            def copy(self, sink, source, size, fence):
                copying.append(threading.current_thread().name)
                inside.set()
                go_on.wait(10)
                ctypes.memmove(sink, source, size)
                return 0

            def wait(self, mark, most_ns):
                return 1

        engine.memories.memories[0].connect(Pausing())
        thread = threading.Thread(target=engine.preload, name="preload")
        thread.start()
        assert inside.wait(10)
        threading.Timer(0.1, go_on.set).start()
        assert torch.equal(model(**batch).logits, expected)
        thread.join(10)
    num_preloaded = copying.count("preload")
    assert num_preloaded > 1
    assert copying[:num_preloaded] == ["preload"] * num_preloaded, "a demand came between the copies of the preload"


@torch.inference_mode()
def test_an_offload_that_fails_in_inference_mode_gives_back_a_model_for_all_modes(monkeypatch):
    model = build("mixtral")
    monkeypatch.setattr(attachment, "Guards", lambda *_: (_ for _ in ()).throw(RuntimeError("no")))
    with pytest.raises(RuntimeError, match="no"):
        finemoe.offload(model, 0.3)
    assert not any(parameter.data.is_inference() for parameter in model.model.layers[0].mlp.experts.parameters())


@pytest.mark.parametrize("options", [{}, {"asynchronous": False}, {"policy": "mixtral-offloading"}], ids=str)
def test_a_batch_that_is_all_padding_is_served_and_harms_nobody(options):
    model, generation = build("mixtral"), {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    batches = [padded_batch(), {"input_ids": torch.zeros(1, 3, dtype=torch.long), "attention_mask": torch.zeros(1, 3)}]
    with torch.no_grad():
        expected = [model.generate(**batch, **generation) for batch in batches]
        with finemoe.offload(model, 0.3, **options) as engine:
            for _ in range(2):
                for batch, tokens in zip(batches, expected, strict=True):
                    assert torch.equal(model.generate(**batch, **generation), tokens)
            engine.report()


def test_an_interrupt_waits_until_the_model_is_given_back(monkeypatch):
    from finemoe.runtime import takeover

    model, restore = build("mixtral"), takeover.restore
    with torch.no_grad():
        expected = model(**padded_batch()).logits
    engine = finemoe.offload(model, 0.3)

    def interrupted(layer, *arguments):
        if layer.index == 1:
            signal.raise_signal(signal.SIGINT)
        restore(layer, *arguments)

    monkeypatch.setattr(takeover, "restore", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a worker of the test runner may have ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            engine.close()
    finally:
        signal.signal(signal.SIGINT, before)
    with torch.no_grad():
        assert torch.equal(model(**padded_batch()).logits, expected)
