"""The snapshot rings keep the right rows in the right order, at the promised size and precision."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import emulated_cuda  # noqa: E402

from koopcore import arrays  # noqa: E402
from koopcore.backends.native_cuda.tensors import TensorTable  # noqa: E402
from koopcore.training.recording import ring as module  # noqa: E402
from koopcore.training.recording.ring import (  # noqa: E402
    DifferenceRing,
    KernelCapture,
    SnapshotRing,
)

RINGS = [SnapshotRing, DifferenceRing]
NEEDS_COMPILER = pytest.mark.skipif(emulated_cuda.COMPILER is None, reason="needs g++")


def tensors(dtype=torch.float32, seed=0):
    """Tensors of odd shapes: a matrix, a vector, a scalar, a filter bank, an empty one."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 5), (3,), (), (2, 3, 2, 2), (0, 4)]
    return [torch.randn(s, generator=generator).to(dtype) for s in shapes]


def drift(values, step):
    """A small smooth movement, the same fraction for every tensor."""
    for value in values:
        value.mul_(1.0 + 0.01 * step)


def flat(ring, values):
    row = torch.zeros(ring.size, dtype=torch.float64)
    for start, value in zip(ring.offsets, values, strict=True):
        row[start : start + value.numel()] = value.flatten().double()
    return row


@pytest.mark.parametrize("kind", RINGS)
@pytest.mark.parametrize("captures", [1, 2, 3, 4, 5, 9, 12])
def test_order_names_the_newest_rows_in_time_order(kind, captures):
    values = tensors()
    ring = kind(values, 4)
    seen = []
    for step in range(captures):
        drift(values, step)
        ring.capture()
        seen.append(flat(ring, values))
    data, order = ring.snapshots()
    assert ring.count == len(order) == min(captures, 4)
    assert ring.full == (captures >= 4)
    expected = torch.stack(seen[-4:])
    got = data[order].double()
    # float32 rows are exact copies. bfloat16 rounds a difference by 2^-8 of it at most, and error
    # feedback leaves one rounding; a difference is at most 11 % of the value: 4.3e-4 of that.
    bound = 0.0 if kind is SnapshotRing else 4.4e-4
    assert ((got - expected).abs() <= bound * expected.abs() + 1e-30).all()


@pytest.mark.parametrize("kind", RINGS)
def test_newest_is_the_last_of_the_order(kind):
    values = tensors()
    ring = kind(values, 3)
    for step in range(5):
        drift(values, step)
        ring.capture()
        data, order = ring.snapshots()
        assert torch.equal(ring.newest(), data[order[-1]])


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_rows_hold_every_parameter_dtype_exactly(dtype, expected):
    values = tensors(dtype)
    ring = SnapshotRing(values, 2)
    ring.capture()
    assert ring.dtype == expected
    copies = [torch.empty_like(v) for v in values]
    ring.write(ring.newest(), copies)
    for copy, value in zip(copies, values, strict=True):
        assert torch.equal(copy, value)


def test_tensors_of_several_dtypes_share_a_row():
    values = [torch.randn(3, dtype=torch.float64), torch.randn(2).bfloat16()]
    ring = SnapshotRing(values, 2)
    ring.capture()
    assert ring.dtype == torch.float64
    assert torch.equal(ring.newest()[:3], values[0])
    assert torch.equal(ring.newest()[32:34], values[1].double())


@pytest.mark.parametrize("kind", RINGS)
def test_padding_between_tensors_stays_zero(kind):
    values = tensors()
    ring = kind(values, 3)
    for step in range(4):
        drift(values, step)
        ring.capture()
    data, _ = ring.snapshots()
    used = torch.zeros(ring.size, dtype=torch.bool)
    for start, value in zip(ring.offsets, values, strict=True):
        assert start % 32 == 0
        used[start : start + value.numel()] = True
    assert ring.size % 32 == 0
    assert not data[:, ~used].any()


