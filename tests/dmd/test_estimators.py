"""What users of scikit-learn, PyDMD, pandas, xarray and torch expect, and what they are told."""

import json
import pickle
import warnings

import numpy as np
import pytest
import torch
from dmd_cases import damped, farthest, toy, waves
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, TimeSeriesSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from koopcore.dmd import (
    DMD,
    STATUS,
    OptimizedDMD,
    UnevenTimeWarning,
    UnstableForecastWarning,
    load,
    save,
    sliding,
)

ESTIMATORS = [DMD(4), OptimizedDMD(4)]


@pytest.fixture(params=ESTIMATORS, ids=lambda e: type(e).__name__)
def estimator(request):
    return clone(request.param)


@pytest.mark.parametrize("kind", [DMD, OptimizedDMD])
def test_scikit_learns_own_checks(kind):
    # With delays a row's prediction is of those before it too, which some of the checks forbid.
    results = check_estimator(kind(delays=1), on_skip=None, on_fail=None)
    assert len(results) > 40
    failed = {r["check_name"]: r["status"] for r in results if r["status"] != "passed"}
    # Complex series are decomposed, not refused. The other is run only with SCIPY_ARRAY_API set.
    assert failed == {"check_complex_data": "failed", "check_array_api_input": "skipped"}


def test_pipelines_grids_and_scores():
    x = waves(n=120, m=12, noise=0.02)[0][0]
    folds = TimeSeriesSplit(3)
    grid = GridSearchCV(DMD(), {"rank": [1, 4], "delays": [1, 3]}, cv=folds).fit(x)
    assert grid.best_params_["rank"] == 4
    assert cross_val_score(DMD(4), x, cv=folds).min() > 0.9
    pipeline = make_pipeline(StandardScaler(), DMD(4)).fit(x)
    assert pipeline.predict(x).shape == x.shape
    assert pipeline.score(x) > 0.95
    deep = GridSearchCV(pipeline, {"dmd__rank": [1, 4]}, cv=folds).fit(x)
    assert deep.best_params_ == {"dmd__rank": 4}
    twin = clone(DMD(4, delays=2).fit(x))
    with pytest.raises(NotFittedError):
        twin.predict(3)
    with pytest.raises(AttributeError, match="exists once fit"):
        _ = twin.modes_
    back = pickle.loads(pickle.dumps(DMD(4).fit(x)))
    np.testing.assert_array_equal(back.predict(3), DMD(4).fit(x).predict(3))


def test_coordinates_are_orthogonal_projections_and_pandas_gets_names():
    pandas = pytest.importorskip("pandas")
    x = waves(n=60, m=12)[0][0]
    estimator = DMD(4).set_output(transform="pandas").fit(x)
    frame = estimator.transform(x)
    assert list(frame.columns) == ["dmd0", "dmd1", "dmd2", "dmd3"]
    basis = estimator.components_
    np.testing.assert_allclose(basis @ basis.T, np.eye(4), atol=1e-10)
    np.testing.assert_allclose(frame.to_numpy() @ basis, x, atol=1e-6)
    named = pandas.DataFrame(x, columns=[f"sensor {k}" for k in range(12)])
    estimator = DMD(4).fit(named)
    assert estimator.feature_names_in_[3] == "sensor 3"
    rebuilt = estimator.reconstruct()
    assert rebuilt.columns.equals(named.columns)
    assert rebuilt.index.equals(named.index)
    assert estimator.predict(3).index.equals(named.columns)
    with pytest.raises(ValueError, match="feature names"):
        estimator.predict(named[named.columns[::-1]])


