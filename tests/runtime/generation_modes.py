"""Ways of generating with Transformers, each a function of a model that returns everything it gives as tensors."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CompileConfig,
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from tests.runtime.models import half_right

NUM_NEW = 8
FIRST, LAST = 40, 88  # tokens that mean nothing special to any family
ONE = torch.tensor([[51, 52, 53, 51, 52, 53, 51, 52, 53, 51, 52]])  # prompt lookup finds drafts in it
PADDED = torch.tensor([[0, 0, 0, 60, 61], [0, 70, 71, 72, 73], [80, 81, 82, 83, 84]])

Run = Callable[[PreTrainedModel, PreTrainedModel | None], Sequence[torch.Tensor]]  # (model, its assistant)


@dataclass(frozen=True)
class Mode:
    """A mode of generation: how a reader calls it, a function that does, and what makes the assistant that it calls, if any."""

    call: str
    run: Run
    assistant_of: Callable[[PreTrainedModel], PreTrainedModel] | None = None


def generate(inputs: torch.Tensor = ONE, **options: Any) -> Run:
    """`generate` with these options, and everything that it returns for each step."""
    returned = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    fixed = {"max_new_tokens": NUM_NEW, "min_new_tokens": NUM_NEW, "pad_token_id": 0, "do_sample": False}

    def run(model: PreTrainedModel, assistant: PreTrainedModel | None) -> list[torch.Tensor]:
        given = options if assistant is None else options | {"assistant_model": assistant}
        torch.manual_seed(0)
        output = model.generate(inputs, attention_mask=(inputs != 0).long(), **returned | fixed | given)
        return [output.sequences, *output.scores, *output.logits] if hasattr(output, "sequences") else [output]

    return run


def with_own_code(model: PreTrainedModel, _: PreTrainedModel | None) -> list[torch.Tensor]:
    """A loop over `forward` with a cache that the caller keeps."""
    tokens, cache, logits = ONE, DynamicCache(config=model.config), []
    with torch.inference_mode():
        for _step in range(NUM_NEW):
            fed = tokens[:, cache.get_seq_length() :]
            logits.append(model(fed, past_key_values=cache).logits[:, -1])
            tokens = torch.cat([tokens, logits[-1].argmax(-1, keepdim=True)], 1)
    return [tokens, *logits]


def chat(model: PreTrainedModel, assistant: PreTrainedModel | None) -> list[torch.Tensor]:
    """Three turns over one cache."""
    cache, tokens, outputs = DynamicCache(config=model.config), ONE, list[torch.Tensor]()
    for turn in range(3):
        outputs += generate(tokens, past_key_values=cache)(model, assistant)
        tokens = torch.cat([outputs[-1 - 2 * NUM_NEW], PADDED[2:] - turn], 1)
    return outputs


def shared_prefix(model: PreTrainedModel, assistant: PreTrainedModel | None) -> list[torch.Tensor]:
    """Copies of a cache that holds the beginning of several prompts."""
    with torch.no_grad():
        prefix = model(ONE, use_cache=True).past_key_values
    prompts = [torch.cat([ONE, row[None]], 1) for row in PADDED[2:]]
    return [one for prompt in prompts for one in generate(prompt, past_key_values=copy.deepcopy(prefix))(model, assistant)]


def continuous(model: PreTrainedModel, _: PreTrainedModel | None) -> list[torch.Tensor]:
    """Requests that come and go in one batch."""
    config = GenerationConfig(max_new_tokens=NUM_NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64)
    done = model.generate_batch(
        inputs=[ONE[0].tolist(), PADDED[2].tolist()], generation_config=config, continuous_batching_config=batching
    )
    return [torch.tensor(done[name].generated_tokens) for name in sorted(done)]


def embedded(model: PreTrainedModel, _: PreTrainedModel | None) -> list[torch.Tensor]:
    """A prompt that the caller embedded."""
    vectors = model.get_input_embeddings()(ONE).detach()
    return [model.generate(inputs_embeds=vectors, max_new_tokens=NUM_NEW, do_sample=False, pad_token_id=0)]


def characters(first: int) -> PreTrainedTokenizerFast:
    """A tokenizer of single characters; tokenizers with another `first` number them otherwise."""
    letters = [chr(35 + number) for number in range(96 - 8)]
    vocabulary = {"<pad>": 0, **{letter: 1 + (number + first) % len(letters) for number, letter in enumerate(letters)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


class Ban(LogitsProcessor):
    """Bans a token."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_fill(1, torch.tensor([60]), -torch.inf)


