"""Byte-level tokenizers in the files that the published checkpoints have, trained on a few sentences of our own."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

_SENTENCES = (
    "The harbour master counts the boats every morning and writes the number in a book.",
    "Why is the sea salty? Rivers carry salt from the rocks, and only the water evaporates.",
    "Ein Käfer überquert die Straße, während die Bäckerin Brötchen verkauft.",
    "Une élève écrit « déjà vu » à l'encre bleue, puis referme le cahier.",
    "今日は天気がいいので、海まで歩きました。",
    "Сегодня мы читаем книгу о море и кораблях.",
    "Numbers: 1, 2, 3, 10, 128 and 2,880; signs: + - * / = ( ) [ ] { } < >.",
    "def area(width, height):\n    return width * height\n",
    "🙂 👍 🌊 a smile, a thumb and a wave.",
)
_NUM_WORDS = 400  # 256 bytes and the pairs learned


@cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=_NUM_WORDS, initial_alphabet=sorted(alphabet), show_progress=False)
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    return tokenizer.to_str()


def write_tokenizer(
    folder: Path, special: list[str], plain: list[str], config: dict[str, Any], nfc: bool = False
) -> dict[str, int]:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json.

    Args:
        special: special tokens, in the order of their ids. plain: added tokens that are text, such as <think>.
        config: the other fields of tokenizer_config.json. nfc: whether texts are normalised.
    Returns:
        The ids of the added tokens.
    """
    tokenizer = Tokenizer.from_str(_trained())
    tokenizer.normalizer = normalizers.NFC() if nfc else None
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(plain)
    ids = {token: tokenizer.token_to_id(token) for token in (*special, *plain)}
    tokenizer.save(str(folder / "tokenizer.json"))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    added = {str(ids[token]): {"content": token, **flags, "special": token in special} for token in (*special, *plain)}
    _write(folder / "tokenizer_config.json", {"added_tokens_decoder": added, **config})
    named = {name: config[name] for name in ("bos_token", "eos_token", "pad_token") if config.get(name)}
    _write(folder / "special_tokens_map.json", named)
    return ids


def _write(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False), encoding="utf-8")