@pytest.mark.parametrize(
    "index", ["rows", "hours", "months", "days", "periods", "numbers", "frames"]
)
def test_forecasts_go_on_with_the_index_of_pandas(index, estimator):
    pandas = pytest.importorskip("pandas")
    length = 40
    whole = {
        "rows": pandas.RangeIndex(length + 3),
        "hours": pandas.date_range("2020-01-01", periods=length + 3, freq="h", name="when"),
        "months": pandas.DatetimeIndex(
            list(pandas.date_range("2020-01-01", periods=length + 3, freq="MS"))
        ),
        "days": pandas.date_range("2020-03-01", periods=length + 3, tz="Europe/Berlin"),
        "periods": pandas.period_range("2020-01", periods=length + 3, freq="M"),
        "numbers": pandas.Index(0.25 * np.arange(length + 3), name="t"),
        "frames": pandas.to_timedelta(np.round(np.arange(length + 3) * 1000 / 30), unit="ms"),
    }[index]
    frame = pandas.DataFrame(waves(n=length, m=6)[0][0], index=whole[:length])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimator.fit(frame)
        ahead = [estimator.forecast(horizon=3), estimator.forecast(frame, 3)]
        ahead.append(estimator.predict([1, 2, 3]))
    for states in ahead:
        assert states.index.name == whole.name
        if index == "frames":  # times that were rounded: on by the mean step
            late = (states.index - whole[length:]).total_seconds()
            assert np.abs(late).max() < 2e-3
        else:
            assert states.index.equals(whole[length:])
    assert estimator.predict(frame).index.equals(frame.index)


@pytest.mark.parametrize("library", ["pandas", "xarray"])
def test_times_that_are_not_evenly_spaced_are_named(library, estimator):
    pandas, xarray = pytest.importorskip("pandas"), pytest.importorskip("xarray")
    x = waves(n=40, m=6)[0][0]
    times = pandas.date_range("2020-01-01", periods=41, freq="h").delete(5)

    def given(index):
        if library == "pandas":
            return pandas.DataFrame(x, index=index)
        return xarray.DataArray(x, dims=("time", "place"), coords={"time": index})

    with pytest.warns(UnevenTimeWarning, match=r"04:00.* to .*06:00.*rows 4 and 5. is 2 times"):
        estimator.fit(given(times))
    ahead = estimator.forecast(horizon=2)
    labels = ahead.index.tolist() if library == "pandas" else [*ahead.coords]
    assert labels == ([0, 1] if library == "pandas" else [])
    with pytest.warns(UnevenTimeWarning, match="runs backwards"):
        estimator.fit(given(times[::-1]))
    with pytest.warns(UnevenTimeWarning, match="of X is not evenly spaced"):
        sliding(given(times), 20, 5, rank=4)
    if library == "pandas":
        with pytest.warns(UnevenTimeWarning, match=r"of X\[1\] is not evenly spaced"):
            DMD(4).fit([given(np.arange(40)), given(np.delete(np.arange(41), 7))])
        names = pandas.DataFrame(x, index=[f"row {k}" for k in range(40)])
        assert DMD(4).fit(names).forecast(horizon=2).index.tolist() == [0, 1]


def test_one_series_goes_on_by_every_system(estimator):
    x = waves(3, n=40, m=6)[0]
    batch = clone(estimator).fit(x)
    for k in range(3):
        alone = clone(estimator).fit(x[k])
        np.testing.assert_allclose(batch.predict(x[0], 2)[k], alone.predict(x[0], 2), atol=1e-8)
        np.testing.assert_allclose(batch.forecast(x[0], 2)[k], alone.forecast(x[0], 2), atol=1e-8)
    assert batch.transform(x[0]).shape == (3, 40, 4)


def test_xarray_keeps_its_names(estimator):
    xarray = pytest.importorskip("xarray")
    x = waves(n=60, m=5)[0][0]
    data = xarray.DataArray(
        x, dims=("time", "place"), coords={"time": np.arange(60.0), "place": list("abcde")}
    )
    estimator.fit(data)
    rebuilt = estimator.reconstruct()
    assert rebuilt.dims == ("time", "place")
    assert rebuilt.coords["time"].equals(data.coords["time"])
    ahead = estimator.forecast(horizon=3)
    assert ahead.dims == ("time", "place")
    assert ahead.coords["time"].values.tolist() == [60.0, 61.0, 62.0]
    assert ahead.coords["place"].values.tolist() == list("abcde")
    assert estimator.predict(3).dims == ("place",)
    with pytest.raises(ValueError, match=r"\('place', 'time'\); \(time, features\)"):
        estimator.fit(data.T)