class Tenth(StoppingCriteria):
    """Ends a sequence at a length."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= ONE.shape[1] + 5)


class Pieces(BaseStreamer):
    """Collects what is streamed."""

    def __init__(self) -> None:
        self.pieces: list[torch.Tensor] = []

    def put(self, value: torch.Tensor) -> None:
        self.pieces.append(value.reshape(-1))

    def end(self) -> None:
        self.pieces.append(torch.tensor([-1]))


def streamed(model: PreTrainedModel, assistant: PreTrainedModel | None) -> list[torch.Tensor]:
    """Tokens as a streamer receives them."""
    pieces = Pieces()
    generate(streamer=pieces)(model, assistant)
    return pieces.pieces


def greedy_by_hand(model: PreTrainedModel, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
    """A decoding method of the caller's own."""
    for _step in range(3):
        input_ids = torch.cat([input_ids, model(input_ids).logits[:, -1:].argmax(-1)], 1)
    return input_ids


def with_fewer_tokens(model: PreTrainedModel) -> PreTrainedModel:
    """An assistant with a vocabulary of its own: Transformers takes vocabularies of the same size for the same."""
    assistant = half_right(model)
    assistant.resize_token_embeddings(95)
    return assistant


def compiled() -> CompileConfig:
    """What makes `generate` compile the forward as on CUDA."""
    config = CompileConfig(backend="eager", mode=None)
    config._compile_all_devices = True
    return config


MODES: dict[str, Mode] = {
    "greedy": Mode("do_sample=False", generate()),
    "padded batch": Mode("padding on the left", generate(PADDED)),
    "sampling": Mode("do_sample=True", generate(PADDED, do_sample=True, top_k=20)),
    "several sequences": Mode("num_return_sequences=3", generate(do_sample=True, num_return_sequences=3)),
    "beam search": Mode("num_beams=3", generate(PADDED, num_beams=3)),
    "returned beams": Mode("num_beams=4, num_return_sequences=3", generate(num_beams=4, num_return_sequences=3)),
    "sampled beams": Mode("num_beams=3, do_sample=True", generate(num_beams=3, do_sample=True)),
    "guidance": Mode("guidance_scale=1.5", generate(guidance_scale=1.5)),
    "penalties": Mode("repetition_penalty=1.7, ...", generate(PADDED, repetition_penalty=1.7, no_repeat_ngram_size=2)),
    "logits processor": Mode("logits_processor=[...]", generate(logits_processor=LogitsProcessorList([Ban()]))),
    "stopping criteria": Mode(
        "stopping_criteria=[...]", generate(min_new_tokens=1, stopping_criteria=StoppingCriteriaList([Tenth()]))
    ),
    "streaming": Mode("streamer=...", streamed),
    "prompt lookup": Mode("prompt_lookup_num_tokens=3", generate(prompt_lookup_num_tokens=3)),
    "assisted decoding": Mode("assistant_model=...", generate(), half_right),
    "assisted sampling": Mode("assistant_model=..., do_sample=True", generate(do_sample=True), half_right),
    "assistant with another tokenizer": Mode(
        "assistant_model=..., assistant_tokenizer=...",
        generate(tokenizer=characters(0), assistant_tokenizer=characters(7)),
        with_fewer_tokens,
    ),
    "early exit": Mode("assistant_early_exit=2", generate(assistant_early_exit=2)),
    "no cache": Mode("use_cache=False", generate(use_cache=False)),
    "static cache": Mode('cache_implementation="static"', generate(PADDED, cache_implementation="static")),
    "static cache, compiled": Mode(
        'cache_implementation="static" on CUDA',
        generate(PADDED, cache_implementation="static", compile_config=compiled()),
    ),
    "offloaded cache": Mode('cache_implementation="offloaded"', generate(cache_implementation="offloaded")),
    "quantized cache": Mode('cache_implementation="quantized"', generate(cache_implementation="quantized")),
    "prompt in pieces": Mode("prefill_chunk_size=4", generate(prefill_chunk_size=4)),
    "chat over a kept cache": Mode("past_key_values=cache", chat),
    "prompts with a shared beginning": Mode("past_key_values=copy.deepcopy(prefix)", shared_prefix),
    "embedded prompt": Mode("inputs_embeds=...", embedded),
    "decoding of your own": Mode("custom_generate=function", generate(custom_generate=greedy_by_hand)),
    "your own loop": Mode("model(tokens, past_key_values=cache)", with_own_code),
    "continuous batching": Mode("model.generate_batch(...)", continuous),
    "contrastive search": Mode("penalty_alpha=0.6, top_k=4", generate(penalty_alpha=0.6, top_k=4)),
    "diverse beams": Mode("num_beams=4, num_beam_groups=2, ...", generate(num_beams=4, num_beam_groups=2, diversity_penalty=0.5)),
    "DoLa": Mode('dola_layers="low"', generate(dola_layers="low")),
}
