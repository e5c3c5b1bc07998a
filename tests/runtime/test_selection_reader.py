"""Selected experts read while the device goes on: the values of the moment, one buffer, and nothing stale."""

import numpy as np
import pytest
import torch

from finemoe.runtime.selection_reader import SelectionReader
from finemoe.runtime.snapshot import HostBuffers
from tests.runtime.test_snapshot import CUDA, LateCuda


@pytest.fixture
def buffers(monkeypatch) -> HostBuffers:
    LateCuda(monkeypatch)
    return HostBuffers(CUDA, 1)


def routed(index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As a router returns it."""
    return torch.rand(len(index), 8), torch.rand(index.shape), index


def test_what_was_begun_is_read_as_it_was_then_and_its_buffer_comes_back(buffers):
    reader = SelectionReader(buffers)
    for number in range(5):
        index = torch.tensor([[number, 7], [3, number + 1]])
        reader.begin(routed(index))
        assert buffers.num_free == 0
        np.testing.assert_array_equal(reader.read(index), [[number, 7], [3, number + 1]])
        assert buffers.num_free == 1


def test_of_another_tensor_nothing_is_believed(buffers):
    """Whoever calls the experts himself, after the router ran elsewhere."""
    reader = SelectionReader(buffers)
    reader.begin(routed(torch.tensor([[1, 2]])))
    np.testing.assert_array_equal(reader.read(torch.tensor([[5, 6]])), [[5, 6]])
    np.testing.assert_array_equal(reader.read(torch.tensor([[1, 2]])), [[1, 2]])


@pytest.mark.parametrize("output", [torch.rand(2, 8), (torch.rand(2, 8), torch.rand(2, 2)), None])
def test_a_router_that_says_nothing_of_the_kind_is_no_matter(buffers, output):
    reader = SelectionReader(buffers)
    reader.begin(output)
    assert buffers.num_free == 1
    np.testing.assert_array_equal(reader.read(torch.tensor([[4, 0]])), [[4, 0]])


def test_on_the_cpu_it_is_simply_read():
    index = torch.tensor([[2, 1]])
    reader = SelectionReader(None)
    reader.begin(routed(index))
    np.testing.assert_array_equal(reader.read(index), [[2, 1]])