@pytest.mark.filterwarnings("ignore::koopcore.dmd.LowerRankWarning")
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_what_comes_in_comes_out(library, dtype, estimator):
    x = (toy(60) if "complex" in dtype else waves(n=60)[0][0]).astype(dtype)
    data = torch.from_numpy(x) if library == "torch" else x
    kind = torch.Tensor if library == "torch" else np.ndarray
    estimator.fit(data)
    for states in (
        estimator.reconstruct(),
        estimator.predict(3),
        estimator.predict(data),
        estimator.forecast(data, 3),
    ):
        assert isinstance(states, kind)
        assert str(states.dtype).removeprefix("torch.") == dtype
    single = dtype in ("float32", "complex64")
    small = "complex64" if single else "complex128"
    for numbers in (estimator.eigenvalues_, estimator.modes_, estimator.amplitudes_):
        assert isinstance(numbers, kind)
        assert str(numbers.dtype).removeprefix("torch.") == small
    if "complex" not in dtype:
        values = np.asarray(estimator.eigenvalues_)
        assert farthest(values, values.conj()) == 0.0
    np.testing.assert_allclose(estimator.reconstruct(), x, atol=1e-4 if single else 1e-6)


def test_a_batch_is_its_systems_one_by_one(estimator):
    x = waves(7, n=40, m=9, noise=0.05)[0]
    batch = clone(estimator).fit(x)
    assert batch.eigenvalues_.shape == (7, 4)
    assert batch.modes_.shape == (7, 9, 4)
    assert batch.reconstruct().shape == x.shape
    assert batch.forecast(horizon=5).shape == (7, 5, 9)
    assert batch.predict([1, 5]).shape == (7, 2, 9)
    assert batch.growth([1, 5]).shape == (7, 2)
    for k in (0, 6):
        alone = clone(estimator).fit(x[k])
        np.testing.assert_allclose(batch.eigenvalues_[k], alone.eigenvalues_, atol=1e-10)
        np.testing.assert_allclose(batch.predict(5)[k], alone.predict(5), atol=1e-9)
        np.testing.assert_allclose(batch.predict(x)[k], alone.predict(x[k]), atol=1e-9)
        np.testing.assert_allclose(batch.forecast(x, 3)[k], alone.forecast(x[k], 3), atol=1e-9)
    order = np.random.default_rng(0).permutation(7)
    np.testing.assert_allclose(
        clone(estimator).fit(x[order]).eigenvalues_, batch.eigenvalues_[order], atol=1e-10
    )
    strided = clone(estimator).fit(np.moveaxis(np.moveaxis(x, 0, 2).copy(), 2, 0))
    np.testing.assert_allclose(strided.eigenvalues_, batch.eigenvalues_, atol=1e-10)


@pytest.mark.parametrize("delays", [1, 4])
def test_windows_are_views_that_are_fitted_as_a_batch(delays):
    x = waves(n=90, m=7, noise=0.05)[0][0]
    fitted = sliding(x, 40, 7, rank=4, delays=delays)
    assert fitted.eigenvalues_.shape == (8, 4)
    for k in (0, 5, 7):
        alone = DMD(4, delays=delays).fit(x[7 * k : 7 * k + 40])
        np.testing.assert_allclose(fitted.eigenvalues_[k], alone.eigenvalues_, atol=1e-10)
        np.testing.assert_allclose(fitted.predict(3)[k], alone.predict(3), atol=1e-9)
    wide = waves(n=60, m=50, noise=0.05)[0][0]
    alone = OptimizedDMD(4).fit(wide[9:49])
    windows = sliding(wide, 40, 3, OptimizedDMD(4))
    np.testing.assert_allclose(windows.eigenvalues_[3], alone.eigenvalues_, atol=1e-9)


