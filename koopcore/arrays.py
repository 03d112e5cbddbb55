"""The only file that tells NumPy, torch and CuPy apart: a view in, the same kind of array out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

# Names by dtype: NumPy takes 3 µs to find one.
_NAMES: dict[Any, str] = {np.dtype(name): name for name in ("float32", "float64")}
_NATIVE = frozenset(_NAMES)
ACCEPTED = "a NumPy array, a torch tensor or a CuPy array of float32 or float64"


class ArrayView(NamedTuple):
    """Someone's array, looked at without a copy."""

    device: str  # "cpu" or "cuda"
    array: npt.NDArray[Any]  # shares the caller's memory; on CUDA the array that was given
    restore: Callable[[npt.NDArray[Any]], Any]  # a result, as the kind of array that came in


def view(value: Any, name: str) -> ArrayView:
    """``value`` as an `ArrayView`; a TypeError that says what is accepted for anything else."""
    if type(value) is np.ndarray and value.dtype in _NATIVE:
        return ArrayView("cpu", value, _as_it_is)
    if isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray):
        if value.dtype.char not in "fd":
            _check_dtype(value.dtype.name, name)
        if not value.dtype.isnative:
            raise TypeError(f"{name} is stored in the other byte order ({value.dtype}); convert it")
        plain = value if type(value) is np.ndarray else np.asarray(value)  # a matrix indexes oddly
        return ArrayView("cpu", plain, _as_it_is)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        _check_dtype(str(value.dtype).removeprefix("torch."), name)
        if value.layout != torch.strided:
            raise TypeError(f"{name} is a {value.layout} tensor; a dense one is needed")
        plain = value.detach().resolve_neg()  # a copy where a negation is pending
        if value.device.type == "cpu":
            return ArrayView("cpu", plain.numpy(), torch.from_numpy)
        return ArrayView(value.device.type, plain, _as_it_is)
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(value, cupy.ndarray):
        _check_dtype(value.dtype.name, name)
        return ArrayView("cuda", value, _as_it_is)
    raise TypeError(f"{name} is a {type(value).__name__}; {ACCEPTED} is needed")


class DeviceMemory(Protocol):
    """Arrays of one library on one CUDA device, and the stream that is current there."""

    number: int

    @property
    def stream(self) -> int:
        """The address of the stream on which the caller's work is queued."""

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """A new array; MemoryError with the bytes that are missing."""

    def upload(self, array: npt.NDArray[Any]) -> Any:
        """A copy of a NumPy array on the device; waits until it is there."""

    def download(self, array: Any) -> npt.NDArray[Any]:
        """A copy as NumPy array; waits for the stream."""

    def address(self, array: Any) -> int:
        """Where the first element is."""

    def strides(self, array: Any) -> tuple[int, ...]:
        """Bytes from one element to the next, per axis."""

    def keep(self, array: Any) -> None:
        """The current stream uses ``array``: its memory is not reused before that is done."""


class TorchMemory:
    """`DeviceMemory` of torch tensors."""

    def __init__(self, device: Any) -> None:
        import torch

        self._torch, self._device = torch, device
        self.number = device.index or 0

    @property
    def stream(self) -> int:
        if self._device.type != "cuda":
            return 0
        return int(self._torch.cuda.current_stream(self._device).cuda_stream)

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        kind = getattr(self._torch, dtype)
        try:
            return self._torch.empty(shape, dtype=kind, device=self._device)
        except self._torch.OutOfMemoryError as error:
            raise _missing(shape, kind.itemsize, str(self._device)) from error

    def upload(self, array: npt.NDArray[Any]) -> Any:
        writeable = array if array.flags.writeable else array.copy()
        return self._torch.from_numpy(writeable).to(self._device)

    def download(self, array: Any) -> npt.NDArray[Any]:
        host: npt.NDArray[Any] = array.detach().cpu().numpy()
        return host

    def address(self, array: Any) -> int:
        return int(array.data_ptr())

    def strides(self, array: Any) -> tuple[int, ...]:
        width = array.element_size()
        return tuple([step * width for step in array.stride()])

    def keep(self, array: Any) -> None:
        if self._device.type == "cuda":
            array.record_stream(self._torch.cuda.current_stream(self._device))


