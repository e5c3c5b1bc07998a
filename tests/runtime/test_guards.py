"""What cannot work is refused with the reason and the remedy, before and while a model is offloaded."""

import copy
import pickle
import threading

import pytest
import torch

import finemoe
from finemoe.errors import EngineError, FinemoeError
from tests.runtime.models import build, padded_batch


@pytest.fixture
def offloaded():
    model = build("mixtral")
    with finemoe.offload(model, 0.5):
        yield model
    with torch.no_grad():
        assert torch.isfinite(model(**padded_batch()).logits).all()


@pytest.mark.parametrize(
    "deed",
    [
        lambda model, path: model.save_pretrained(path),
        lambda model, path: model.state_dict(),
        lambda model, path: model.model.layers[0].state_dict(),
        lambda model, path: torch.save(model, path / "model.pt"),
        lambda model, path: model.load_state_dict({}, strict=False),
        lambda model, path: copy.deepcopy(model),
        lambda model, path: pickle.dumps(model),
        lambda model, path: model.half(),
        lambda model, path: model.to(torch.bfloat16),
        lambda model, path: model.model.double(),
        lambda model, path: model.to("meta"),
    ],
)
def test_refused_while_attached(offloaded, deed, tmp_path):
    with pytest.raises(FinemoeError, match=r"call engine\.close\(\) first"):
        deed(offloaded, tmp_path)


def test_what_changes_nothing_passes(offloaded):
    assert offloaded.to("cpu") is offloaded
    assert offloaded.float() is offloaded
    assert offloaded.eval() is offloaded


def test_all_of_it_works_again_after_close(tmp_path):
    model = build("mixtral")
    finemoe.offload(model, 0.5).close()
    model.save_pretrained(tmp_path)
    copy.deepcopy(model)
    pickle.dumps(model)
    assert model.half().dtype == torch.float16


def test_models_that_another_library_has_taken_apart():
    quantised = build("mixtral")
    quantised.config.quantization_config = {"quant_method": "fp8"}
    with pytest.raises(FinemoeError, match=r"quantised.*load it in bf16"):
        finemoe.offload(quantised, 0.5)
    adapted = build("mixtral")
    adapted.peft_config = {}
    with pytest.raises(FinemoeError, match=r"PEFT.*merge"):
        finemoe.offload(adapted, 0.5)
    with pytest.raises(FinemoeError, match=r"torch\.compile"):
        finemoe.offload(torch.compile(build("mixtral")), 0.5)
    with torch.device("meta"):
        empty = type(adapted)(adapted.config)
    with pytest.raises(FinemoeError, match=r"meta device.*finemoe\.load"):
        finemoe.offload(empty, 0.5)


def test_a_model_that_accelerate_dispatched():
    from accelerate import cpu_offload

    model = build("mixtral")
    cpu_offload(model, execution_device="cpu")
    with pytest.raises(FinemoeError, match="Accelerate has dispatched"):
        finemoe.offload(model, 0.5)


def test_another_thread_in_the_same_forward_is_refused_and_harms_nobody():
    model, batch = build("mixtral"), padded_batch()
    entered, go_on, found = threading.Event(), threading.Event(), {}
    with torch.no_grad():
        expected = model(**batch).logits

    def pause(*_):
        entered.set()
        go_on.wait(10)

    with finemoe.offload(model, 0.3):
        handle = model.model.layers[2].register_forward_pre_hook(pause)

        def first():
            with torch.no_grad():
                found["first"] = model(**batch).logits

        thread = threading.Thread(target=first)
        thread.start()
        entered.wait(10)
        with torch.no_grad(), pytest.raises(EngineError, match="one thread at a time"):
            model(**batch)
        go_on.set()
        thread.join(10)
        handle.remove()
        assert torch.equal(found["first"], expected)
        with torch.no_grad():
            assert torch.equal(model(**batch).logits, expected)


def test_threads_that_take_turns_are_served():
    model, batch = build("mixtral"), padded_batch()
    found = []
    with torch.no_grad():
        expected = model(**batch).logits

    def serve():
        with torch.no_grad():
            found.append(model(**batch).logits)

    with finemoe.offload(model, 0.3):
        for _ in range(3):
            thread = threading.Thread(target=serve)
            thread.start()
            thread.join()
    assert all(torch.equal(logits, expected) for logits in found)


def test_a_forward_that_an_exception_left_does_not_block_other_threads():
    model, batch = build("mixtral"), padded_batch()

    def stop(*_):
        raise KeyboardInterrupt

    with finemoe.offload(model, 0.3), torch.no_grad():
        handle = model.model.layers[2].register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            model(**batch)
        handle.remove()
        found = []

        def serve():
            with torch.no_grad():
                found.append(model(**batch).logits)

        thread = threading.Thread(target=serve)
        thread.start()
        thread.join(10)
        assert len(found) == 1


def test_a_conversion_that_would_change_any_weight_is_refused():
    """Also where the experts are of that type already: the router is not."""
    model = build("mixtral").to(torch.bfloat16)
    for layer in model.model.layers:
        layer.mlp.gate.float()
    with finemoe.offload(model, 0.5, "on-demand"):
        with pytest.raises(FinemoeError, match="type and device are fixed"):
            model.to(torch.bfloat16)
        model.to("cpu")


def test_loading_is_refused_before_the_first_weight():
    model, other = build("mixtral"), build("mixtral")
    for parameter in other.parameters():
        parameter.data += 1
    with finemoe.offload(model, 0.5, "on-demand"):
        before = model.model.embed_tokens.weight.clone()
        with pytest.raises(FinemoeError, match="cannot be loaded into it"):
            model.load_state_dict(other.state_dict())
        assert torch.equal(model.model.embed_tokens.weight, before)


def test_offload_wants_a_model():
    with pytest.raises(FinemoeError, match=r"not str; finemoe\.load takes a name"):
        finemoe.offload("mixtral-mini", 0.5)


def test_weights_in_another_order_than_their_shape_are_refused():
    model = build("mixtral")
    parameter = model.model.layers[1].mlp.experts.down_proj
    parameter.data = parameter.data.transpose(1, 2).contiguous().transpose(1, 2)
    with pytest.raises(FinemoeError, match=r"layers\.1\.mlp\.experts\.down_proj is not contiguous"):
        finemoe.offload(model, 0.5)