@pytest.mark.parametrize(
    "settings", [{}, {"delays": 3}, {"tls": True}, {"forgetting": 0.97}, {"noise": 1e-4}], ids=str
)
def test_a_stream_is_the_whole_series(settings):
    x = waves(n=150, m=9, noise=0.02)[0][0]
    whole = DMD(4, **settings).fit(x)
    stream = DMD(4, **settings)
    for begin in range(0, 150, 13):
        stream.partial_fit(x[begin : begin + 13])
    np.testing.assert_allclose(stream.eigenvalues_, whole.eigenvalues_, atol=1e-10)
    np.testing.assert_allclose(stream.forecast(horizon=5), whole.forecast(x, 5), atol=1e-9)
    with pytest.raises(ValueError, match="a stream is not kept"):
        stream.reconstruct()
    batch = DMD(4, **settings)
    for begin in range(0, 150, 50):
        batch.partial_fit(np.stack([x + 1.0, x])[:, begin : begin + 50])
    np.testing.assert_allclose(batch.eigenvalues_[1], whole.eigenvalues_, atol=1e-10)


def test_a_stream_may_look_back_a_window_only():
    x = waves(n=150, m=9, noise=0.02)[0][0]
    stream = DMD(4, window=40)
    for begin in range(0, 150, 13):
        stream.partial_fit(x[begin : begin + 13])
    last = DMD(4).fit(x[-40:])
    np.testing.assert_allclose(stream.eigenvalues_, last.eigenvalues_, atol=1e-10)


@pytest.mark.parametrize("complex_", [False, True])
def test_a_wide_stream_keeps_the_directions_that_matter(complex_):
    # 700 features: more than are kept whole. A third motion begins in the last third.
    rng = np.random.default_rng(0)
    angles = np.array([0.05, -0.11, 0.31])
    modes = rng.standard_normal((3, 700)) + 1j * rng.standard_normal((3, 700))
    t = np.arange(903)[:, None]
    clean = np.exp(1j * angles * t) * ((t > 600) | (angles < 0.3)) @ modes
    clean = clean if complex_ else clean.real
    x = clean + 0.01 * rng.standard_normal(clean.shape)
    stream = DMD(6, forgetting=0.99)
    for begin in range(0, 900, 90):
        stream.partial_fit(x[begin : begin + 90][: 900 - begin])
    assert farthest(np.exp(1j * angles), stream.eigenvalues_) < 1e-3
    assert stream.modes_.shape == (700, 6)
    assert np.linalg.norm(stream.predict(3) - clean[902]) < 0.05 * np.linalg.norm(clean[902])


