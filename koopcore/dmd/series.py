"""What `koopcore.dmd` takes and gives back: series of every library, seen as one kind of array."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from koopcore import arrays, checks
from koopcore.dmd.time_index import continued, warn_if_uneven
from koopcore.types import FloatArray

ACCEPTED = (
    "a NumPy array, torch tensor, CuPy array, pandas DataFrame or xarray DataArray "
    "(time, features), such an array (systems, time, features), or a list of trajectories "
    "(time, features)"
)


LARGEST = 1e50
"""Numbers up to this, and down to its inverse, have squares that can be summed."""


@dataclass(frozen=True)
class Kind:
    """What came in, so that results can be the same: pickles, and holds no data."""

    library: str  # "numpy", "torch", "cupy", "pandas" or "xarray"
    dtype: str
    device: str = "cpu"
    systems: bool = False  # whether there was an axis of systems
    trajectories: bool = False  # whether a list came in
    labels: tuple[Any, ...] = ()  # pandas: columns; xarray: dims, and coordinates of the features

    def give(self, values: Any, ahead: Sequence[int] | None = None) -> Any:
        """States (systems, k, features), or (systems, features), as the kind that came in.

        Real data have real states. Without systems the first axis goes. ahead: rows after the last
        that the states are of; None: they are the rows themselves.
        """
        values = values if self.systems else values[0]
        if self.library == "numpy":
            return values.astype(self.dtype, copy=False)
        if self.library == "torch":
            import torch

            kind = getattr(torch, self.dtype)
            if isinstance(values, torch.Tensor):
                return values.to(kind)
            return torch.from_numpy(np.ascontiguousarray(values)).to(kind).to(self.device)
        if self.library == "cupy":
            import cupy

            return cupy.asarray(values).astype(self.dtype, copy=False)
        if self.library == "pandas":
            import pandas

            columns, index = self.labels
            values = values.astype(self.dtype, copy=False)
            if values.ndim == 1:
                return pandas.Series(values, index=columns)
            if index is not None and ahead is not None:
                index = continued(index, ahead)
            return pandas.DataFrame(values, columns=columns, index=index)
        import xarray

        dims, coordinates = self.labels
        sizes = len(dims) - (values.ndim < len(dims))
        names = dims if sizes == len(dims) else (*dims[:-2], dims[-1])
        fit = {name: coordinates[name] for name in names if name in coordinates}
        time = dims[-2]
        if ahead is not None and time in fit:
            later = continued(self.times, ahead)
            fit = {**fit, time: later} if later is not None else fit
            if later is None:
                del fit[time]
        return xarray.DataArray(values.astype(self.dtype, copy=False), dims=names, coords=fit)

    @property
    def times(self) -> Any:
        """The index of the rows as pandas has it, or None."""
        if self.library == "pandas" and self.labels:
            return self.labels[1]
        if self.library == "xarray" and self.labels and self.labels[0][-2] in self.labels[1]:
            import pandas

            return pandas.Index(self.labels[1][self.labels[0][-2]])
        return None

    def of_systems(self) -> Kind:
        """The same with an axis of systems, for which pandas and xarray have no labels: NumPy."""
        plain = "numpy" if self.library in ("pandas", "xarray") else self.library
        return replace(self, systems=True, trajectories=False, labels=(), library=plain)

    def without_times(self) -> Kind:
        """The same, of rows whose times are not known."""
        if self.library == "pandas" and self.labels:
            return replace(self, labels=(self.labels[0], None))
        if self.library == "xarray" and self.labels:
            dims, coordinates = self.labels
            some = {name: one for name, one in coordinates.items() if name != dims[-2]}
            return replace(self, labels=(dims, some))
        return self

    def place(self, values: npt.NDArray[Any]) -> Any:
        """NumPy numbers on the device."""
        if self.library == "torch":
            import torch

            return torch.from_numpy(values).to(self.device)
        import cupy

        return cupy.asarray(values)

    def give_small(self, values: npt.NDArray[Any]) -> Any:
        """Numbers about the systems (systems, …), such as eigenvalues: torch and CuPy as such."""
        values = values if self.systems else values[0]
        single = self.dtype in ("float32", "complex64")
        if single and values.dtype.kind in "fc":
            values = values.astype(np.complex64 if values.dtype.kind == "c" else np.float32)
        if self.library == "torch":
            import torch

            array = np.asarray(values)
            return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape)).to(
                self.device
            )
        if self.library == "cupy":
            import cupy

            return cupy.asarray(values)
        return values


class Series(NamedTuple):
    """Series of one length, or trajectories of one system end to end, with what they came as."""

    array: Any  # (systems, time, features) float32/64 or complex64/128, of any library
    lengths: tuple[int, ...]  # of the trajectories that lie end to end along time
    kind: Kind
    device: str  # "cpu" or "cuda"
    step: int  # numbers from one system to the next: windows overlap; a system is C-contiguous

    @property
    def starts(self) -> list[int]:
        """Where each trajectory begins."""
        return [int(at) for at in np.cumsum((0, *self.lengths[:-1]))]

    @property
    def is_complex(self) -> bool:
        return "complex" in arrays.dtype_name(self.array)

    def check_finite(self) -> None:
        """ValueError for NaN and infinities, with their place."""
        _check_finite(self.array, "X", self.kind.systems)

    def warn_if_uneven(self, name: str = "X", stacklevel: int = 4) -> None:
        """A warning where pandas' or xarray's times say that rows are not one step apart."""
        if self.kind.times is not None:
            warn_if_uneven(self.kind.times, name, stacklevel)

    def part(self, low: int, high: int) -> Series:
        """Systems low .. high - 1."""
        return self._replace(array=self.array[low:high])

    def in_range(self) -> tuple[Series, FloatArray]:
        """The systems, those whose squares are not in range by a power of two; and these (S,)."""
        one = np.ones(len(self.array))
        if arrays.dtype_name(self.array) not in ("float64", "complex128"):
            return self, one
        x = self.array.real if self.is_complex else self.array
        parts = [x, self.array.imag] if self.is_complex else [x]
        if isinstance(x, np.ndarray):
            peaks = [np.maximum(part.max(axis=(1, 2)), -part.min(axis=(1, 2))) for part in parts]
        else:
            flat = [abs(part).reshape(len(part), -1) for part in parts]
            peaks = [
                arrays.host(one.amax(1) if hasattr(one, "amax") else one.max(1)) for one in flat
            ]
        peak = np.maximum.reduce(peaks)
        bad = (peak > LARGEST) | ((peak < 1.0 / LARGEST) & (peak > 0.0))
        if not bad.any():
            return self, one
        one[bad] = np.ldexp(1.0, np.frexp(peak[bad])[1])
        scale = one if isinstance(x, np.ndarray) else arrays.memory(x).upload(one)
        array = self.array / scale[:, None, None]
        n, m = (int(size) for size in array.shape[1:])
        return self._replace(array=array, step=n * m), one

    def last(self, count: int) -> Series:
        """The newest snapshots of every system."""
        array = self.array[:, int(self.array.shape[1]) - count :]
        return self._replace(array=array, lengths=(count,))

    def differences(self) -> Series:
        """d_t = x_{t+1} - x_t of every system, in one new array."""
        array = self.array[:, 1:] - self.array[:, :-1]
        n, m = (int(size) for size in array.shape[1:])
        return self._replace(array=array, lengths=(n,), step=n * m)

    def windows(self, window: int, step: int) -> Series:
        """Windows of the one series as systems, without a copy."""
        n, m = (int(size) for size in self.array.shape[1:])
        count = (n - window) // step + 1
        view = strided(self.array, (count, window, m), (step * m, m, 1))
        return Series(view, (window,), self.kind.of_systems(), self.device, step * m)


def read(value: Any, name: str = "X", finite: bool = True) -> Series:
    """``value`` as a `Series`, without a copy where it is contiguous numbers already.

    Raises TypeError or ValueError for what is no series, NaN or infinities (with their place),
    trajectories of different widths, and systems of different lengths. ``finite=False`` leaves
    NaN and infinities to `Series.check_finite`.
    """
    if isinstance(value, (list, tuple)) and value and all(np.ndim(item) >= 2 for item in value):
        return _trajectories(value, name)
    array, kind = _plain(value, name)
    if array.ndim not in (2, 3):
        raise ValueError(
            f"{name} has {array.ndim} dimension{'s' * (array.ndim != 1)}, shape "
            f"{tuple(array.shape)}; (time, features) or (systems, time, features) is needed. "
            "Expected 2D array, got another. Reshape your data: x.reshape(-1, 1) is a series of "
            "one feature (of a pandas Series x.to_frame()), x.reshape(1, -1) one snapshot"
        )
    systems = array.ndim == 3
    array = array if systems else array[None]
    if array.shape[0] == 0:
        raise ValueError(f"{name} has 0 systems (shape={tuple(array.shape)}); at least 1 is needed")
    if 0 in array.shape:
        what = "sample" if array.shape[1] == 0 else "feature"
        raise ValueError(
            f"Found array with 0 {what}(s) (shape={tuple(array.shape[1 - systems :])}) while a "
            f"minimum of 1 is required: {name} is (time, features) or (systems, time, features)"
        )
    kind = Kind(kind.library, kind.dtype, kind.device, systems, False, kind.labels)
    if finite:
        _check_finite(array, name, systems)
    if not systems:
        checks.warn_if_transposed(array[0], name)
    device = "cpu" if isinstance(array, np.ndarray) else arrays.where(array).split()[0].lower()
    array = _contiguous(array)
    n, m = (int(size) for size in array.shape[1:])
    return Series(array, (n,), kind, "cuda" if device == "cuda" else "cpu", n * m)


def _trajectories(items: Sequence[Any], name: str) -> Series:
    each = [read(item, f"{name}[{k}]") for k, item in enumerate(items)]
    first = each[0]
    for k, one in enumerate(each):
        if one.kind.systems:
            raise ValueError(
                f"{name}[{k}] has shape {tuple(one.array.shape)}; a trajectory of a list is (time, "
                "features). Systems of one length go into one 3-D array, and systems of different "
                "lengths are fitted one by one"
            )
        if one.array.shape[2] != first.array.shape[2]:
            raise ValueError(
                f"{name}[{k}] has {one.array.shape[2]} features, {name}[0] has "
                f"{first.array.shape[2]}; trajectories of one system have the same"
            )
        if one.kind.library != first.kind.library or one.kind.dtype != first.kind.dtype:
            raise TypeError(
                f"{name}[{k}] is {one.kind.library} of {one.kind.dtype}, {name}[0] "
                f"{first.kind.library} of {first.kind.dtype}; give all trajectories as one kind"
            )
    if first.device == "cpu":
        joined: Any = np.concatenate([one.array for one in each], axis=1)
    else:
        library = sys.modules[type(first.array).__module__.partition(".")[0]]
        joined = library.concatenate([one.array for one in each], 1)
    lengths = tuple(int(one.array.shape[1]) for one in each)
    for k, one in enumerate(each):
        one.warn_if_uneven(f"{name}[{k}]", 6)
    kind = replace(first.kind.without_times(), trajectories=True)
    return Series(joined, lengths, kind, first.device, int(joined.shape[1] * joined.shape[2]))


def _plain(value: Any, name: str) -> tuple[Any, Kind]:
    """The numbers, and what they were."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype not in ("float32", "float64", "complex64", "complex128"):
            raise TypeError(f"{name} has dtype {dtype}; float32/64 or complex64/128 is needed")
        if value.device.type not in ("cpu", "cuda"):
            raise ValueError(f"{name} lies on {value.device}; cpu and cuda are supported")
        if value.layout != torch.strided:
            raise TypeError(f"{name} is a {value.layout} tensor; a dense one is needed")
        plain = value.detach().resolve_conj().resolve_neg()
        kind = Kind("torch", dtype, str(value.device))
        return (plain.numpy() if value.device.type == "cpu" else plain), kind
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(value, cupy.ndarray):
        if value.dtype.char not in "fdFD":
            raise TypeError(f"{name} has dtype {value.dtype}; float32/64 or complex64/128 needed")
        return value, Kind("cupy", value.dtype.name, f"cuda:{value.device.id}")
    xarray = sys.modules.get("xarray")
    if xarray is not None and isinstance(value, xarray.DataArray):
        array = _numbers(value.values, name)
        coordinates = {
            str(dim): np.asarray(value.coords[dim]) for dim in value.dims if dim in value.coords
        }
        dims = tuple(map(str, value.dims))
        if "time" in dims and "time" not in dims[-2:-1]:
            raise ValueError(
                f"{name} has the dimensions {dims}; (time, features) or (systems, time, features) "
                "is needed: transpose it, X.transpose(..., 'time', NAME), NAME that of the features"
            )
        labels = (dims, coordinates)
        return array, Kind("xarray", array.dtype.name, labels=labels)
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(value, pandas.DataFrame):
        plain = value.to_numpy()
        if plain.dtype.kind == "O":  # nullable types: what is missing is NaN
            plain = value.to_numpy(na_value=np.nan)
        array = _numbers(plain, name)
        return array, Kind("pandas", array.dtype.name, labels=(value.columns, value.index))
    if hasattr(value, "toarray") or type(value).__module__.startswith("scipy.sparse"):
        raise TypeError(f"{name} is sparse; {ACCEPTED} is needed: pass X.toarray()")
    if value is None or isinstance(value, (str, bytes, dict)):
        raise TypeError(f"{name} is {reprlib.repr(value)}; {ACCEPTED} is needed")
    array = _numbers(value, name)
    return array, Kind("numpy", array.dtype.name)


