"""`fit` without a partition: a plain matrix is one group, a 3-D array one for each of its own."""

import numpy as np
import pytest
import torch
from trajectories import generic, smooth

import koopcore as kc


@pytest.mark.parametrize("kind", ["numpy", "torch", "strided"])
@pytest.mark.parametrize("model", ["linear", "affine", "auto"])
@pytest.mark.parametrize("shape", [(9, 30), (30, 4)])
def test_a_matrix_is_one_group(shape, model, kind):
    x = generic(*shape)
    expected = kc.fit(x, kc.Partition.groups(shape[1], [range(shape[1])]), model)
    given = {"numpy": x, "torch": torch.from_numpy(x), "strided": np.asfortranarray(x)}[kind]
    ops = kc.fit(given, model=model)
    assert ops.partition.n_groups == 1
    prediction = ops.predict(3)
    assert type(prediction) is type(given)
    np.testing.assert_array_equal(np.asarray(prediction), expected.predict(3))
    np.testing.assert_array_equal(ops.eigenvalues(), expected.eigenvalues())


@pytest.mark.parametrize("horizon", [None, 5])
@pytest.mark.parametrize("m", [12, 3])
def test_a_3d_array_has_an_operator_for_each_group(m, horizon):
    x = np.stack([smooth(8, m), generic(8, m), generic(8, m, seed=3)], axis=1)
    ops = kc.fit(x, model="affine", horizon=horizon)
    assert ops.predict(5).shape == (3, m)
    assert ops.predict([1, 5]).shape == (2, 3, m)
    assert ops.trajectory(4).shape == (4, 3, m)
    for g in range(3):
        alone = kc.fit(np.ascontiguousarray(x[:, g]), model="affine")
        np.testing.assert_allclose(ops.predict(5)[g], alone.predict(5), rtol=1e-12, atol=1e-12)
    turned = kc.fit(x.transpose(0, 2, 1).copy().transpose(0, 2, 1), model="affine")
    np.testing.assert_array_equal(turned.predict(5), ops.predict(5))
    assert isinstance(kc.fit(torch.from_numpy(x)).predict(2), torch.Tensor)


def test_an_array_that_looks_transposed_is_named():
    t = np.arange(40)[:, None]
    rng = np.random.default_rng(0)
    x = np.sin(0.2 * t + 6.0 * rng.random(300)) * rng.standard_normal(300)
    kc.fit(x, model="linear")
    with pytest.warns(UserWarning, match=r"snapshots of shape \(300, 40\) seems to be transposed"):
        kc.fit(x.T, model="linear")
    kc.fit(rng.standard_normal((50, 20)), model="linear")  # noise both ways
    few = np.cos(0.3 * np.arange(300)[:, None] + np.arange(4))
    kc.fit(few, model="linear")
    with pytest.warns(UserWarning, match=r"snapshots of shape \(4, 300\) seems to be transposed"):
        kc.fit(few.T, model="linear")
    field = np.sin(9.0 * np.linspace(0.0, 1.0, 300) - 0.5 * np.arange(4)[:, None])
    kc.fit(field, model="linear")  # smooth in space, four times


@pytest.mark.parametrize(
    "x", [np.ones((9, 4)), np.zeros((9, 4)), 1e-200 * np.arange(36.0).reshape(9, 4)]
)
def test_what_does_not_vary_or_is_tiny_is_fitted(x):
    ops = kc.fit(x, model="linear")
    assert (ops.status == 0).all()
    assert np.isfinite(ops.predict(5)).all()


@pytest.mark.parametrize("shape", [(9,), (9, 2, 3, 4), (9, 0), (9, 0, 4)])
def test_other_shapes_are_named(shape):
    with pytest.raises(ValueError, match=r"\(n_snapshots, n_groups, m\) for an operator per group"):
        kc.fit(np.ones(shape))
    with pytest.raises(ValueError, match=r"snapshots has shape \(5, 2, 3\)"):
        kc.fit(np.ones((5, 2, 3)), kc.Partition.groups(6, [range(6)]))