def test_what_was_saved_is_what_is_loaded(estimator, tmp_path):
    x = waves(3, n=40, m=9, noise=0.05)[0]
    estimator.fit(x)
    save(estimator, tmp_path)
    back = load(tmp_path)
    assert repr(back) == repr(estimator)
    np.testing.assert_array_equal(back.eigenvalues_, estimator.eigenvalues_)
    np.testing.assert_array_equal(back.reconstruct(), estimator.reconstruct())
    np.testing.assert_array_equal(back.predict(x), estimator.predict(x))
    np.testing.assert_array_equal(back.status_, estimator.status_)
    frame = pytest.importorskip("pandas").DataFrame(x[0], columns=list("abcdefghi"))
    save(clone(estimator).fit(frame), tmp_path / "named")
    named = load(tmp_path / "named")
    assert named.feature_names_in_.tolist() == list("abcdefghi")
    assert named.forecast(frame, 2).columns.equals(frame.columns)
    assert isinstance(named.forecast(horizon=2), np.ndarray)
    text = json.loads((tmp_path / "dmd.json").read_text())
    text["real"] = False
    (tmp_path / "dmd.json").write_text(json.dumps(text))
    with pytest.raises(ValueError, match="do not belong together"):
        load(tmp_path)
    (tmp_path / "dmd.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"dmd\.json is missing"):
        load(tmp_path)
    with pytest.raises(NotFittedError):
        save(DMD(), tmp_path)


def test_unstable_forecasts_warn_and_stay_finite(estimator):
    t = np.arange(30)[:, None]
    x = 1.5**t * np.ones((30, 3)) * [1.0, 2.0, 3.0]
    estimator.set_params(rank=1).fit(x)
    assert estimator.growth(10) == pytest.approx(1.5**10, rel=1e-6)
    with pytest.warns(UnstableForecastWarning, match=r"grows .* times over 40 snapshots"):
        estimator.forecast(horizon=40)
    assert estimator.status_ == 0
    with pytest.warns(UnstableForecastWarning, match=r"grows inf times .*The last state was kept"):
        last = estimator.predict(10_000)
    np.testing.assert_array_equal(last, x[-1])
    assert "last state was kept" in STATUS[estimator.status_]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimator.predict(3)
    assert estimator.status_ == 0


@pytest.mark.filterwarnings("ignore::koopcore.dmd.LowerRankWarning")
@pytest.mark.parametrize("value", [0.0, 1.0, 1e196, -3e-200])
def test_constant_series_stay_constant(value, estimator):
    x = np.full((20, 3), value)
    estimator.fit(x)
    assert estimator.status_ == (1 if value == 0.0 else 0)
    np.testing.assert_allclose(estimator.predict(1000), x[0], rtol=1e-9)
    np.testing.assert_allclose(estimator.reconstruct(), x, rtol=1e-9)


BAD = [
    ({"rank": 0}, ValueError, r"svd_rank=0 is 'svht'"),
    ({"rank": -1}, ValueError, "-1 is None"),
    ({"rank": 1.0}, ValueError, "fraction of the energy"),
    ({"rank": 1.5}, ValueError, "fraction of the energy"),
    ({"rank": float("nan")}, ValueError, "fraction of the energy"),
    ({"rank": True}, TypeError, "rank is True"),
    ({"rank": "auto"}, ValueError, "'svht'"),
    ({"rank": [2]}, TypeError, "whole number"),
    ({"delays": 0}, ValueError, "delays is 0"),
    ({"delays": 2.0}, TypeError, "whole number"),
    ({"delays": 20}, ValueError, r"20 snapshots.*at least 21|room for 19"),
    ({"dt": 0}, ValueError, "dt is 0"),
    ({"dt": -1.0}, ValueError, "positive time"),
    ({"dt": "fast"}, TypeError, "positive time"),
]


@pytest.mark.parametrize(("settings", "error", "message"), BAD, ids=str)
def test_settings_that_cannot_work_are_named(settings, error, message, estimator):
    with pytest.raises(error, match=message):
        estimator.set_params(**settings).fit(damped(n=20)[0])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"model": "trend"}, ValueError, "'linear', 'affine'"),
        ({"modes": "all"}, ValueError, "'projected', 'exact', 'refit'"),
        ({"amplitudes": "last"}, ValueError, "'optimal', 'first'"),
        ({"tls": 1}, TypeError, "True or False"),
        ({"ridge": -1.0}, ValueError, "ridge is -1"),
        ({"noise": -1.0}, ValueError, "variance"),
        ({"noise": np.ones(3)}, TypeError, "variance"),
        ({"forgetting": 0.0}, ValueError, "0 < forgetting <= 1"),
        ({"forgetting": 1.1}, ValueError, "0 < forgetting <= 1"),
        ({"window": 1}, ValueError, "window is 1"),
        ({"backend": "abacus"}, ValueError, "abacus"),
    ],
    ids=str,
)
def test_settings_of_plain_dmd_that_cannot_work_are_named(settings, error, message):
    with pytest.raises(error, match=message):
        DMD(**settings).fit(damped(n=9, m=12)[0])


