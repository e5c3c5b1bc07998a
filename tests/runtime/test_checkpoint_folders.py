"""For every kind of checkpoint folder: the bits that `from_pretrained` gives, or one clear line where it gives none.

With FINEMOE_FAMILIES=all every kind is made for every family here, and loaded in every type; otherwise one family has all kinds,
and the others those that differ from family to family.
"""

import os
import re

import pytest

from tests.runtime import checkpoint_folders as folders

ALL = os.environ.get("FINEMOE_FAMILIES") == "all"
FIRST = "mixtral"
EVERYWHERE = (
    "shards",
    "lost_matrix_of_an_expert",
    "lost_row_of_fused_experts",
    "names_of_the_model_itself",
    "mixed_shards_untold",
)


def cases() -> list[tuple[str, str, str]]:
    if ALL:
        return [(kind, family, dtype) for family in folders.FAMILIES for kind in folders.KINDS for dtype in folders.DTYPES]
    first = [(kind, FIRST, "auto") for kind in folders.KINDS]
    return first + [(kind, family, "auto") for family in folders.FAMILIES if family != FIRST for kind in EVERYWHERE]


@pytest.mark.parametrize(("kind", "family", "dtype"), cases())
def test_equal_or_refused(kind, family, dtype, tmp_path):
    try:
        path = folders.make(kind, family, tmp_path / kind)
    except folders.NotHere as reason:
        pytest.skip(f"{family}: {reason}")
    assert folders.outcome(kind, family, path, dtype).verdict in ("equal", "refused")


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("lost_matrix_of_an_expert", r"lacks model\.layers\.1\.block_sparse_moe\.experts\.\d\.w\d\.weight .*model\.safetensors"),
        ("lost_matrix_of_all_experts", r"lacks all tensors .*w3\.weight"),
        ("narrower_matrix_of_an_expert", r"has shape .*block_sparse_moe\.experts\.7\.w3\.weight .*model\.safetensors"),
        ("extra_expert", r"has model.*experts\.8\.w.* 8 experts"),
        ("more_experts_than_saved", r"lacks .*experts\.8\.w"),
        ("fused_beside_apart", "has both .*gate_up_proj"),
        ("truncated_shard", r"model-00004-of-.*truncated"),
        ("damaged_index", r"check .*model\.safetensors\.index\.json"),
        ("link_to_no_file", r"model\.safetensors there is not a file, or is a broken link"),
        ("index_that_names_a_file_of_pickles", r"/pytorch_model-00001\.bin: finemoe.load reads safetensors files only; load the"),
        ("ties_in_words", r"Validation error for field 'tie_word_embeddings': TypeError: .*expected bool"),
        ("variant_alone", r"it contains model\.fp16\.safetensors, but neither"),
        ("bin", r"pytorch_model\.bin.*save_pretrained"),
        ("adapter_beside", r"adapter_config\.json.*merge_and_unload"),
        ("quantised_by_bitsandbytes", "quantised"),
        ("lost_head", r"lacks lm_head\.weight.*random"),
    ],
)
def test_a_refusal_names_tensor_file_and_remedy(kind, told, tmp_path):
    path = folders.make(kind, FIRST, tmp_path / kind)
    found = folders.outcome(kind, FIRST, path, "auto")
    assert found.verdict == "refused"
    assert re.search(told, found.message), found.message