def _numbers(value: Any, name: str) -> npt.NDArray[Any]:
    """A NumPy array of float32, float64, complex64 or complex128."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; fill or leave out what is masked")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(
            f"{name} cannot be made an array: {error}. Systems of different lengths do not fit "
            "into one array; fit them one by one, or give trajectories of one system as a list"
        ) from error
    if array.dtype.kind in "OUS":
        try:
            return array.astype(np.float64)
        except TypeError as error:
            raise TypeError(
                f"{name}: {error}; argument must be a string or a real number"
            ) from error
        except ValueError as error:
            several = array.dtype.kind == "O" and any(np.ndim(one) for one in array.flat)
            hint = (
                ". Systems of different lengths do not fit into one array; fit them one by one, or "
                "give trajectories of one system as a list"
            )
            raise ValueError(
                f"{name} holds what is no number: {error}{hint if several else ''}"
            ) from error
    if array.dtype.kind in "iub" or array.dtype.char == "e":
        return array.astype(np.float64)
    if array.dtype.char not in "fdFD":
        if array.dtype.kind in "fc":  # long double
            return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
        raise TypeError(f"{name} has dtype {array.dtype}; {ACCEPTED} of numbers is needed")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _check_finite(array: Any, name: str, systems: bool) -> None:
    if isinstance(array, np.ndarray):
        with np.errstate(over="ignore", invalid="ignore"):
            fine = bool(np.isfinite(array.sum()))  # one pass, no mask
        if fine or np.isfinite(array).all():
            return
        bad = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        value = array[bad]
    else:
        if bool((abs(array) < float("inf")).all()):
            return
        bad = tuple(int(i) for i in np.argwhere(~np.isfinite(arrays.host(array)))[0])
        value = arrays.host(array[bad[0], bad[1]])[bad[2]]
    place = f"row {bad[1]} (time), feature {bad[2]}"
    place = f"system {bad[0]}, {place}" if systems else place
    word = "NaN" if value != value else "infinity"
    raise ValueError(f"{name} contains {word}: {value} at {place}; nothing was fitted")


def _contiguous(array: Any) -> Any:
    if isinstance(array, np.ndarray):
        return np.ascontiguousarray(array)
    if hasattr(array, "contiguous"):
        return array.contiguous()
    return sys.modules["cupy"].ascontiguousarray(array)


def strided(array: Any, shape: tuple[int, ...], steps: tuple[int, ...]) -> Any:
    """A view whose axes are ``steps`` numbers apart, of any library's contiguous array."""
    if isinstance(array, np.ndarray):
        bytes_apart = tuple(step * array.itemsize for step in steps)
        return np.lib.stride_tricks.as_strided(array, shape, bytes_apart, writeable=False)
    if hasattr(array, "as_strided"):
        return array.as_strided(shape, steps)
    import cupy

    apart = tuple(step * array.itemsize for step in steps)
    return cupy.lib.stride_tricks.as_strided(array, shape, apart)