X = damped(n=20, m=4)[0]
NAN = np.where(np.arange(80).reshape(20, 4) == 14, np.nan, X)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (X[:1], ValueError, "1 snapshot .n_samples = 1."),
        (X[:, 0], ValueError, "Reshape your data"),
        (NAN, ValueError, r"NaN: nan at row 3 \(time\), feature 2"),
        (np.stack([X, NAN]), ValueError, r"system 1, row 3 \(time\), feature 2"),
        ([X, X[:9, :2]], ValueError, r"X\[1\] has 2 features, X\[0\] has 4"),
        ([np.stack([X, X])], ValueError, r"X\[0\] has shape \(2, 20, 4\)"),
        (np.array([X, X[:9]], dtype=object), (TypeError, ValueError), "X"),
        (np.ones((2, 3, 4, 5)), ValueError, "4 dimensions"),
        (np.ma.masked_array(X), TypeError, "masked"),
        (X.astype("datetime64[s]"), TypeError, "datetime64"),
        (torch.ones(5, 4, dtype=torch.int32), TypeError, "int32"),
        (None, TypeError, "X is None; a NumPy array"),
        ("data.csv", TypeError, "X is 'data.csv'; a NumPy array"),
        (np.ones((0, 5, 3)), ValueError, "X has 0 systems"),
    ],
    ids=range(14),
)
def test_series_that_cannot_be_decomposed_are_named(x, error, message, estimator):
    with pytest.raises(error, match=message):
        estimator.fit(x)


def test_misuse_after_the_fit_is_named(estimator):
    estimator.fit(np.stack([X, X, X]))
    with pytest.raises(ValueError, match="2 systems, 3 were fitted"):
        estimator.predict(np.stack([X, X]))
    with pytest.raises(ValueError, match="expecting 4 features"):
        estimator.predict(X[:, :3])
    with pytest.raises(ValueError, match="complex"):
        estimator.predict(X + 0j)
    with pytest.raises(ValueError, match="T is 0"):
        estimator.predict(0)
    with pytest.raises(TypeError, match=r"horizon is 2\.5"):
        estimator.forecast(X, 2.5)
    with pytest.raises(ValueError, match="horizon is 0"):
        estimator.forecast(horizon=0)
    with pytest.raises(ValueError, match="a score needs 2"):
        estimator.score(X[:1])
    with pytest.raises(ValueError, match="window is 30; the series has 20"):
        sliding(X, 30)
    with pytest.raises(TypeError, match="a DMD or OptimizedDMD"):
        sliding(X, 10, estimator=StandardScaler())


def test_streams_refuse_what_they_cannot_take():
    stream = DMD(2).partial_fit(X)
    with pytest.raises(ValueError, match="expecting 4 features"):
        stream.partial_fit(X[:, :3])
    with pytest.raises(ValueError, match="model='affine'"):
        DMD(2, model="affine").partial_fit(X)
    with pytest.raises(ValueError, match="a list was given"):
        DMD(2).partial_fit([X, X])
    with pytest.raises(NotFittedError):
        DMD(2, delays=5).partial_fit(X[:4]).predict(1)
    with pytest.raises(ValueError, match="one system at a time"):
        DMD(2).partial_fit(np.ones((2, 5, 400)))


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        (torch.empty(9, 2, device="meta"), ValueError, "X lies on meta; cpu and cuda"),
        (np.array([["a", "b"]] * 9), ValueError, "X holds what is no number"),
        (np.zeros((9, 2), dtype="M8[s]"), TypeError, "X has dtype datetime64"),
    ],
    ids=["meta", "text", "dates"],
)
def test_what_is_no_series_is_named(given, error, says):
    with pytest.raises(error, match=says):
        DMD(2).fit(given)


@pytest.mark.parametrize("horizon", [1.5, None, "3"])
def test_a_horizon_is_a_whole_number(horizon):
    with pytest.raises(TypeError, match="a whole number of snapshots"):
        DMD(2).fit(waves()[0][0]).predict(horizon)


def test_systems_of_different_lengths_in_one_array_are_named():
    x = waves(n=30, m=5)[0][0]
    ragged = np.empty(2, dtype=object)
    ragged[:] = [x, x[:9]]
    with pytest.raises(ValueError, match="different lengths do not fit"):
        DMD(2).fit(ragged)