class CupyMemory:
    """`DeviceMemory` of CuPy arrays."""

    def __init__(self, number: int) -> None:
        self._cupy = sys.modules["cupy"]
        self.number = number

    @property
    def stream(self) -> int:
        with self._cupy.cuda.Device(self.number):
            return int(self._cupy.cuda.get_current_stream().ptr)

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        try:
            with self._cupy.cuda.Device(self.number):
                return self._cupy.empty(shape, dtype=dtype)
        except self._cupy.cuda.memory.OutOfMemoryError as error:
            width = np.dtype(dtype).itemsize
            raise _missing(shape, width, f"CUDA device {self.number}") from error

    def upload(self, array: npt.NDArray[Any]) -> Any:
        with self._cupy.cuda.Device(self.number):
            copy = self._cupy.asarray(array)
            self._cupy.cuda.get_current_stream().synchronize()
        return copy

    def download(self, array: Any) -> npt.NDArray[Any]:
        with self._cupy.cuda.Device(self.number):
            host: npt.NDArray[Any] = self._cupy.asnumpy(array)
        return host

    def address(self, array: Any) -> int:
        return int(array.data.ptr)

    def strides(self, array: Any) -> tuple[int, ...]:
        return tuple(array.strides)

    def keep(self, array: Any) -> None:
        """CuPy's pools are per stream: what is freed on one stream is reused on that one only."""


def memory(array: Any) -> DeviceMemory:
    """The `DeviceMemory` that ``array``, a CUDA tensor of torch or an array of CuPy, lies in."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return TorchMemory(array.device)
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(array, cupy.ndarray):
        return CupyMemory(int(array.device.id))
    raise TypeError(f"a {type(array).__name__} is not in the memory of a CUDA device")


def any_memory() -> DeviceMemory:
    """The memory of the current CUDA device, of torch where that is in use, else of CuPy."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return TorchMemory(torch.device("cuda", torch.cuda.current_device()))
    if "cupy" in sys.modules:
        return CupyMemory(int(sys.modules["cupy"].cuda.Device().id))
    raise RuntimeError(
        "neither torch nor cupy is imported with a CUDA device; one of them is needed"
    )


def where(array: Any) -> str:
    """The place of an array in the words of an error: ``CUDA device 1`` or ``the CPU``."""
    if isinstance(array, np.ndarray):
        return "the CPU"
    device = getattr(array, "device", None)
    kind = getattr(device, "type", "cuda")
    if kind != "cuda":
        return "the CPU" if kind == "cpu" else str(device)
    return f"CUDA device {memory(array).number}"


def dtype_name(array: Any) -> str:
    """``float32`` for any library's float32."""
    dtype = array.dtype
    return _NAMES.get(dtype) or str(dtype).removeprefix("torch.")


def empty(shape: tuple[int, ...], like: Any) -> Any:
    """A new array of the library, dtype and device of ``like``."""
    if isinstance(like, np.ndarray):
        return np.empty(shape, dtype=like.dtype)
    return memory(like).empty(shape, dtype_name(like))


def host(array: Any) -> npt.NDArray[Any]:
    """``array`` as a NumPy array: itself, or a copy of what is on a device."""
    return array if isinstance(array, np.ndarray) else memory(array).download(array)


class Resident:
    """A matrix that stays on the device until NumPy asks for it; then its copy is kept.

    Everything that NumPy does with arrays works: it is turned into one where it is used.
    """

    def __init__(self, array: Any, of: DeviceMemory) -> None:
        self.array, self._memory = array, of
        self.number, self.stream = of.number, of.stream  # where it was made
        self.shape = tuple(array.shape)
        self._host: npt.NDArray[Any] | None = None

    def numpy(self) -> npt.NDArray[Any]:
        """The values on the CPU."""
        if self._host is None:
            self._host = self._memory.download(self.array)
        return self._host

    def sum(self) -> float:
        """The sum, taken on the device: one number is copied."""
        return float(self.array.sum())

    def min(self, initial: float | None = None) -> float:
        """The smallest value, taken on the device: one number is copied."""
        least = float(self.array.min()) if 0 not in self.shape else np.inf
        return least if initial is None else min(least, initial)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        values = self.numpy()
        return values.astype(dtype) if dtype is not None and values.dtype != dtype else values

    def __getitem__(self, index: Any) -> Any:
        return self.numpy()[index]

    def __eq__(self, other: object) -> Any:
        return self.numpy() == other

    __hash__ = None  # type: ignore[assignment]


def _as_it_is(result: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return result


def _missing(shape: tuple[int, ...], width: int, place: str) -> MemoryError:
    needed = width * int(np.prod(shape, dtype=np.int64))
    return MemoryError(
        f"{place} has not the {needed:,} bytes that an array of shape {shape} needs; use a shorter "
        "window, fewer horizons at once, or a coarser partition"
    )


def _check_dtype(dtype: str, name: str) -> None:
    if dtype.startswith("complex"):
        raise TypeError(
            f"{name} has dtype {dtype}; float32 and float64 are accepted: give real and imaginary "
            "parts as parameters of their own, and put both of a parameter into one group, as in "
            "np.concatenate([x.real, x.imag], axis=1) or torch.cat([x.real, x.imag], dim=1)"
        )
    if dtype not in ("float32", "float64"):
        raise TypeError(
            f"{name} has dtype {dtype}; float32 and float64 are accepted (convert it first: "
            "predictions come back in the dtype of the snapshots)"
        )
