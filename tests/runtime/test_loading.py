"""`finemoe.load` against `from_pretrained`: the same weights, logits and tokens, whatever the checkpoint's layout."""

import json
import shutil
import threading
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

import finemoe
from finemoe.errors import EngineError, FinemoeError
from finemoe.models.layers import find_moe_layers
from finemoe.paths import MINIATURES
from finemoe.runtime.loading import load_model, load_tokenizer
from finemoe.runtime.pretrained import LoadingStep
from finemoe.runtime.shards import Shards
from tests.runtime import families
from tests.runtime.models import build, padded_batch
from tests.runtime.test_families import CHOSEN, UNSUPPORTED, assert_equal, outputs

GENERATION = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


@pytest.mark.parametrize("name", [name for name in CHOSEN if name not in UNSUPPORTED])
def test_every_family_loads_to_the_same_outputs(name, tmp_path):
    original = families.build(name)
    original.save_pretrained(tmp_path)
    reloaded = type(original).from_pretrained(tmp_path, experts_implementation="eager").eval()
    expected = outputs(reloaded, name)
    model, engine = finemoe.load(str(tmp_path), 0.4, "on-demand")
    with engine:
        assert type(model) is type(original)
        experts = {id(p) for layer in find_moe_layers(model) for p in layer.expert_parameters().values()}
        reference = dict(reloaded.named_parameters())
        for key, parameter in model.named_parameters():
            if id(parameter) not in experts:
                assert parameter.dtype == reference[key].dtype
                assert torch.equal(parameter, reference[key]), key
        assert_equal(outputs(model, name), expected, "loaded")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_sharded_checkpoint_with_a_disk_tier(tmp_path, dtype):
    build("mixtral", dtype).save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    with torch.no_grad():
        reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype, experts_implementation="eager")
        expected = reference.generate(**padded_batch(), **GENERATION)
        model, engine = finemoe.load(str(tmp_path), 0.25, host_memory="40KB")
        with engine:
            assert engine.records.disk_bytes > 3 * engine.records.host_bytes > 0
            assert torch.equal(model.generate(**padded_batch(), **GENERATION), expected)


def test_another_type_may_be_asked_for(tmp_path):
    build("qwen2_moe").save_pretrained(tmp_path)
    model, engine = finemoe.load(str(tmp_path), 0.5, dtype="bfloat16")
    with engine, torch.no_grad():
        reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, experts_implementation="eager")
        assert torch.equal(model(**padded_batch()).logits, reference(**padded_batch()).logits)


def test_a_closed_engine_leaves_a_model_that_says_so(tmp_path):
    build("mixtral").save_pretrained(tmp_path)
    model, engine = finemoe.load(str(tmp_path), 0.5)
    engine.close()
    with torch.no_grad(), pytest.raises(EngineError, match="the engine that held this model's experts is closed"):
        model(**padded_batch())


def test_bad_checkpoints_are_named(tmp_path):
    with pytest.raises(FinemoeError, match="unknown model 'nowhere'"):
        finemoe.load("nowhere", 0.5)
    with pytest.raises(FinemoeError, match="no usable configuration"):
        finemoe.load(str(tmp_path), 0.5)
    build("mixtral").save_pretrained(tmp_path, max_shard_size="60KB")
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    lost = next(key for key in content["weight_map"] if "q_proj" in key)
    file = tmp_path / content["weight_map"][lost]
    tensors = load_file(file)
    save_file({key: value for key, value in tensors.items() if key != lost} | {"other": torch.ones(1)}, file)
    with pytest.raises(FinemoeError, match=r"lacks .*q_proj"):
        finemoe.load(str(tmp_path), 0.5)
    save_file(tensors, file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(FinemoeError, match="missing or truncated"):
        finemoe.load(str(tmp_path), 0.5)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(FinemoeError, match="neither"):
        finemoe.load(str(tmp_path), 0.5)
    with pytest.raises(FinemoeError, match="unknown dtype"):
        finemoe.load(str(tmp_path), 0.5, dtype="float7")


@pytest.mark.parametrize("is_equal", [True, False])
def test_weights_that_the_configuration_ties_and_the_checkpoint_holds_apart(tmp_path, is_equal):
    model = build("mixtral")
    model.config.tie_word_embeddings = True
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].clone()
    tensors["lm_head.weight"] = head if is_equal else head + 0.1
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="eager").eval()
    loaded, engine = finemoe.load(str(tmp_path), 0.5)
    with engine, torch.no_grad():
        assert torch.equal(loaded(**padded_batch()).logits, reference(**padded_batch()).logits)


@pytest.mark.parametrize("fault", ["lacks", "has shape"])
def test_an_expert_weight_that_is_missing_or_of_another_shape(tmp_path, fault):
    build("mixtral").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name in [name for name in tensors if "layers.1." in name and ".w2." in name]:
        tensors[name] = tensors.pop(name)[..., :-1].contiguous()
        if fault == "lacks":
            del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FinemoeError, match=rf"checkpoint {fault}.*layers\.1\..*down_proj"):
        finemoe.load(str(tmp_path), 0.5)


