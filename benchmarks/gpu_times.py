"""One timing on a GPU, in a process of its own: python benchmarks/gpu_times.py ITEM

Prints a line of JSON: seconds of a call by CUDA events around replays of a recorded graph, and of
the same call from Python by the wall clock; the error against the reference backend on some groups;
a note where something could not be done. `gpu_report.py` runs them one after another.

With ``--rehearse MODULE`` the same runs on a few groups under the host emulation of the tests:
seconds mean nothing then, but the first run on a GPU is not the first run of this file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import koopcore as kc
from koopcore.backends.protocol import Snapshots
from koopcore.partition.layout import Layout
from koopcore.partition.partition import Partition

ROOT = Path(__file__).resolve().parents[1]
RATES = (0.99, 0.95, 0.8)
LONGEST = 1.5  # seconds that the timed calls of one way take, about
SAMPLE = 256  # groups of linalg.pinv, which loops over decompositions beyond 32 x 32


class Workload(NamedTuple):
    """Groups of m parameters and a window of n snapshots."""

    groups: int
    m: int
    n: int
    horizon: int = 100
    shift: int = 0  # numbers by which rows are off a multiple of 16 bytes
    strided: bool = False  # nodes are columns of a matrix, as of transposed weights
    deficient: int = 0  # so many groups stand still, and so many have a snapshot twice

    @property
    def size(self) -> int:
        """Parameters of a snapshot."""
        return self.groups * self.m

    @property
    def twice(self) -> slice:
        """The groups that have a snapshot twice; those that stand still are between them."""
        if not self.deficient:
            return slice(0, 0)
        apart = max(4, self.groups // self.deficient)
        return slice(apart // 2, None, apart)

    @property
    def floor_bytes(self) -> int:
        """What any method moves: one read of the window, one write of the prediction, float32."""
        return 4 * self.size * (self.n + 1)


NAMED = {
    "W1": Workload(10_000, 65, 16),
    "W2": Workload(100_000, 257, 24),
    "W3": Workload(134_225, 927, 16),
}
CASES = {
    "W1 deficient": NAMED["W1"]._replace(deficient=100),
    "W1 few deficient": NAMED["W1"]._replace(deficient=3),
    "W1 misaligned": NAMED["W1"]._replace(shift=1),
    "W2 misaligned": NAMED["W2"]._replace(shift=1),
    "strided": Workload(3072, 768, 16, strided=True),
    "W2 T=1000": NAMED["W2"]._replace(horizon=1000),
}


class Gpu:
    """A card that torch sees."""

    def __init__(self) -> None:
        import torch

        if not torch.cuda.is_available():
            raise SystemExit("gpu_times: this torch sees no CUDA device")
        from koopcore.backends import backend_for

        self.torch, self.native = torch, backend_for("cuda", "native_cuda")
        self.generator = torch.Generator(device="cuda").manual_seed(0)
        self.l2 = int(torch.cuda.get_device_properties(0).L2_cache_size)

    def random(self, *shape: int) -> Any:
        return self.torch.randn(*shape, device="cuda", generator=self.generator)

    def empty(self, *shape: int) -> Any:
        return self.torch.empty(*shape, device="cuda")

    def host(self, array: Any) -> Any:
        return array.cpu().numpy()

    def seconds(self, calls: list[Callable[[], Any]]) -> dict[str, float]:
        """Of one of ``calls``, which are for buffers in rotation: recorded, and from Python."""
        side = self.torch.cuda.Stream()
        with self.torch.cuda.stream(side):
            for _ in range(2):
                for call in calls:
                    call()
            side.synchronize()
            found = {"python": self._wall(calls, side)}
            graph = self.torch.cuda.CUDAGraph()
            try:
                with self.torch.cuda.graph(graph, stream=side):
                    for call in calls:
                        call()
            except RuntimeError:  # not everybody's work can be recorded
                self.torch.cuda.synchronize()
                return found
            graph.replay()
            side.synchronize()
            found["graph"] = self._events(graph.replay, side) / len(calls)
        return found

    def _wall(self, calls: list[Callable[[], Any]], side: Any) -> float:
        def once() -> float:
            started = time.perf_counter()
            for call in calls:
                call()
            side.synchronize()
            return time.perf_counter() - started

        return repeated(once) / len(calls)

    def _events(self, run: Callable[[], Any], side: Any) -> float:
        def once() -> float:
            first, last = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record(side)
            run()
            last.record(side)
            last.synchronize()
            return float(first.elapsed_time(last)) / 1e3

        return repeated(once)

    def facts(self) -> dict[str, Any]:
        properties = self.torch.cuda.get_device_properties(0)
        return {
            "torch": self.torch.__version__,
            "device": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": self.l2,
            "backends": [backend._asdict() for backend in kc.available_backends()],
        }


class Rehearsal:
    """The host emulation of the tests, with a few groups."""

    def __init__(self, module: str) -> None:
        sys.path.insert(0, str(ROOT / "tests"))
        import emulated_cuda

        from koopcore import arrays

        self.native = emulated_cuda.backend(emulated_cuda.load(Path(module).stem, Path(module)))
        arrays.memory = arrays.any_memory = emulated_cuda.host_memory
        arrays.where = lambda array: "CUDA device 0"
        self.generator, self.l2 = np.random.default_rng(0), 0

    def random(self, *shape: int) -> Any:
        return self.generator.normal(size=shape).astype(np.float32)

    def empty(self, *shape: int) -> Any:
        return np.empty(shape, dtype=np.float32)

    def host(self, array: Any) -> Any:
        return np.array(array)

    def seconds(self, calls: list[Callable[[], Any]]) -> dict[str, float]:
        started = time.perf_counter()
        for call in calls:
            call()
        return {"python": (time.perf_counter() - started) / len(calls)}

    def facts(self) -> dict[str, Any]:
        return {"device": "the host emulation", "l2_bytes": self.l2}


def repeated(once: Callable[[], float]) -> float:
    """The median of as many runs as there is time for, by the first one."""
    first = once()
    return statistics.median(once() for _ in range(max(3, min(50, int(LONGEST / first)))))


def partition(of: Workload) -> Partition:
    """Groups of m parameters side by side, or in columns of a matrix."""
    if not of.strided:
        return Partition.nodes(Layout.from_shapes([(of.groups, of.m, False)]))
    columns = (range(g, of.size, of.groups) for g in range(of.groups))
    return Partition.groups(of.size, columns)


def ring(device: Any, of: Workload) -> Any:
    """Decaying motions with noise of float32 size: (n, size); rows are padded as rings of training
    are, unless ``shift`` is not 0."""
    width = -(-(of.size + of.shift) // 32) * 32
    whole = device.empty(of.n, width + (1 if of.shift else 0))
    rows = whole[:, of.shift : of.shift + of.size]
    fixed, *modes = (device.random(of.size) for _ in range(4))
    for k in range(of.n):
        rows[k] = fixed + 1e-4 * device.random(of.size)
        for rate, mode in zip(RATES, modes, strict=True):
            rows[k] += 0.1 * rate**k * mode
    if of.deficient:
        by_group = rows.reshape(of.n, of.groups, of.m)
        by_group[:, :: of.twice.step] = by_group[0, :: of.twice.step]
        by_group[4, of.twice] = by_group[3, of.twice]
    return rows


def buffers(device: Any, of: Workload) -> list[Any]:
    """As many windows as fill the L2 cache four times, so that none is found there."""
    count = max(1, min(8, -(-4 * device.l2 // of.floor_bytes)))
    return [ring(device, of) for _ in range(count)]


def error(device: Any, window: Any, out: Any, of: Workload, part: Partition) -> float:
    """Of some groups' predictions against the reference, as a share of the movement: of those that
    are deficient by themselves too, whichever is larger."""
    some = np.linspace(1, part.n_groups - 1, 12).astype(np.int64)
    twice = np.arange(part.n_groups)[of.twice][:4]
    return max(
        error_of(device, window, out, of, part, np.unique(x)) for x in (some, twice) if len(x)
    )


def error_of(
    device: Any, window: Any, out: Any, of: Workload, part: Partition, chosen: Any
) -> float:
    """Of the predictions of these groups."""
    columns = part.index_matrix(chosen)
    host = np.stack([device.host(window[k])[columns.ravel()] for k in range(of.n)])
    groups = Partition.nodes(Layout.from_shapes([(len(chosen), of.m, False)]))
    expected = kc.fit(host, groups, "affine", backend="reference").predict(of.horizon)
    found = device.host(out)[columns.ravel()]
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected - host[-1]))


def endpoint(device: Any, of: Workload) -> dict[str, Any]:
    """koopcore's endpoint as `endpoint` takes it, by stages, and in one pass where that fits."""
    part, native = partition(of), device.native
    windows = [Snapshots(x, np.arange(of.n)) for x in buffers(device, of)]
    ways = {"endpoint": native.endpoint, "stages": native.endpoint_in_stages}
    if native.fits_one_pass(windows[0], part, [of.horizon]):
        ways["one pass"] = native.endpoint_in_one_pass
    result: dict[str, Any] = {"seconds": {}, "floor_bytes": of.floor_bytes}
    out = device.empty(1, of.size)
    for name, way in ways.items():
        calls = [lambda x=x, way=way: way(x, part, True, [of.horizon], out) for x in windows]
        calls[0]()
        result[f"error {name}"] = error(device, windows[0].array, out[0], of, part)
        result["seconds"][name] = device.seconds(calls)
    return result


