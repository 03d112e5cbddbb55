"""Tables of tensors: copies into rows and back, predictions into them, with torch tensors."""

from __future__ import annotations

import emulated_cuda
import numpy as np
import pytest
import torch
from trajectories import generic

from koopcore import arrays
from koopcore.backends.native_cuda.launch import Launch, divided
from koopcore.backends.native_cuda.tensors import TensorTable
from koopcore.backends.protocol import Snapshots
from koopcore.partition.partition import Partition

pytestmark = pytest.mark.skipif(emulated_cuda.COMPILER is None, reason="needs g++")
SHAPES = [(3, 5), (), (5000,), (2, 1, 7)]
STARTS = [0, 32, 64, 5088]
SIZE = 5102


@pytest.fixture
def cuda(native, kernels):
    return kernels


def tensors(dtypes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pairs = zip(SHAPES, dtypes, strict=True)
    return [torch.randn(shape, generator=generator).to(dtype) for shape, dtype in pairs]


@pytest.mark.parametrize("row_dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_capture_and_back(cuda, row_dtype):
    given = tensors([torch.float32, torch.float64, torch.float32, torch.bfloat16])
    row = torch.full((SIZE,), 7.0, dtype=row_dtype)
    table = TensorTable(cuda, given, STARTS)
    assert table.size == SIZE
    table.capture(row)
    covered = torch.zeros(SIZE, dtype=torch.bool)
    for tensor, start in zip(given, STARTS, strict=True):
        at = slice(start, start + tensor.numel())
        # torch rounds float64 to bfloat16 at once, the kernel by way of float32: one ulp at most.
        expected = tensor.reshape(-1).float().to(row_dtype)
        if tensor.dtype == torch.float64 and row_dtype == torch.float64:
            expected = tensor.reshape(-1)
        assert torch.equal(row[at], expected)
        covered[at] = True
    assert (row[~covered] == 7.0).all()  # gaps between tensors are not written
    for tensor in given:
        tensor.zero_()
    table.write(row)
    for tensor, start in zip(given, STARTS, strict=True):
        expected = row[start : start + tensor.numel()].float().to(tensor.dtype)
        assert torch.equal(tensor.reshape(-1).float(), expected.float())


def test_rounding_to_bfloat16_is_that_of_torch(cuda):
    values = torch.tensor([1.0, 1.00390625, 1.01171875, -0.0, 3e38, 1e-40, float("inf")])
    row = torch.empty(7, dtype=torch.bfloat16)
    TensorTable(cuda, [values], [0]).capture(row)
    assert torch.equal(row, values.to(torch.bfloat16))


def test_values_beyond_a_parameters_range_stay_finite(cuda):
    target = torch.zeros(3)
    row = torch.tensor([1e300, -1e300, 1.0], dtype=torch.float64)
    TensorTable(cuda, [target], [0]).write(row)
    limit = torch.finfo(torch.float32).max
    assert target.tolist() == [limit, -limit, 1.0]


@pytest.mark.parametrize("least", [0, 128], ids=["one pass", "in stages"])
def test_predictions_straight_into_parameters(native, cuda, monkeypatch, least):
    emulated_cuda.one_pass_for_all(monkeypatch, least)
    parameters = [torch.zeros(8, 5), torch.zeros(24, dtype=torch.bfloat16), torch.zeros(6)]
    starts = [0, 40, 70]
    part = Partition.groups(80, [range(30), range(30, 64), range(70, 76)])
    ring = torch.from_numpy(generic(5, 80).astype(np.float32))
    window = Snapshots(ring, np.arange(5))
    assert (divided(Launch(cuda, window, part), [3])[0] is part) == (least == 0)
    rows = torch.empty(1, 80)
    native.endpoint(window, part, True, [3], rows)
    native.endpoint(window, part, True, [3], None, TensorTable(cuda, parameters, starts))
    for parameter, start in zip(parameters, starts, strict=True):
        expected = rows[0, start : start + parameter.numel()].to(parameter.dtype)
        assert torch.equal(parameter.reshape(-1), expected)


@pytest.mark.parametrize(
    ("given", "starts", "error", "message"),
    [
        ([torch.zeros(4, 6).T], [0], ValueError, r"shape \(6, 4\) is not contiguous"),
        ([torch.zeros(8)[::2]], [0], ValueError, "is not contiguous"),
        ([torch.zeros(3), torch.zeros(3)], [0, 2], ValueError, "reach into the next one's place"),
        ([torch.zeros(3)], [0, 4], ValueError, "1 tensors and 2 starts"),
        ([torch.zeros(3, dtype=torch.int32)], [0], TypeError, "dtype int32; accepted are float32"),
    ],
)
def test_misuse(cuda, given, starts, error, message):
    with pytest.raises(error, match=message):
        TensorTable(cuda, given, starts)


def test_a_row_that_is_too_short(cuda):
    with pytest.raises(ValueError, match="the row has 4 numbers; the tensors reach up to 5"):
        TensorTable(cuda, [torch.zeros(3)], [2]).capture(torch.zeros(4))
    assert arrays.dtype_name(torch.zeros(1)) == "float32"
