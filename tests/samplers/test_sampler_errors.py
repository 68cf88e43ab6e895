"""Errors name the argument, what was seen and what was expected."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from vastmax.samplers import LogUniform, Mixture, Sampler, Uniform, Unigram

INT_MAX = 2**63 - 1


@pytest.mark.parametrize("kind", [Uniform, LogUniform])
@pytest.mark.parametrize(
    ("num_classes", "error", "message"),
    [
        (0, ValueError, "num_classes: .* at least 1, got 0"),
        (-3, ValueError, "num_classes: .* got -3"),
        (2.0, TypeError, "num_classes: .* got 2.0 of type float"),
        (True, TypeError, "num_classes: .* got True of type bool"),
    ],
)
def test_num_classes(kind: Callable[..., Sampler], num_classes: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        kind(num_classes)


@pytest.mark.parametrize("make", [lambda u: Uniform(2, unique=u), lambda u: Unigram([1, 2], unique=u)])
def test_unique(make: Callable[[object], Sampler]) -> None:
    with pytest.raises(TypeError, match="unique: expected True or False, got 1 of type int"):
        make(1)


@pytest.mark.parametrize(
    ("counts", "error", "message"),
    [
        ([], ValueError, r"V at least 1, got \(0,\)"),
        (3, ValueError, r"shape \(V,\) .* got \(\)"),
        ([[1, 2], [3, 4]], ValueError, r"shape \(V,\) .* got \(2, 2\)"),
        ([[1, 2], [3]], ValueError, "rows of different lengths"),
        (torch.ones(2, 3), ValueError, r"got \(2, 3\)"),
        ([1, -2, 3], ValueError, "at least 0, got -2 at 1"),
        ([1.0, math.nan], ValueError, r"finite values, got nan at \(1,\)"),
        ([math.inf, 1.0], ValueError, r"finite values, got inf at \(0,\)"),
        (torch.tensor([1.0, -math.inf]), ValueError, r"finite values, got -inf at \(1,\)"),
        ([0, 0, 0], ValueError, "at least one count greater than 0, got 3 zeros"),
        ([True, False], TypeError, "integers or floats, got list of bool"),
        (torch.tensor([True]), TypeError, "integers or floats, got dtype torch.bool"),
        ([1 + 2j], TypeError, "integers or floats, got list of complex128"),
        (torch.tensor([1j]), TypeError, "integers or floats, got dtype torch.complex64"),
        (["a", "b"], TypeError, "integers or floats, got list of <U1"),
        (None, TypeError, "integers or floats, got NoneType of object"),
        ({3: 1, 4: 2}.values(), TypeError, "integers or floats, got dict_values of object"),
    ],
)
def test_counts(counts: object, error: type, message: str) -> None:
    with pytest.raises(error, match="counts: expected .*" + message):
        Unigram(counts)


@pytest.mark.parametrize(
    ("power", "error", "message"),
    [
        (math.nan, ValueError, "power: .* finite number.*, got nan"),
        (math.inf, ValueError, "power: .* finite number.*, got inf"),
        (-math.inf, ValueError, "power: .* finite number.*, got -inf"),
        ("1", TypeError, "power: .* got '1' of type str"),
        (True, TypeError, "power: .* got True of type bool"),
    ],
)
def test_power(power: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        Unigram([1, 2], power)


@pytest.mark.parametrize(
    ("samplers", "weights", "error", "message"),
    [
        ([], [], ValueError, "samplers: expected at least one, got none"),
        ([], [1.0], ValueError, "samplers: expected at least one, got none"),
        (Uniform(3), [1.0], TypeError, r"samplers: expected a sequence of samplers, got Uniform\("),
        ([Uniform(3), "log_uniform"], [1, 1], TypeError, "samplers: expected a sequence of samplers"),
        ([Uniform(3), Uniform(4)], [1, 1], ValueError, r"samplers: expected the same num_classes .* got \[3, 4\]"),
        ([Uniform(3), Uniform(3, unique=True)], [1, 1], ValueError, r"samplers: .* got Uniform\(.*True\) at 1"),
        ([Uniform(3), Uniform(3, device="meta")], [1, 1], ValueError, r"one device, got \['cpu', 'meta'\]"),
        ([Uniform(3)], [1, 1], ValueError, "weights: expected 1, one per sampler, got 2"),
        ([Uniform(3), Uniform(3)], [1, 0], ValueError, r"weights: .* greater than 0, got \[1.0, 0.0\]"),
        ([Uniform(3), Uniform(3)], [1, -1], ValueError, "weights: .* got -1 at 1"),
        ([Uniform(3), Uniform(3)], [1, math.inf], ValueError, "weights: .* finite values, got inf"),
    ],
)
def test_mixture(samplers: object, weights: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        Mixture(samplers, weights)


@pytest.mark.parametrize("call", ["sample", "log_expected_count"])
@pytest.mark.parametrize("unique", [False, True])
@pytest.mark.parametrize(
    ("size", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        ((3, 0), ValueError),
        ((-3, 2), ValueError),
        ((), ValueError),
        (2.0, TypeError),
        (True, TypeError),
        ((2, 2.0), TypeError),
        ((True, 2), TypeError),
        ("2", TypeError),
        (None, TypeError),
        (np.array([2, 2]), TypeError),
        (torch.tensor(2.0), TypeError),
    ],
)
def test_size(call: str, unique: bool, size: object, error: type) -> None:
    sampler = Uniform(5, unique=unique)
    with pytest.raises(error, match=r"size: expected k or a shape \(..., k\)"):
        sampler.sample(size) if call == "sample" else sampler.log_expected_count(torch.tensor([0]), size)


@pytest.mark.parametrize(
    ("sampler", "most"),
    [
        (Uniform(5, unique=True), 5),
        (LogUniform(5, unique=True), 5),
        (Unigram([0, 3, 4, 0, 1], unique=True), 3),
        (Mixture([Unigram([0, 3, 4, 0, 0]), Unigram([0, 0, 0, 0, 2])], [1, 1], unique=True), 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_more_distinct_classes_than_there_are(sampler: Sampler, most: int) -> None:
    for size in (most + 1, (2, most + 1)):
        with pytest.raises(ValueError, match=f"size: expected k of at most {most}, .* got "):
            sampler.sample(size)
        with pytest.raises(ValueError, match=f"size: expected k of at most {most}, .* got "):
            sampler.log_expected_count(torch.tensor([1]), size)


@pytest.mark.parametrize(
    "sampler", [Uniform(5), LogUniform(5), Unigram([1, 2, 3, 4, 5]), Mixture([Uniform(5)], [1])], ids=repr
)
@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (torch.tensor([0, 5]), ValueError, r"class ids in \[0, 5\), got 5 at \(1,\)"),
        (torch.tensor([-1]), ValueError, r"class ids in \[0, 5\), got -1 at \(0,\)"),
        (torch.tensor([-100]), ValueError, "got -100"),
        (torch.tensor([INT_MAX]), ValueError, f"got {INT_MAX}"),
        (torch.tensor([1], dtype=torch.int32), TypeError, "int64 class ids, got dtype torch.int32"),
        (torch.tensor([1.0]), TypeError, "int64 class ids, got dtype torch.float32"),
        ([1, 2], TypeError, "int64 tensor of class ids, got list"),
    ],
)
def test_ids(sampler: Sampler, ids: object, error: type, message: str) -> None:
    with pytest.raises(error, match="ids: expected .*" + message):
        sampler.log_prob(ids)
    with pytest.raises(error, match="ids: expected .*" + message):
        sampler.log_expected_count(ids, 3)