def stages(device: Any, of: Workload) -> dict[str, Any]:
    """Every launch of the stages by itself: what a model of their cost is made from."""
    from koopcore.backends.native_cuda.launch import Launch
    from koopcore.backends.native_cuda.queue import queue_stages

    part = partition(of)
    window = Snapshots(ring(device, of), np.arange(of.n))
    out = device.empty(1, of.size)
    on = Launch(device.native._cuda, window, part)
    recorded: list[tuple[str, tuple[Any, ...]]] = []
    real = on.module

    class Recorder:
        def __getattr__(self, name: str) -> Any:
            found = getattr(real, name)
            if name not in {"gram", "solve", "rollout", "roll_deficient", "combine"}:
                return found
            return lambda *given: (recorded.append((name, given)), found(*given))[1]

    on.module = Recorder()
    queue_stages(on, True, [of.horizon], 0, on.output(out, 1), ())
    seconds = {}
    for name, given in recorded:
        # The stream is the last field of the last argument: the one that is timed.
        call = getattr(real, name)

        def run(call: Any = call, given: Any = given) -> None:
            call(*given[:-1], (on.number, on.memory.stream))

        seconds[name] = device.seconds([run])
    return {"seconds": seconds, "floor_bytes": of.floor_bytes}


def costs(device: Any, shapes: list[Workload]) -> dict[str, Any]:
    """The constants of the model that decides between stages and one pass, from both ways timed."""
    from koopcore.backends.native_cuda.cost import Timing, fitted

    native, timings = device.native, []
    for of in shapes:
        part, out = partition(of), device.empty(1, of.size)
        window = Snapshots(ring(device, of), np.arange(of.n))

        def seconds(way: Any, given: Any = (window, part, True, [of.horizon], out)) -> float:
            found = device.seconds([lambda: way(*given)])
            return float(found["graph"] if "graph" in found else found["python"])

        both = seconds(native.endpoint_in_stages), seconds(native.endpoint_in_one_pass)
        timings.append(Timing(of.groups, of.m, of.n, of.horizon, 4, *both))
    found, misfit = fitted(timings)
    return {
        "costs": found._asdict(),
        "misfit": misfit,
        "timings": [timing._asdict() for timing in timings],
    }