def test_a_model_that_never_held_its_experts_cannot_be_saved_when_its_engine_is_closed(tmp_path):
    """Its experts' parameters are NaN: a checkpoint of them would be lost work, and over the original one the original, too."""
    build("mixtral").save_pretrained(tmp_path)
    model, engine = finemoe.load(str(tmp_path), 0.5)
    for is_closed in (False, True):
        if is_closed:
            engine.close()
        for refused in (model.state_dict, lambda: model.save_pretrained(tmp_path), lambda: deepcopy(model), model.half):
            with pytest.raises(FinemoeError, match=r"copy the checkpoint's folder|load it again"):
                refused()
    with pytest.raises(FinemoeError, match="experts were freed with the engine"):
        finemoe.offload(model, 0.5)
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "model.safetensors").values())


def test_a_hub_id_is_read_where_from_pretrained_would_read_it(tmp_path, monkeypatch):
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--somebody--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    build("mixtral").save_pretrained(repository / "snapshots" / revision, max_shard_size="60KB")
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    reference = AutoModelForCausalLM.from_pretrained("somebody/tiny", experts_implementation="eager")
    model, engine = finemoe.load("somebody/tiny", 0.5)
    with engine, torch.no_grad():
        assert torch.equal(model(**padded_batch()).logits, reference(**padded_batch()).logits)
    with pytest.raises(FinemoeError, match="somebody/else"):
        finemoe.load("somebody/else", 0.5)


def test_a_damaged_tokenizer_is_one_line(tmp_path):
    shutil.copytree(MINIATURES / "mixtral-mini", tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(FinemoeError, match=rf"tokenizer .*{tmp_path}"):
        load_tokenizer(str(tmp_path))


def test_another_thread_may_load_as_it_likes_meanwhile(tmp_path, monkeypatch):
    """Transformers' loading step is replaced for a while, for the calling thread alone."""
    build("mixtral").save_pretrained(tmp_path)
    untouched = PreTrainedModel._load_pretrained_model
    found = []

    def read_in_a_thread(*arguments):
        assert PreTrainedModel._load_pretrained_model is not untouched
        thread = threading.Thread(target=lambda: found.append(AutoModelForCausalLM.from_pretrained(tmp_path)))
        thread.start()
        thread.join(60)
        return read_names(*arguments)

    read_names = LoadingStep._read_names
    monkeypatch.setattr(LoadingStep, "_read_names", read_in_a_thread)
    finemoe.load(tmp_path, 0.5)[1].close()
    assert PreTrainedModel._load_pretrained_model is untouched
    assert not any(parameter.is_meta for parameter in found[0].parameters())


def test_no_expert_is_read_before_its_turn(tmp_path, monkeypatch):
    """A checkpoint's experts are named and checked without their files' pages: they may be many times the memory."""
    build("mixtral").save_pretrained(tmp_path)
    read = []
    monkeypatch.setattr(Shards, "read", lambda self, name: read.append(name))
    with pytest.raises(FinemoeError, match="one expert takes"):
        finemoe.load(tmp_path, "1B")
    assert read == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "finemo"}, "unknown policy"),
        ({"eviction": "mru"}, "unknown eviction"),
        ({"expert_memory": "1B"}, "one expert takes"),
        ({"link": "24GB/s"}, "unknown link"),
        ({"prefetch_distance": 0}, "prefetch_distance is 0"),
        ({"foo": 1}, "no option 'foo'"),
        ({"dtype": "int32"}, "unknown dtype"),
    ],
)
def test_what_cannot_be_is_said_before_any_weight_is_read(options, message, tmp_path, monkeypatch):
    build("mixtral").save_pretrained(tmp_path)
    monkeypatch.setattr("finemoe.runtime.skeleton.Skeleton.read_experts", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(FinemoeError, match=message):
        finemoe.load(tmp_path, **({"expert_memory": 0.5} | options))


@pytest.mark.parametrize(("name", "message"), [("", "unknown model ''"), ("~/model", "~/model.*: Repo id must use")])
@pytest.mark.parametrize("load", [lambda name: finemoe.load(name, 0.5), load_model], ids=["load", "load_model"])
def test_what_names_no_model_is_one_line(name, message, load):
    with pytest.raises(FinemoeError, match=message) as caught:
        load(name)
    assert "\n" not in str(caught.value)


def test_a_file_is_no_model(tmp_path):
    folder = tmp_path / "model"
    build("mixtral").save_pretrained(folder)
    for load in (lambda name: finemoe.load(name, 0.5), load_model, load_tokenizer):
        with pytest.raises(FinemoeError, match="is a file; give its folder"):
            load(str(folder / "config.json"))
