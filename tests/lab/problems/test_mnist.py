"""MNIST: the embedded digits, IDX folders, repeatable minibatches, the network, its example."""

import gzip
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from koopcore.lab.problems import mnist

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@pytest.fixture(scope="module")
def digits():
    return mnist.load()


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.tobytes()


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for name, count in zip(FILES, (7, 7, 3, 3), strict=True):
        shape = (count, 28, 28) if "images" in name else (count,)
        (tmp_path / name).write_bytes(idx(random.integers(0, 10, shape).astype(np.uint8)))
    return tmp_path


def test_the_embedded_digits_are_split_and_scaled(digits):
    assert digits.inputs.shape == (8000, 784)
    assert digits.validation_inputs.shape == (2000, 784)
    assert digits.inputs.dtype == torch.float32
    assert digits.labels.dtype == torch.int64
    assert float(digits.inputs.min()) == 0.0
    assert float(digits.inputs.max()) == 1.0
    labels = torch.cat((digits.labels, digits.validation_labels))
    counts = torch.bincount(labels, minlength=10)
    assert (counts.min(), counts.max()) == (863, 1127)  # as the data's note says


def test_settings_may_name_a_folder(folder):
    read = mnist.of_settings({"data": str(folder)})
    assert (len(read.inputs), len(read.validation_inputs)) == (7, 3)
    assert mnist.of_settings({}).inputs.shape == (8000, 784)
    assert "folder" in mnist.described({"data": str(folder)})
    assert "8,000" in mnist.described({})


def test_the_split_can_be_chosen_and_is_checked():
    assert mnist.load(validation=1000).inputs.shape == (9000, 784)
    for validation in (0, 10_000):
        with pytest.raises(ValueError, match=r"1\.\.9999"):
            mnist.load(validation=validation)


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_of_idx_files_is_read(folder, packed):
    expected = np.frombuffer((folder / FILES[0]).read_bytes(), np.uint8, offset=16) / 255
    if packed:
        for name in FILES:
            data = (folder / name).read_bytes()
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))
            (folder / name).unlink()
    read = mnist.load(folder)
    assert read.inputs.shape == (7, 784)
    assert read.validation_labels.shape == (3,)
    # float32 rounds the quotient of two small integers once.
    np.testing.assert_allclose(read.inputs.numpy().ravel(), expected, rtol=1e-7)


def test_a_missing_file_is_named(folder):
    (folder / FILES[3]).unlink()
    with pytest.raises(FileNotFoundError, match=FILES[3]):
        mnist.load(folder)


@pytest.mark.parametrize(
    "data", [b"", b"\0\0", b"\0\0\x08\x03", b"GIF89a0000", b"\0\0\x08\x01\0\0\0\x05abc"]
)
def test_what_is_no_idx_file_is_refused(folder, data):
    (folder / FILES[1]).write_bytes(data)
    with pytest.raises(ValueError, match="not an IDX file"):
        mnist.load(folder)


def test_the_network_is_the_papers_and_depends_on_its_seed_alone():
    shapes = [tuple(p.shape) for p in mnist.network().parameters()]
    assert shapes == [(20, 784), (20,), (20, 20), (20,), (20, 20), (20,), (10, 20), (10,)]
    state = torch.get_rng_state()
    first, again, other = (
        torch.nn.utils.parameters_to_vector(mnist.network(seed).parameters()) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_minibatches_cover_an_epoch_and_repeat_with_their_seed(digits):
    one, two, other = (mnist.Minibatches(digits, 2000, seed) for seed in (5, 5, 6))
    epoch = [one() for _ in range(4)]
    again = [two() for _ in range(4)]
    assert all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
        for a, b in zip(epoch, again, strict=True)
    )
    assert not torch.equal(epoch[0][0], other()[0])
    labels = torch.cat([labels for _, labels in epoch])
    assert torch.equal(torch.bincount(labels), torch.bincount(digits.labels))
    assert not torch.equal(one()[0], epoch[0][0])  # another order in the next epoch


@pytest.mark.parametrize("size", [0, 8001])
def test_impossible_minibatches_are_refused(digits, size):
    with pytest.raises(ValueError, match=r"1\.\.8000"):
        mnist.Minibatches(digits, size)


def test_training_learns_to_read(digits):
    model = mnist.network(1)
    stepper = torch.optim.Adam(model.parameters(), lr=3e-3)
    # Untrained, every digit is about as likely as any other.
    assert mnist.validation_loss(model, digits) == pytest.approx(np.log(10), abs=0.1)
    ticks = []
    mnist.train(model, stepper, mnist.Minibatches(digits), 150, lambda: ticks.append(1))
    assert len(ticks) == 150
    # Guessing reads 10 % and loses 2.3; far away from both, so that no seed decides.
    assert mnist.accuracy(model, digits) > 0.6
    assert mnist.validation_loss(model, digits) < 1.2


def test_the_example_takes_an_average_and_does_not_lose(capsys):
    path = Path(__file__).resolve().parents[3] / "examples" / "mnist.py"
    spec = importlib.util.spec_from_file_location("example_mnist", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    losses = example.main(steps=400)
    assert losses["koopcore"] < losses["plain"]
    # Which of the averages: they are within 1 % of one another, and asked as time allows.
    assert re.search(r"took the average \S+", capsys.readouterr().out)