def copy(device: Any, numbers: int) -> dict[str, Any]:
    """The floor: a copy, reads and writes counted."""
    source, target = device.random(numbers), device.empty(numbers)

    def run() -> None:
        target[:] = source

    return {"seconds": {"copy": device.seconds([run])}, "floor_bytes": 8 * numbers}


def capture(device: Any, tensors: int, numbers: int) -> dict[str, Any]:
    """148 tensors, as of GPT-2 small, into a row of the ring."""
    from koopcore.backends.native_cuda.tensors import TensorTable

    given = [device.random(numbers) for _ in range(tensors)]
    row = device.empty(tensors * numbers)
    table = TensorTable(device.native._cuda, given, range(0, tensors * numbers, numbers))
    seconds = device.seconds([lambda: table.capture(row)])
    return {"seconds": {"capture": seconds}, "floor_bytes": 8 * tensors * numbers}


def peers(device: Any, of: Workload, which: str) -> dict[str, Any]:
    """What torch offers for the same: all in float64 on differences, as the engine's sums are."""
    import torch

    from koopcore.lab.studies.peers.powers import summed

    part, rows = partition(of), ring(device, of)
    x = torch.as_tensor(rows)

    def run() -> Any:
        by_group = x.reshape(of.n, of.groups, of.m)
        steps = by_group.diff(dim=0).permute(1, 2, 0).double()
        columns = steps[:, :, :-1]
        if which == "cholesky":
            products = steps[:, :, :-1].mT @ steps
            factor, _ = torch.linalg.cholesky_ex(products[:, :, :-1])
            a = torch.cholesky_solve(products[:, :, -1:], factor)
            small = torch.diag_embed(torch.ones_like(a[:, 1:, 0]), offset=-1)
            small[:, :, -1:] = a
            start = a
        else:  # the papers' A = F'F⁺ by F⁺F' of n x n: A^j F' = F' (F⁺F')^j
            inverse = torch.linalg.pinv(columns)
            small, start = inverse @ steps[:, :, 1:], inverse @ steps[:, :, -1:]
        weights = summed(small, start, of.horizon)
        return (x[-1] + (steps[:, :, 1:] @ weights).reshape(-1)).float()

    out = run()
    return {
        "seconds": {which: device.seconds([run])},
        "floor_bytes": of.floor_bytes,
        "groups": of.groups,
        f"error {which}": error(device, rows, out, of, part),
    }


