"""Arrays come back as they came in, are never written to, and are read where they lie."""

import tracemalloc

import numpy as np
import pytest
import torch
from backend_cases import VIEWS
from trajectories import WHOLE, generic

import koopcore as kc
from koopcore import arrays

#: Both sides, and parameters in no group.
PART = kc.Partition.groups(30, [range(12), range(12, 28, 3), [1 + 12], [29]])
X = generic(9, 30)


def result(x, backend=None, **options):
    return kc.fit(x, PART, "affine", backend=backend, **options).predict([1, 4])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numpy_comes_back_as_numpy(dtype):
    ops = kc.fit(X.astype(dtype), PART)
    for got, shape in ((ops.predict(2), (30,)), (ops.predict([2]), (1, 30))):
        assert isinstance(got, np.ndarray)
        assert got.dtype == dtype
        assert got.shape == shape
    assert ops.trajectory(3).shape == (3, 30)
    assert ops.trajectory(3).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_comes_back_as_torch(dtype):
    x = torch.from_numpy(X).to(dtype)
    got = result(x)
    assert isinstance(got, torch.Tensor)
    assert got.dtype == dtype
    assert got.device == x.device
    np.testing.assert_array_equal(got.numpy(), result(x.numpy()))


def test_a_tensor_that_requires_gradients_is_read_without_them():
    x = torch.from_numpy(X).requires_grad_()
    got = result(x)
    assert not got.requires_grad
    np.testing.assert_array_equal(got.numpy(), result(X))
    parameter = torch.nn.Parameter(torch.from_numpy(X))
    np.testing.assert_array_equal(result(parameter).numpy(), result(X))


@pytest.mark.parametrize("backend", WHOLE)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_a_tensor_with_a_pending_negation_is_read_as_the_numbers_it_stands_for(dtype, backend):
    z = torch.complex(torch.zeros(9, 30, dtype=torch.float64), torch.from_numpy(-X)).to(dtype)
    x = z.conj().imag
    assert x.is_neg()
    got = result(x, backend)
    assert not got.is_neg()
    np.testing.assert_array_equal(got.numpy(), result(X.astype(got.numpy().dtype), backend))
    assert x.is_neg()  # the caller's tensor is as it was


def test_complex_snapshots_are_fitted_as_their_real_and_imaginary_parts():
    """As the message says that turns complex numbers down, pending conjugations among them."""
    z = torch.complex(torch.from_numpy(X[:, :15]), torch.from_numpy(X[:, 15:]))
    whole = kc.Partition.groups(30, [range(30)])
    due = kc.fit(X, whole).predict(3)
    for x, sign in ((z, 1.0), (z.conj(), -1.0)):
        with pytest.raises(TypeError, match=r"dtype complex128; .*torch\.cat\(\[x\.real"):
            kc.fit(x, kc.Partition.groups(15, [range(15)]))
        got = kc.fit(torch.cat([x.real, x.imag], dim=1), whole).predict(3).numpy()
        np.testing.assert_allclose(got[:15], due[:15], rtol=1e-12)
        np.testing.assert_allclose(got[15:], sign * due[15:], rtol=1e-12)


def test_predictions_do_not_share_memory_with_the_snapshots_or_each_other():
    ops = kc.fit(X, PART)
    first, second = ops.predict(2), ops.predict(2)
    assert not np.shares_memory(first, X)
    first[:] = np.nan
    np.testing.assert_array_equal(ops.predict(2), second)


@pytest.mark.parametrize("backend", WHOLE)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("view", VIEWS)
def test_any_strides_are_read(view, dtype, backend):
    x = X.astype(dtype)
    got = result(VIEWS[view](x), backend)
    # The same numbers in the same order, but BLAS may take strided rows another way.
    np.testing.assert_allclose(got, result(x, backend), rtol=1e-6 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("made", [lambda x: x.T.contiguous().T, lambda x: x.repeat(1, 2)[:, :30]])
def test_any_strides_of_a_tensor_are_read(made):
    x = torch.from_numpy(X)
    np.testing.assert_allclose(result(made(x)).numpy(), result(X), rtol=1e-12)


@pytest.mark.parametrize("backend", WHOLE)
@pytest.mark.parametrize("by", [1, 4, 8])
@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda o: np.array(o, dtype=np.uint8)])
def test_a_ring_is_read_in_its_order(by, kind, backend):
    order = [(k + by) % 9 for k in range(9)]
    ring = np.full((10, 30), np.nan)  # the tenth slot is being written
    ring[order] = X
    np.testing.assert_array_equal(result(ring, backend, order=kind(order)), result(X, backend))


@pytest.mark.parametrize("backend", WHOLE)
@pytest.mark.parametrize("model", ["linear", "affine", "trend", "auto"])
def test_snapshots_are_never_written_to(model, backend):
    x = X.copy()
    x.setflags(write=False)
    ops = kc.fit(x, PART, model, backend=backend)
    ops.predict([1, 2000])
    ops.growth(5), ops.eigenvalues()
    for group in range(PART.n_groups):
        ops.modes(group), ops.operator(group)
    np.testing.assert_array_equal(x, X)


def test_large_snapshots_are_not_copied():
    """tracemalloc sees NumPy's memory: no array of the size of the snapshots is made."""
    x = np.random.default_rng(0).normal(size=(9, 300_000)).astype(np.float32)
    part = kc.Partition.groups(300_000, [range(i, i + 3000) for i in range(0, 300_000, 3000)])
    kc.fit(x[:, :300], kc.Partition.groups(300, [range(300)]))  # what is loaded once, is loaded
    tracemalloc.start()
    try:
        ops = kc.fit(x, part, backend="reference")
        ops.predict(3)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # 100 Gram matrices of 45 numbers, a group's columns, one prediction: under 4 MB, of 10.8.
    assert peak < x.nbytes / 2


def test_a_view_shares_the_callers_memory():
    for x in (X, torch.from_numpy(X.copy()), torch.zeros(3, 4).requires_grad_()):
        seen = arrays.view(x, "x")
        own = x if isinstance(x, np.ndarray) else x.detach().numpy()
        assert seen.device == "cpu"
        assert np.shares_memory(seen.array, own)


def test_a_restored_result_is_not_copied_either():
    restored = arrays.view(torch.zeros(2, 2), "x").restore(X)
    assert np.shares_memory(restored.numpy(), X)
    assert arrays.view(X, "x").restore(X) is X


def test_an_error_carries_the_callers_name_for_the_array():
    with pytest.raises(TypeError, match=r"weights is a list; a NumPy array, a torch tensor or"):
        arrays.view([1.0], "weights")
    with pytest.raises(TypeError, match=r"weights has dtype int64; float32 and float64"):
        arrays.view(np.arange(3), "weights")


@pytest.mark.parametrize("kind", [np.matrix, np.recarray, type("Own", (np.ndarray,), {})])
def test_a_subclass_is_read_as_the_array_it_is(kind):
    np.testing.assert_array_equal(result(X.view(kind)), result(X))
