"""Megatron's router replay and FLAME-MoE's actives, written by torch.save after their published readers and guides."""

import numpy as np
import pytest
import torch

from finemoe.errors import FinemoeError
from finemoe.importers import Options, import_trace, read_trace
from tests.importers.written import expected, make


def replay(path, ids):
    """`RouterReplay.get_recorded_data()`: a list of one int64 tensor [tokens, K] a layer."""
    torch.save([torch.from_numpy(ids[:, layer].copy()) for layer in range(ids.shape[1])], path)
    return path


def actives(folder, one, first_layer=2):
    """STEP/LAYER/NAME.pt: (scores, experts) of each layer, by Megatron's numbers; layer 1 is dense."""
    for number, ids, weights, _ in one.requests():
        for layer in range(ids.shape[1]):
            place = folder / str(layer + first_layer)
            place.mkdir(parents=True, exist_ok=True)
            torch.save(
                (torch.from_numpy(weights[:, layer].copy()), torch.from_numpy(ids[:, layer].copy())), place / f"b{number}.pt"
            )
    return folder


def test_megatron(tmp_path):
    one = make()
    found = import_trace(replay(tmp_path / "replay.pt", one.ids), None, Options(num_experts=7))
    assert (found.format, found.trace.has_weights, found.trace.num_requests) == ("megatron", False, 1)
    np.testing.assert_array_equal(found.trace.expert_ids, np.sort(one.ids, axis=-1))
    assert any("the micro-batch is read as one request" in note for note in found.notes)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            [torch.zeros(4, 2, dtype=torch.int64), torch.zeros(3, 2, dtype=torch.int64)],
            r"layer 1 is of shape \[3, 2\], but layer 0",
        ),
        (
            [torch.tensor([[1, -1]])],
            "among tokens 0 to 0: token 0, layer 0: expert -1 means that this token's routing was not recor",
        ),
        ([torch.zeros(4, 2, dtype=torch.int64), torch.zeros(4, 2)], "its tensors are not expert ids; expected one"),
        ([torch.zeros(4, dtype=torch.int64)], r"layer 0 is of shape \[4\]; expected \[tokens, experts\] of one sequence"),
        ([torch.ones(4, 2, dtype=torch.int64)], "expert_ids name expert 1 twice in row 0, layer 0"),
    ],
)
def test_megatrons_that_are_none(tmp_path, tensors, message):
    torch.save(tensors, tmp_path / "a.pt")
    with pytest.raises(FinemoeError, match=rf"a.pt: {message}"):
        read_trace(tmp_path / "a.pt")


def test_flame_moe(tmp_path):
    one = make()
    folder = actives(tmp_path / "11029", one, first_layer=9)  # 9, 10, 11 are sorted as numbers
    found = import_trace(folder, None, Options(num_experts=7))
    assert (found.format, found.trace.request_ids, found.trace.has_weights) == ("flame-moe", ("b0", "b1"), True)
    arrays = expected(one)
    np.testing.assert_array_equal(found.trace.expert_ids, arrays["expert_ids"])
    np.testing.assert_allclose(found.trace.expert_probs, arrays["expert_probs"], rtol=1e-3)
    np.testing.assert_array_equal(found.trace.offsets, arrays["offsets"])
    assert set(found.trace.phase.tolist()) == {1}
    assert found.notes[0] == "layers have Megatron's numbers 9, 10, 11"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: (folder / "3" / "b1.pt").unlink(),
            r"3.b1.pt is missing, but other layers have it; the capture was interrupted",
        ),
        (lambda folder: torch.save(torch.zeros(3, 2), folder / "3" / "b1.pt"), r"3.b1.pt: is not a pair of scores and experts"),
        (
            lambda folder: torch.save((torch.zeros(3, 2),) * 2, folder / "3" / "b1.pt"),
            r"3.b1.pt: is not a pair of scores and experts, but",
        ),
        (
            lambda folder: (folder / "3" / "b1.pt").write_bytes(b"PK"),
            r"3.b1.pt: (is not a torch.save file|damaged|it holds more)",
        ),
        (
            lambda folder: torch.save((torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int64)), folder / "3" / "b1.pt"),
            r"layer 1 is of shape \[3, 2\], but layer 0 of \[4, 2\]",
        ),
    ],
)
def test_flame_moes_that_are_none(tmp_path, change, message):
    folder = actives(tmp_path / "11029", make())
    change(folder)
    with pytest.raises(FinemoeError, match=rf"11029.*: .*{message}"):
        read_trace(folder)