def sanitized(device: Any) -> dict[str, Any]:
    """Two small cases for compute-sanitizer: by stages with a deficient group, and in one pass."""
    errors = {}
    for name, of in {
        "stages": Workload(40, 65, 16, 20, deficient=4),
        "one pass": Workload(6, 300, 9, 20),
    }.items():
        part, window = partition(of), ring(device, of)
        out = device.empty(1, of.size)
        device.native.endpoint(Snapshots(window, np.arange(of.n)), part, True, [of.horizon], out)
        errors[f"error {name}"] = error(device, window, out[0], of, part)
    return errors


def items(rehearsed: bool) -> dict[str, Callable[[Any], dict[str, Any]]]:
    """Everything that can be timed."""

    def size(of: Workload) -> Workload:
        return of._replace(groups=12, m=min(of.m, 150)) if rehearsed else of

    few, many = (64, 8) if rehearsed else (2**28, 2**20)
    kinds = [(65, 16, 100), (257, 24, 100), (129, 8, 20), (257, 16, 1000)]
    shapes = [Workload(g, *kind) for g in (500, 5_000, 50_000) for kind in kinds]
    found: dict[str, Callable[[Any], dict[str, Any]]] = {
        "facts": lambda device: device.facts(),
        "copy": partial(copy, numbers=few),
        "capture": partial(capture, tensors=148, numbers=many),
        "costs": partial(costs, shapes=[*map(size, shapes[4:8] if rehearsed else shapes)]),
        "sanitized": sanitized,
    }
    for name, of in (NAMED | CASES).items():
        found[f"endpoint {name}"] = partial(endpoint, of=size(of))
    for name in ("W1", "W2", "W1 few deficient", "W1 deficient"):
        found[f"stages {name}"] = partial(stages, of=size((NAMED | CASES)[name]))
    for name in ("W1", "W2"):
        found[f"peer cholesky {name}"] = partial(peers, of=size(NAMED[name]), which="cholesky")
    sample = size(NAMED["W1"]._replace(groups=SAMPLE))
    found[f"peer pinv of {SAMPLE} groups of W1"] = partial(peers, of=sample, which="pinv")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("item", choices=items(False))
    parser.add_argument("--rehearse", metavar="MODULE", help="the emulated module of the tests")
    arguments = parser.parse_args()
    rehearsed = arguments.rehearse is not None
    device = Rehearsal(arguments.rehearse) if rehearsed else Gpu()
    print(json.dumps(items(rehearsed)[arguments.item](device), default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main())
