"""What packed experts must outlive: interrupts, other modes, their own engine's end; and the memory that they are given."""

import gc
import threading
from typing import Any

import pytest
import torch

import finemoe
from finemoe.runtime import packed_parts
from finemoe.runtime.conversion import converted
from finemoe.runtime.packing import Packing
from finemoe.runtime.tensor_group import Group
from tests.packed.checkpoints import make
from tests.packed.test_bit_equal import outputs_of

KINDS = ("qwen3_moe_fp8", "gpt_oss_mxfp4", "qwen3_moe_int4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of a kind, made once."""
    found: dict[str, Any] = {}

    def of(kind: str) -> Any:
        if kind not in found:
            found[kind] = tmp_path_factory.mktemp("kinds") / kind
            make(kind, found[kind])
        return found[kind]

    return of


@pytest.fixture
def by_conversion(monkeypatch):
    """No codec is known: Transformers' own conversions unpack."""
    monkeypatch.setattr(packed_parts, "_stacks_rows", lambda operations: False)


def loaded(folder: Any, **options: Any) -> Any:
    return finemoe.load(folder, options.pop("memory", 0.3), options.pop("policy", "on-demand"), **options)


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("slots", ["packed", "unpacked"])
@pytest.mark.parametrize("kind", KINDS)
def test_conversions_give_the_bits_of_codecs(folder, kind, slots, by_conversion, request):
    model, engine = loaded(folder(kind), slots=slots)
    with engine:
        found = outputs_of(model)
    request.getfixturevalue("monkeypatch").undo()
    model, engine = loaded(folder(kind))
    with engine:
        assert same(found, outputs_of(model))


@pytest.mark.parametrize("slots", ["packed", "unpacked"])
def test_an_interrupt_between_the_tensors_of_a_conversion(folder, slots, by_conversion, monkeypatch):
    model, engine = loaded(folder("qwen3_moe_fp8"), slots=slots, memory=0.6)
    transforms = type(engine.records.layouts[0].packing.matrices[0].codec.convert._group.transform)
    add_tensor = transforms.add_tensor
    with engine:
        expected = outputs_of(model)
        for number in (1, 2, 3, 4, 7, 10):
            engine.memories.reset()
            engine.parts.unpacker._room_of.clear()
            left = [number]

            def interrupted(self, *told, left=left):
                add_tensor(self, *told)
                left[0] -= 1
                if not left[0]:
                    raise KeyboardInterrupt

            monkeypatch.setattr(transforms, "add_tensor", interrupted)
            with pytest.raises(KeyboardInterrupt):
                outputs_of(model)
            monkeypatch.setattr(transforms, "add_tensor", add_tensor)
            assert same(outputs_of(model), expected)


@pytest.mark.parametrize("slots", ["packed", "unpacked"])
@pytest.mark.parametrize("half", [False, True])
def test_an_interrupt_while_an_expert_is_unpacked(folder, slots, half, monkeypatch):
    model, engine = loaded(folder("gpt_oss_mxfp4"), slots=slots, memory=0.6)
    unpack = Packing.unpack
    with engine:
        expected = outputs_of(model)
        for number in range(1, 8):
            left = [number]

            def interrupted(self, packed, weights, left=left):
                left[0] -= 1
                if left[0] or half:
                    unpack(self, packed, weights)
                if not left[0]:
                    for weight in weights.values():
                        weight.fill_(float("nan"))
                    raise KeyboardInterrupt

            monkeypatch.setattr(Packing, "unpack", interrupted)
            engine.parts.unpacker._room_of.clear()
            with pytest.raises(KeyboardInterrupt):
                outputs_of(model)
            monkeypatch.setattr(Packing, "unpack", unpack)
            assert same(outputs_of(model), expected)


@pytest.mark.parametrize("slots", ["packed", "unpacked"])
@pytest.mark.parametrize("kind", KINDS)
def test_inference_mode_and_then_none(folder, kind, slots):
    model, engine = loaded(folder(kind), slots=slots, dtype="float16" if "fp8" in kind else "auto")
    with engine:
        with torch.inference_mode():
            expected = outputs_of(model)
        with torch.no_grad():
            assert same(outputs_of(model), expected)


def test_an_engine_that_is_dropped_ends(folder, by_conversion):
    before = threading.active_count()
    for _ in range(3):
        model, engine = loaded(folder("qwen3_moe_fp8"))
        outputs_of(model)
        records = engine.records
        del model, engine
        gc.collect()
        for thread in threading.enumerate():
            if thread.name.startswith("finemoe"):
                thread.join(5)
    assert threading.active_count() <= before + 1
    assert not records._arena._blocks


@pytest.mark.parametrize("num_devices", [1, 2, 3])
@pytest.mark.parametrize("slots", ["packed", "unpacked"])
@pytest.mark.parametrize("num_bytes", [90_000, 200_000, 350_000])
def test_the_first_device_holds_slots_and_rooms_within_what_it_was_given(folder, num_bytes, slots, num_devices):
    model, engine = loaded(folder("qwen3_moe_fp8"), memory=num_bytes, slots=slots, devices=num_devices)
    with engine:
        pool, rooms = engine.memories.memories[0].pool, engine.parts.unpacker._rooms
        held = pool.num_slots * pool.slot_bytes + rooms.num_slots * rooms.slot_bytes
        assert held <= num_bytes
        assert engine.expert_memory_bytes == num_devices * pool.num_slots * pool.slot_bytes + rooms.num_slots * rooms.slot_bytes
        expected = outputs_of(model)
    model, engine = loaded(folder("qwen3_moe_fp8"), memory=1.0)
    with engine:
        assert same(outputs_of(model), expected)


def test_tensors_that_a_broken_off_conversion_left_are_not_taken_for_new_ones():
    class Transform:
        def __init__(self):
            self.collected_tensors = {"weight": [torch.zeros(1)]}

        def add_tensor(self, target, name, pattern, tensor):
            self.collected_tensors.setdefault(pattern, []).append(tensor)

        def convert(self, target, model, config):
            return {target: self.collected_tensors.pop("weight")}

    class Model:
        config = None

    group = Group("target", Transform(), {"weight": ["a"]})  # type: ignore[arg-type]
    assert converted(group, {"weight": [torch.ones(1)]}, Model())["target"].item() == 1