@pytest.mark.parametrize("kind", RINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blended_snapshot_is_the_mean_of_its_steps(kind, dtype):
    values = tensors(dtype)
    ring = kind(values, 3)
    seen = []
    for step in range(5):
        drift(values, step)
        ring.blend()
        seen.append(flat(ring, values))
    ring.commit()
    assert ring.count == 1
    expected = torch.stack(seen).mean(0)
    # Five float32 updates of a running mean: at most five half-ulps (6e-8 each) of the value.
    assert torch.allclose(ring.newest().double(), expected, rtol=3e-7, atol=0)


@pytest.mark.parametrize("kind", RINGS)
def test_noncontiguous_tensors_are_recorded_by_value(kind):
    base = torch.randn(4, 6)
    image = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    values = [base.t(), image]
    ring = kind(values, 2)
    ring.capture()
    assert torch.equal(ring.unflatten(ring.newest())[0], base.t())
    assert torch.equal(ring.unflatten(ring.newest())[1], image)


@pytest.mark.parametrize("kind", RINGS)
def test_capture_neither_changes_its_source_nor_builds_a_graph(kind):
    weight = torch.nn.Parameter(torch.randn(3, 3))
    before, version = weight.detach().clone(), weight._version
    ring = kind([weight], 2)
    ring.capture()
    ring.blend()
    ring.commit()
    assert torch.equal(weight, before)
    assert weight._version == version
    assert not ring.snapshots()[0].requires_grad


@pytest.mark.parametrize("kind", RINGS)
def test_clear_forgets_everything(kind):
    values = tensors()
    ring = kind(values, 3)
    ring.capture()
    ring.blend()
    ring.clear()
    assert (ring.count, ring.snapshots()[1]) == (0, [])
    with pytest.raises(ValueError, match="empty"):
        ring.newest()
    with pytest.raises(ValueError, match="without blend"):
        ring.commit()


@pytest.mark.parametrize("kind", RINGS)
@pytest.mark.parametrize("captures", [0, 1, 3, 7])
def test_saved_ring_continues_bit_identically(kind, captures):
    values = tensors()
    ring = kind(values, 4)
    for step in range(captures):
        drift(values, step)
        ring.capture()
    ring.blend()
    other = kind(tensors(seed=1), 4)
    other.load_state_dict(ring.state_dict())
    for step in range(3):
        drift(values, step)
        for each in (ring, other):
            each.blend(values)
            each.commit()
    assert ring.order == other.order if kind is SnapshotRing else ring.count == other.count
    data, order = ring.snapshots()
    again, _ = other.snapshots()
    assert torch.equal(data[order], again[order])


@pytest.mark.parametrize("kind", RINGS)
def test_saved_state_does_not_follow_later_captures(kind):
    values = tensors()
    ring = kind(values, 3)
    ring.capture()
    state = ring.state_dict()
    kept = {k: v.clone() for k, v in state.items() if isinstance(v, torch.Tensor)}
    for step in range(3):
        drift(values, step)
        ring.capture()
    for key, value in kept.items():
        assert torch.equal(state[key], value)


def test_difference_ring_takes_half_the_memory():
    values = [torch.randn(1000, 32)]
    full, half = SnapshotRing(values, 17), DifferenceRing(values, 17)
    # 16 differences of 2 bytes, an anchor and a mean of 4, against 17 rows of 4: 40 / 68.
    assert half.nbytes * 68 == full.nbytes * 40


def test_difference_ring_does_not_drift_over_many_turns():
    values = [torch.linspace(0.5, 2.0, 64)]
    ring = DifferenceRing(values, 8)
    for _ in range(500):
        values[0].mul_(0.999)
        ring.capture()
    # 500 uncorrected roundings could add up to 500 x 2^-8 of a difference (1e-3 of the value);
    # error feedback leaves one. The factor 1.1 covers float32 rounding (6e-8) of the anchor.
    error = (ring.newest() - values[0]).abs() / values[0]
    assert error.max() <= 1.1 * 1e-3 * 2**-8


def test_fixed_offsets_and_size_are_kept():
    values = [torch.ones(3), torch.full((2,), 2.0)]
    ring = SnapshotRing(values, 2, offsets=[4, 0], size=8)
    ring.capture()
    assert ring.newest().tolist() == [2, 2, 0, 0, 1, 1, 1, 0]


@pytest.mark.parametrize("kind", RINGS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([torch.ones(2)], 1), "at least 2 snapshots"),
        (([torch.ones(2)], 2.0), "at least 2 snapshots"),
        (([torch.ones(2)], True), "at least 2 snapshots"),
        (([], 4), "nothing to record"),
        (([torch.ones(2, dtype=torch.int64)], 4), "int64 cannot be extrapolated"),
        (([torch.ones(2, dtype=torch.complex64)], 4), "complex64 cannot be extrapolated"),
        (([torch.ones(2), torch.ones(2, device="meta")], 4), "cpu, meta"),
    ],
)
def test_misuse_is_refused_before_any_memory_is_taken(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(*arguments)


@pytest.mark.parametrize("kind", RINGS)
def test_a_size_that_cuts_a_tensor_off_is_refused(kind):
    with pytest.raises(ValueError, match="reach up to element 5"):
        kind([torch.ones(5)], 2, size=4)


@pytest.mark.parametrize("kind", RINGS)
def test_too_large_a_ring_says_how_large_and_what_shrinks_it(kind):
    with pytest.raises(MemoryError, match=r"needs [\d,]{16,} bytes .*smaller window.*bfloat16"):
        kind([torch.ones(1 << 20)], 1 << 30)


@pytest.mark.parametrize("change", [{"slots": 5}, {"size": 64}, {"kind": "Other"}])
@pytest.mark.parametrize("kind", RINGS)
def test_state_of_another_ring_is_refused(kind, change):
    ring = kind([torch.ones(3)], 4)
    with pytest.raises(ValueError, match="attach with the window"):
        ring.load_state_dict({**ring.state_dict(), **change})


@pytest.fixture
def tables(native, kernels, monkeypatch):
    """The tables made for rings, whose kernels the host emulation runs."""
    made = []

    def table(tensors, starts):
        made.append(TensorTable(kernels, tensors, starts))
        return made[-1]

    monkeypatch.setattr(module, "tensor_table", table)
    return made


@NEEDS_COMPILER
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_kernel_captures_what_torch_copies(tables, dtype):
    values = tensors(dtype)
    ring, expected = SnapshotRing(values, 3), SnapshotRing(values, 3)
    ring._kernel = KernelCapture(ring.tensors, ring.offsets)
    for step in range(5):
        drift(values, step)
        for each in (ring, expected):
            each.blend()
        drift(values, 1)
        for each in (ring, expected):
            each.blend()  # the mean goes on in torch
            each.commit()
    assert len(tables) == 1
    assert ring.order == expected.order
    assert torch.equal(ring.data, expected.data)


@NEEDS_COMPILER
def test_a_tensor_that_moved_is_looked_up_again_and_other_tensors_are_torchs(tables):
    values = tensors()
    ring = SnapshotRing(values, 3)
    ring._kernel = KernelCapture(ring.tensors, ring.offsets)
    ring.capture()
    values[0].data = torch.full((3, 5), 7.0)
    ring.capture()
    assert len(tables) == 2
    assert torch.equal(ring.unflatten(ring.newest())[0], torch.full((3, 5), 7.0))
    ring.capture([v.clone() for v in values])
    assert len(tables) == 2
    assert torch.equal(ring.data[ring.order[-1]], ring.data[ring.order[-2]])


def test_without_native_cuda_or_for_what_its_kernel_does_not_take_torch_copies(monkeypatch):
    assert module.tensor_table(tensors(), SnapshotRing(tensors(), 2).offsets) is None
    native_cuda = type("NativeCuda", (), {"name": "native_cuda"})
    cuda = type("_cuda", (), {"tensor_block": 1})
    monkeypatch.setattr(module, "backend_for", lambda device: native_cuda)
    monkeypatch.setattr(module, "import_module", lambda name: cuda)
    monkeypatch.setattr(arrays, "memory", emulated_cuda.host_memory)
    float16, turned, two = [torch.ones(3).half()], [torch.ones(3, 4).T], [torch.ones(2)] * 2
    for values, offsets in ((float16, [0]), (turned, [0]), (two, [32, 0])):
        assert module.tensor_table(values, offsets) is None
        ring = SnapshotRing(values, 2, offsets=offsets)
        ring._kernel = KernelCapture(values, offsets)
        ring.capture()
        assert torch.equal(ring.unflatten(ring.newest())[0], values[0].float())
    assert module.tensor_table([torch.ones(3)], [0]) is not None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_captures_on_a_gpu(dtype):
    values = [v.cuda() for v in tensors(dtype)]
    ring = SnapshotRing(values, 3)
    for step in range(5):
        drift(values, step)
        ring.capture()
        for view, value in zip(ring.unflatten(ring.newest()), values, strict=True):
            assert torch.equal(view, value.to(view.dtype))
