"""A checkpoint as published, with its own chat template and generation_config, behind the server."""

import openai
import pytest

import finemoe
from finemoe.runtime.loading import load_tokenizer
from finemoe.serving.service import Service
from tests.published.checkpoints import write_checkpoint
from tests.serving.served import CHAT, running

NUM_NEW = 12


@pytest.mark.parametrize("options", [{}, {"enable_thinking": False}], ids=["thinks", "does not"])
def test_its_own_template_is_applied(options, published):
    model, tokenizer, client = published
    inputs = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=True, return_tensors="pt", **options)
    output = model.generate(**inputs, max_new_tokens=NUM_NEW, do_sample=False)
    expected = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    asked = {"model": "qwen3", "messages": CHAT, "max_tokens": NUM_NEW, "temperature": 0}
    extra = {"chat_template_kwargs": options}
    answer = client.chat.completions.create(**asked, extra_body=extra)
    chunks = client.chat.completions.create(**asked, extra_body=extra, stream=True)
    assert answer.usage.prompt_tokens == inputs["input_ids"].shape[1]
    assert answer.choices[0].message.content == expected.strip()
    # A stream leaves out what the last token leaves incomplete of a character, and a whole answer the white space at its ends.
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert streamed.rstrip("\ufffd").strip() == expected.rstrip("\ufffd").strip()


def test_without_a_temperature_it_samples_as_its_checkpoint_says(published):
    model, _, client = published
    assert model.generation_config.do_sample
    asked = {"model": "qwen3", "messages": CHAT, "max_tokens": NUM_NEW}
    drawn = [client.chat.completions.create(**asked, seed=seed).choices[0].message.content for seed in (1, 2, 1)]
    assert drawn[0] == drawn[2] != drawn[1]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "qwen3"
    write_checkpoint("qwen3", folder, 4)
    tokenizer = load_tokenizer(str(folder))
    model, engine = finemoe.load(folder, 0.25)
    with engine, Service(model, engine, tokenizer, "qwen3") as service, running(service) as port:
        assert service.has_own_template
        with openai.OpenAI(base_url=f"http://localhost:{port}/v1", api_key="any", max_retries=0) as client:
            yield model, tokenizer, client
