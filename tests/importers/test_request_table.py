"""The request-level table: whole counts out of rounded shares, what a group shares taken off, and refusals that name the row."""

import gzip
import json

import numpy as np
import pytest

from finemoe.errors import FinemoeError
from finemoe.importers.request_table import RequestTable, load_mmlu, sample_folder

GROUPS = ("law", "law", "art", "law", "art")
TOKENS = np.array([40, 55, 31, 62, 47])


def make_counts(seed: int = 0) -> np.ndarray:
    """[R, L, J] counts of 5 requests, 3 layers, 4 experts, K = 2; those of a group begin with the same 10 tokens."""
    rng = np.random.default_rng(seed)
    shared = {group: draw(rng, 10) for group in dict.fromkeys(GROUPS)}
    return np.stack([shared[group] + draw(rng, tokens - 10) for group, tokens in zip(GROUPS, TOKENS, strict=True)])


def draw(rng, tokens: int) -> np.ndarray:
    chosen = np.argsort(rng.random((tokens, 3, 4)), axis=-1)[..., :2]
    return (chosen[..., None] == np.arange(4)).sum(axis=(0, 2)).astype(float)


def make_table(counts: np.ndarray, **changes) -> RequestTable:
    fractions = (counts / (2 * TOKENS[:, None, None])).astype(np.float16).astype(np.float32)
    values = {"fractions": fractions, "num_tokens": TOKENS, "top_k": 2, "groups": GROUPS, "texts": tuple("abcde")}
    return RequestTable(**values | changes)


def test_counts_survive_half_precision():
    np.testing.assert_array_equal(make_table(make_counts()).counts, make_counts())


def test_the_smallest_count_of_each_group_is_taken_off():
    counts = make_counts()
    found = make_table(counts).counts_beyond_shared()
    for row, group in enumerate(GROUPS):
        least = np.min([one for one, other in zip(counts, GROUPS, strict=True) if other == group], axis=0)
        np.testing.assert_array_equal(found[row], counts[row] - least)
    assert (found.sum(axis=-1) <= 2 * (TOKENS[:, None] - 10)).all()


def test_groups_keep_their_order_and_can_be_left_out():
    table = make_table(make_counts())
    assert {name: rows.tolist() for name, rows in table.rows_of_groups().items()} == {"law": [0, 1, 3], "art": [2, 4]}
    rest = table.without(("law",))
    assert (rest.groups, rest.texts, rest.num_tokens.tolist()) == (("art", "art"), ("c", "e"), [31, 47])
    np.testing.assert_array_equal(rest.fractions, table.fractions[[2, 4]])


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "NaN in row 3"), (-0.1, "negative in row 3"), (0.9, "do not sum to 1 over the experts in row 3")],
)
def test_bad_fractions_name_their_row(value, message):
    fractions = make_table(make_counts()).fractions
    fractions[3, 1, 2] = value
    with pytest.raises(FinemoeError, match=message):
        make_table(make_counts(), fractions=fractions)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": GROUPS[:4]}, "groups has 4 rows, fractions 5"),
        ({"num_tokens": TOKENS - 31}, "num_tokens is below 1 in row 2"),
        ({"top_k": 5}, "top_k is 5, with 4 experts"),
        ({"fractions": np.ones((5, 3))}, r"must be \[R, L, J\], not \[5, 3\]"),
    ],
)
def test_mismatched_parts_are_refused(changes, message):
    with pytest.raises(FinemoeError, match=message):
        make_table(make_counts(), **changes)


def write_sample(folder, rows: list[dict], **arrays) -> tuple:
    table = make_table(make_counts())
    np.savez(folder / "a.npz", **{"frac": table.fractions.astype(np.float16), "n_tokens": TOKENS} | arrays)
    with gzip.open(folder / "q.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return folder / "a.npz", folder / "q.jsonl.gz"


def questions() -> list[dict]:
    return [{"subject": group, "question": f"Why {n}?\u2028", "choices": ["x", "y"]} for n, group in enumerate(GROUPS)]


def test_files_of_the_publishers_shape(tmp_path):
    table = load_mmlu(*write_sample(tmp_path, questions()))
    assert (table.groups, table.texts[1], table.top_k) == (GROUPS, "Why 1?\u2028\nA. x\nB. y", 2)
    np.testing.assert_array_equal(table.counts, make_counts())


def test_unusable_files_are_named(tmp_path):
    arrays, lines = write_sample(tmp_path, questions())
    with pytest.raises(FinemoeError, match=r"none\.npz: not a request-level table"):
        load_mmlu(tmp_path / "none.npz", lines)
    with pytest.raises(FinemoeError, match=r"none\.gz: not gzipped JSON lines"):
        load_mmlu(arrays, tmp_path / "none.gz")
    lines.write_bytes(lines.read_bytes()[:-9])
    with pytest.raises(FinemoeError, match=r"q\.jsonl\.gz: not gzipped JSON lines"):
        load_mmlu(arrays, lines)
    with pytest.raises(FinemoeError, match="row 1 lacks subject, question or choices"):
        load_mmlu(*write_sample(tmp_path, [questions()[0], {"subject": "law"}]))
    with pytest.raises(FinemoeError, match="groups has 4 rows, fractions 5"):
        load_mmlu(*write_sample(tmp_path, questions()[:4]))
    (tmp_path / "b.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(FinemoeError, match=r"b\.npz: not a request-level table"):
        load_mmlu(tmp_path / "b.npz", lines)


def test_the_development_sample(shared_data):
    if not sample_folder().is_dir():
        pytest.skip("the Mixtral routing is not among the external data")
    table = load_mmlu(sample_folder() / "mmlu_request_level.npz", sample_folder() / "mmlu_questions.jsonl.gz")
    assert table.fractions.shape == (14042, 32, 8)
    assert len(table.rows_of_groups()) == 57
    sums = table.counts.sum(axis=-1)
    np.testing.assert_array_equal(sums, np.broadcast_to(2 * table.num_tokens[:, None], sums.shape))  # the rounding was exact
