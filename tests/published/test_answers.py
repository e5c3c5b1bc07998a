"""From a folder as published to an answer: the tokens of Transformers' eager model, through the checkpoint's chat template."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import finemoe
from finemoe.cli import app
from finemoe.errors import FinemoeError
from finemoe.runtime.loading import load_tokenizer
from tests.packed.checkpoints import dequantised
from tests.published.checkpoints import FAMILIES

pytestmark = pytest.mark.timeout(300)

QUESTION = "Why is the sea salty? 海 – déjà vu 🌊"
NUM_TOKENS = 24
MARKS = {  # what the question becomes, around its text
    "qwen15": ("<|im_start|>system\nAnswer in plain words.<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
    "qwen3": ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
    "gpt_oss": ("<|start|>user<|message|>", "<|end|><|start|>assistant"),
    "olmoe": ("|||IP_ADDRESS|||<|user|>\n", "\n<|assistant|>\n"),
    "deepseek": ("<｜begin▁of▁sentence｜>User: ", "\n\nAssistant:"),
}


def run(*arguments: str, text: str | None = None):
    return CliRunner().invoke(app, ["run", *arguments], input=text)


def reference(folder, family: str):
    """Transformers' own model."""
    if family == "gpt_oss":
        return dequantised(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", experts_implementation="eager").eval()


def encoded(tokenizer, **options):
    messages = [{"role": "user", "content": QUESTION}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt", **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_is_transformers_own(family, folders):
    """`load` gives the tokens of the eager model; `run` streams their text, tells it whole in JSON, and applies the template."""
    folder = folders[family]
    tokenizer = load_tokenizer(str(folder))
    inputs = encoded(tokenizer)
    before, after = MARKS[family]
    assert tokenizer.decode(inputs["input_ids"][0]).endswith(f"{before}{QUESTION}{after}")
    expected = reference(folder, family).generate(**inputs, max_new_tokens=NUM_TOKENS, do_sample=False)
    model, engine = finemoe.load(folder, 0.25, asynchronous=False)
    with engine:
        assert torch.equal(model.generate(**inputs, max_new_tokens=NUM_TOKENS, do_sample=False), expected)
    new = expected[0, inputs["input_ids"].shape[1] :]
    text = tokenizer.decode(new, skip_special_tokens=True)
    arguments = ["-m", str(folder), "-p", QUESTION, "--max-new-tokens", str(NUM_TOKENS)]
    streamed = run(*arguments)
    assert streamed.exit_code == 0, streamed.exception
    assert streamed.stdout.startswith(f"{text}\n{folder} at 0.25 expert memory\n")
    assert streamed.stderr == ""
    told = json.loads(run(*arguments, "--json").stdout)
    assert (told["text"], told["new_tokens"], told["interrupted"]) == (text, len(new), False)
    published = json.loads((folder / "generation_config.json").read_text())
    assert ("(published: --sample)" in streamed.stdout) == ("do_sample" in published)


def test_a_text_alone_is_continued_without_the_template(folders):
    tokenizer = load_tokenizer(str(folders["olmoe"]))
    inputs = tokenizer(QUESTION, return_tensors="pt")
    expected = reference(folders["olmoe"], "olmoe").generate(**inputs, max_new_tokens=8, do_sample=False)
    told = json.loads(run("-m", str(folders["olmoe"]), "-p", QUESTION, "--raw", "--max-new-tokens", "8", "--json").stdout)
    assert told["text"] == tokenizer.decode(expected[0], skip_special_tokens=True)


def test_a_system_message_and_options_reach_the_template(folders, monkeypatch):
    seen = []

    def encode(*arguments):
        seen.append(arguments)
        raise FinemoeError("that is enough")

    monkeypatch.setattr("finemoe.cli.turns.encode", encode)
    run("-m", str(folders["qwen3"]), "-p", "Hi", "--system", "Be brief.", "--template-option", "enable_thinking=false")
    ((tokenizer, (messages,), _, options),) = seen
    assert [message["role"] for message in messages] == ["system", "user"]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **options)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
    assert text.endswith("<think>\n\n</think>\n\n")


def test_every_published_end_ends_the_text(folders, tmp_path):
    """The second of the ids in generation_config.json, as much as the first."""
    folder = tmp_path / "ends"
    shutil.copytree(folders["qwen3"], folder)
    arguments = ["-m", str(folder), "-p", QUESTION, "--max-new-tokens", str(NUM_TOKENS), "--json"]
    tokens = encoded(load_tokenizer(str(folder)))
    sequence = reference(folder, "qwen3").generate(**tokens, max_new_tokens=NUM_TOKENS, do_sample=False)[0]
    new = sequence[tokens["input_ids"].shape[1] :].tolist()
    config = json.loads((folder / "generation_config.json").read_text())
    config["eos_token_id"] = [config["eos_token_id"][0], new[5]]
    (folder / "generation_config.json").write_text(json.dumps(config))
    told = json.loads(run(*arguments).stdout)
    assert (told["new_tokens"], told["ended_by"]) == (new.index(new[5]) + 1, "end of text")


def test_sampling_is_the_checkpoints_own_and_repeats_with_a_seed(folders):
    arguments = ["-m", str(folders["qwen15"]), "-p", QUESTION, "--max-new-tokens", str(NUM_TOKENS), "--json"]
    drawn = [json.loads(run(*arguments, "--sample", "--seed", seed).stdout) for seed in ("1", "1", "2")]
    assert drawn[0]["text"] == drawn[1]["text"] != drawn[2]["text"]
    assert drawn[0]["decoding"] == "sampled, temperature 0.7, top_p 0.8, top_k 20, repetition_penalty 1.05, seed 1"
    inputs = encoded(load_tokenizer(str(folders["qwen15"])))
    torch.manual_seed(1)
    sequence = reference(folders["qwen15"], "qwen15").generate(**inputs, max_new_tokens=NUM_TOKENS)
    text = load_tokenizer(str(folders["qwen15"])).decode(sequence[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert drawn[0]["text"] == text


@pytest.mark.parametrize("family", ["qwen3", "gpt_oss"])
def test_a_chat_keeps_its_cache_and_answers_as_without_one(family, folders):
    """What each turn would be from the whole conversation, computed anew. The second is longer than the windows of gpt-oss, whose
    cache can then not be cut back to the place where the template changes the last answer."""
    lines = ["Hello there", "Why is that so? " * 30, "And what then?"]
    done = run("-m", str(folders[family]), "--chat", "--max-new-tokens", "6", text="\n".join(lines))
    assert done.exit_code == 0, done.exception
    tokenizer, model = load_tokenizer(str(folders[family])), reference(folders[family], family)
    messages, answers = [], []
    for line in lines:
        messages.append({"role": "user", "content": line})
        inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        sequence = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        answers.append(tokenizer.decode(sequence[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
        messages.append({"role": "assistant", "content": answers[-1]})
    assert done.stdout.startswith("".join(f"{answer}\n" for answer in answers))
    assert "18 tokens in 3 answers" in done.stdout


def test_a_cached_snapshot_runs_by_its_name_offline(folders, tmp_path, monkeypatch):
    from huggingface_hub import constants

    repository = tmp_path / "models--Qwen--Qwen1.5-MoE-A2.7B-Chat"
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(folders["qwen15"], snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    arguments = ["-m", "Qwen/Qwen1.5-MoE-A2.7B-Chat", "-p", QUESTION, "--max-new-tokens", "6", "--json"]
    by_name = run(*arguments)
    assert by_name.exit_code == 0, by_name.exception
    by_folder = run("-m", str(snapshot), *arguments[2:])
    assert json.loads(by_name.stdout)["text"] == json.loads(by_folder.stdout)["text"]
    for number in (2, 5, 7):
        (snapshot / f"model-0000{number}-of-00008.safetensors").unlink()
    partly = run(*arguments)
    assert "is only partly in the Hugging Face cache, which lacks model-00002-of-00008.safetensors, " in str(partly.exception)
    assert "and 1 more" in str(partly.exception)
