"""Every misuse is an error before any work, which says what was given and what is accepted."""

import os
import re
import time

import numpy as np
import pytest
import torch
from trajectories import WHOLE, generic

import koopcore as kc
from koopcore import checks

X = generic(8, 20)
X.setflags(write=False)
PART = kc.Partition.groups(20, [range(12), range(12, 15), [16]])


def changed(row, column, value):
    x = X.copy()
    x[row, column] = value
    return x


#: (what is wrong, snapshots, arguments of fit, the error, what its message must say)
REFUSED = [
    ("1-D", X[0], {}, ValueError, r"shape \(20,\); \(n_snapshots, n_parameters\)"),
    ("3-D", X[None], {}, ValueError, r"shape \(1, 8, 20\).*one snapshot a row"),
    ("0-D", np.array(1.0), {}, ValueError, r"shape \(\)"),
    ("no snapshot", X[:0], {}, ValueError, r"0 rows; the affine model needs at least 3"),
    ("one snapshot", X[:1], {}, ValueError, r"1 row; the affine model needs .*\(window >= 3\)"),
    ("one, linear", X[:1], {"model": "linear"}, ValueError, r"1 row; .*at least 2 snapshots"),
    ("one, trend", X[:1], {"model": "trend"}, ValueError, r"1 row; the trend .*at least 2"),
    ("one, auto", X[:1], {"model": "auto"}, ValueError, r"1 row; the auto .*at least 2"),
    ("two, affine", X[:2], {}, ValueError, r"2 rows; the affine model needs at least 3"),
    ("other parameters", X[:, :19], {}, ValueError, r"19 parameters a row.*partition is of 20"),
    ("transposed", X.T, {}, ValueError, r"8 parameters a row.*partition is of 20"),
    ("integers", X.astype(int), {}, TypeError, r"dtype int64; float32 and float64"),
    ("half", X.astype(np.float16), {}, TypeError, r"dtype float16; float32 and float64"),
    ("long double", X.astype(np.longdouble), {}, TypeError, r"dtype (float128|longdouble)"),
    ("complex", X.astype(complex), {}, TypeError, r"dtype complex128; .*real and imaginary parts"),
    ("complex64", X.astype(np.complex64), {}, TypeError, r"complex64.*np\.concatenate\(\[x\.real"),
    ("torch complex", torch.ones(8, 20) * 1j, {}, TypeError, r"complex64.*torch\.cat\(\[x\.real"),
    ("booleans", X > 0, {}, TypeError, r"dtype bool"),
    ("objects", X.astype(object), {}, TypeError, r"dtype object"),
    ("byte order", X.astype(">f8"), {}, TypeError, r"other byte order \(>f8\); convert it"),
    ("masked", np.ma.masked_array(X), {}, TypeError, r"snapshots is a MaskedArray; a NumPy"),
    ("torch half", torch.ones(8, 20, dtype=torch.float16), {}, TypeError, r"dtype float16"),
    ("torch bfloat16", torch.ones(8, 20, dtype=torch.bfloat16), {}, TypeError, r"dtype bfloat16"),
    ("torch integers", torch.ones(8, 20, dtype=torch.int64), {}, TypeError, r"dtype int64"),
    ("torch sparse", torch.eye(20).to_sparse(), {}, TypeError, r"sparse.*a dense one"),
    ("a list", X.tolist(), {}, TypeError, r"snapshots is a list; a NumPy array, a torch tensor"),
    ("a number", 3.0, {}, TypeError, r"snapshots is a float"),
    ("nothing", None, {}, TypeError, r"snapshots is a NoneType"),
    ("rank 0", X, {"rank": 0}, ValueError, r"rank is 0; .*ranks 1\.\.6 for the affine"),
    ("rank -1", X, {"rank": -1}, ValueError, r"rank is -1"),
    ("rank 7", X, {"rank": 7}, ValueError, r"rank is 7; 8 snapshots.* ranks 1\.\.6"),
    ("rank 8", X, {"rank": 8, "model": "linear"}, ValueError, r"ranks 1\.\.7 for the linear"),
    ("rank 2.0", X, {"rank": 2.0}, TypeError, r"rank is 2\.0; None or an integer"),
    ("rank True", X, {"rank": True}, TypeError, r"rank is True"),
    ("rank text", X, {"rank": "2"}, TypeError, r"rank is '2'"),
    ("ridge < 0", X, {"ridge": -1e-9}, ValueError, r"ridge is -1e-09; a finite number >= 0"),
    ("ridge NaN", X, {"ridge": float("nan")}, ValueError, r"ridge is nan"),
    ("ridge infinite", X, {"ridge": float("inf")}, ValueError, r"ridge is inf"),
    ("ridge text", X, {"ridge": "1"}, TypeError, r"ridge is '1'; a number"),
    ("ridge None", X, {"ridge": None}, TypeError, r"ridge is None"),
    ("ridge True", X, {"ridge": True}, TypeError, r"ridge is True"),
    ("model", X, {"model": "dmd"}, ValueError, r"model is 'dmd'; one of 'linear', 'affine'"),
    ("model None", X, {"model": None}, ValueError, r"model is None"),
    ("model list", X, {"model": ["linear"]}, ValueError, r"model is \['linear'\]"),
    ("backend", X, {"backend": "gpu"}, ValueError, r"'gpu' .*native_cpu.*numba_cpu.*reference"),
    ("CUDA backend", X, {"backend": "native_cuda"}, ValueError, r"native_cuda.* not run on cpu"),
    ("order past the end", X, {"order": [0, 1, 8]}, ValueError, r"rows 0\.\.8; .*has 8 rows"),
    ("order negative", X, {"order": [-1, 0, 1]}, ValueError, r"rows -1\.\.1"),
    ("order floats", X, {"order": [0.0, 1.0, 2.0]}, TypeError, r"order must be .*row indices"),
    ("order mask", X, {"order": X[:, 0] > 0}, TypeError, r"order must be .*row indices"),
    ("order 2-D", X, {"order": [[0, 1], [2, 3]]}, TypeError, r"order must be"),
    ("order too short", X, {"order": [0, 1]}, ValueError, r"2 rows; the affine"),
]


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [case[1:] for case in REFUSED],
    ids=[case[0] for case in REFUSED],
)
def test_fit_refuses(x, options, error, message):
    with pytest.raises(error, match=message):
        kc.fit(x, PART, **options)


