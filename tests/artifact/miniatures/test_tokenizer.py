"""The tokenizer loses nothing, pads on the left and survives saving."""

from transformers import AutoTokenizer

from finemoe.artifact.miniatures.corpus import conversations
from finemoe.artifact.miniatures.tokenizer import VOCABULARY, train_tokenizer


def test_round_trip_padding_and_saving(tmp_path):
    tokenizer = train_tokenizer(conversations(300, seed=0))
    assert len(tokenizer) <= VOCABULARY
    for text in ("User: How do I tune an old violin?\nAssistant:", "naïve — 東京 🙂\n\tend"):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    batch = loaded(["one", "one two three four"], padding=True)
    assert batch["input_ids"][0][0] == loaded.pad_token_id
    assert batch["input_ids"] == tokenizer(["one", "one two three four"], padding=True)["input_ids"]