def test_nothing_is_let_through_after_a_good_fit():
    """What was found good of a partition is remembered with it, for that alone."""
    for rank in (None, 1):
        kc.fit(X, PART, rank=rank)
    for _, x, options, error, message in REFUSED:
        with pytest.raises(error, match=message):
            kc.fit(x, PART, **options)


@pytest.mark.parametrize("part", [20, [[0, 1]], "nodes", kc.Layout.from_shapes([(4, 4, True)])])
def test_fit_refuses_what_is_no_partition(part):
    with pytest.raises(TypeError, match=r"part is a \w+; a koopcore.Partition is needed"):
        kc.fit(X, part)


def test_fit_refuses_a_partition_without_groups():
    with pytest.raises(ValueError, match="no groups"):
        kc.fit(X, PART.subset([]))


# -- numbers that are none ------------------------------------------------------------------------


@pytest.mark.parametrize("backend", WHOLE)
@pytest.mark.parametrize("model", ["linear", "affine", "trend", "auto"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("row", "column", "group"), [(0, 3, 0), (4, 11, 0), (7, 13, 1), (3, 16, 2)]
)
def test_a_snapshot_that_is_not_finite_is_named(model, value, row, column, group, backend):
    # The trend reads no snapshot between the ends on the feature side; it must not matter.
    message = rf"snapshot {row} .*{value} at parameter {column}, in group {group};"
    with pytest.raises(ValueError, match=message):
        kc.fit(changed(row, column, value), PART, model, backend=backend)


@pytest.mark.parametrize("options", [{"rank": 2}, {"ridge": 1e-6}])
def test_also_under_a_rank_or_a_ridge(options):
    with pytest.raises(ValueError, match=r"snapshot 4 .*nan at parameter 11, in group 0"):
        kc.fit(changed(4, 11, np.nan), PART, **options)


def test_the_snapshot_is_counted_in_time_and_named_with_its_row():
    order = [3, 4, 5, 6, 7, 0, 1, 2]
    with pytest.raises(ValueError, match=r"snapshot 6 \(row 1\) has nan at parameter 13"):
        kc.fit(changed(1, 13, np.nan), PART, order=order)


def test_the_first_of_many_is_named():
    x = changed(5, 0, np.nan)
    x[2, [14, 16]] = np.inf
    with pytest.raises(ValueError, match=r"snapshot 2 .*inf at parameter 14, in group 1"):
        kc.fit(x, PART)


@pytest.mark.parametrize("backend", WHOLE)
@pytest.mark.parametrize("model", ["linear", "affine", "trend", "auto"])
def test_what_no_group_reads_may_be_anything(model, backend):
    x = changed(2, 15, np.nan)
    x[7, 17] = np.inf
    got, clean = (kc.fit(y, PART, model, backend=backend).predict(3) for y in (x, X))
    covered = [*range(15), 16]
    np.testing.assert_array_equal(got[covered], clean[covered])
    np.testing.assert_array_equal(got[[15, 17, 18, 19]], x[7, [15, 17, 18, 19]])


def test_a_row_outside_the_window_may_be_anything():
    ring = np.vstack([X, np.full((1, 20), np.nan)])
    got = kc.fit(ring, PART, order=range(8)).predict(3)
    np.testing.assert_array_equal(got, kc.fit(X, PART).predict(3))


@pytest.mark.parametrize("column", [0, 599_999])
def test_naming_takes_no_time_among_many_groups(column):
    part = kc.Partition.groups(600_000, [range(i, i + 6) for i in range(0, 600_000, 6)])
    x = np.zeros((3, 600_000))
    x[1, column] = np.nan
    window = checks.Snapshots(x, np.arange(3))
    began = time.process_time()
    with pytest.raises(
        ValueError, match=rf"snapshot 1 .*parameter {column}, in group {column // 6}"
    ):
        checks.raise_non_finite(window, part)
    # 100,000 groups one by one take over a second; the arrays involved are of a few megabytes.
    assert time.process_time() - began < 0.5


# -- horizons -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["predict", "trajectory", "growth"])
@pytest.mark.parametrize(
    ("horizon", "error", "message"),
    [
        (0, ValueError, r"T is 0; a number of snapshots in 1\.\."),
        (-3, ValueError, r"T is -3"),
        (2**62, ValueError, r"T is 4611686018427387904"),
        (1.0, TypeError, r"T is 1\.0; whole numbers of snapshots >= 1"),
        (np.float64(2.0), TypeError, "T is .*whole numbers"),
        (float("nan"), TypeError, "T is nan"),
        (True, TypeError, "T is True"),
        (np.True_, TypeError, "T is .*True"),
        ("3", TypeError, "T is '3'"),
        (None, TypeError, "T is None"),
    ],
)
def test_a_horizon_is_a_whole_number_from_one(method, horizon, error, message):
    ops = kc.fit(X, PART, backend="reference")
    with pytest.raises(error, match=message):
        getattr(ops, method)(horizon)
    if method != "trajectory":
        with pytest.raises(error, match=message):
            getattr(ops, method)([1, horizon])


def test_no_horizon_at_all():
    ops = kc.fit(X, PART, backend="reference")
    with pytest.raises(ValueError, match="no horizon was given"):
        ops.predict([])
    with pytest.raises(TypeError, match=r"trajectory takes one horizon; got \[1, 2\]"):
        ops.trajectory([1, 2])


@pytest.mark.parametrize("method", ["modes", "operator"])
@pytest.mark.parametrize(
    ("group", "error", "message"),
    [
        (3, ValueError, r"group is 3; groups 0\.\.2 exist"),
        (-1, ValueError, "group is -1"),
        (0.0, TypeError, r"group is 0\.0; a group number"),
        (True, TypeError, "group is True"),
        (None, TypeError, "group is None"),
    ],
)
def test_a_group_is_one_that_exists(method, group, error, message):
    ops = kc.fit(X, PART, backend="reference")
    with pytest.raises(error, match=message):
        getattr(ops, method)(group)


# -- memory ---------------------------------------------------------------------------------------


def total_memory():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize("side", ["many groups", "wide groups"])
def test_an_impossible_request_says_how_many_bytes(side):
    """Snapshots of one row repeated without memory: what is asked for is never allocated."""
    if side == "many groups":
        n = 2000
        size = 4 * total_memory() // (8 * n * n // 2) * (n - 1)
        bounds = np.arange(0, size, n - 1)
        ptr = np.arange(len(bounds) + 1)
        lengths = np.full(len(bounds), n - 1)
        part = kc.Partition(size, ptr, bounds, lengths, np.ones(len(bounds), dtype=np.int64))
        needed = 8.0 * len(bounds) * n * (n + 1) / 2
    else:
        m = int((total_memory() / 8) ** 0.5)
        size, n = m, m + 2
        part = kc.Partition.groups(m, [range(m)])
        needed = 8.0 * 4 * m * m
    x = np.broadcast_to(np.float32(0.0), (n, size))
    with pytest.raises(MemoryError, match=re.escape(f"{needed:.3g} bytes")) as raised:
        kc.fit(x, part, "linear")
    assert "this machine has" in str(raised.value)
    assert "coarser partition" in str(raised.value)


# -- and nothing happened -------------------------------------------------------------------------


def test_a_refused_fit_has_touched_nothing():
    x = changed(4, 11, np.nan)
    before = x.copy()
    with pytest.raises(ValueError, match="not finite"):
        kc.fit(x, PART)
    np.testing.assert_array_equal(x, before)
