"""Checks of arguments: each error names the argument, the value seen and what was expected."""

import math
import operator
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import PurePath

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from vastmax import checking
from vastmax.checking import require
from vastmax.differentiation import check_not_batched

SUMMED_ELEMENTS = 1 << 18
"""Numbers converted at a time on the way to a sum of many."""

LARGEST_INT = 2**63 - 1
"""The largest size and id that torch has."""

QUOTED = 80
"""Characters of a value that an error shows."""


def check_int(name: str, value: object) -> int:
    """Return `value` as a plain int if it is an integer of any make, as `operator.index` takes it."""
    if type(value) is int:  # as nearly always
        return value
    try:
        if _is_bool(value):
            raise TypeError("a truth value is no number")
        return operator.index(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as wrong:
        raise TypeError(
            f"{name}: expected an integer, got {shown(value)} of type {type(value).__name__}"
        ) from wrong


def check_positive_int(name: str, value: object) -> int:
    """Return `value` as a plain int if it is an integer of at least 1; raise TypeError or ValueError otherwise."""
    number = check_int(name, value)
    if not 1 <= number <= LARGEST_INT:
        bound = "at least 1" if number < 1 else "at most 2**63 - 1"
        raise ValueError(f"{name}: expected an integer of {bound}, got {shown(number)}")
    return number


def check_k(k: object, num_classes: int) -> int:
    """Return `k` as a plain int if it is an integer from 1 to the number of classes."""
    number = check_positive_int("k", k)
    if number > num_classes:
        raise ValueError(f"k: expected at most num_classes = {num_classes}, got {number}")
    return number


def check_number(name: str, value: object) -> float:
    """Return `value` as a plain float, infinite or nan even, if it is a number of any make, as `float` takes it."""
    if type(value) is float:  # as nearly always
        return value
    if isinstance(value, Tensor) and value.requires_grad:
        raise TypeError(f"{name}: expected a number, got a tensor that requires a gradient, which it would not get")
    try:
        if _is_bool(value) or isinstance(value, str | bytes | np.complexfloating):  # which `float` makes numbers of
            raise TypeError("neither truth values nor texts nor complex numbers are real numbers")
        return float(value)  # type: ignore[arg-type]
    except OverflowError as wrong:
        raise ValueError(f"{name}: expected a number that a float can hold, got {shown(value)}") from wrong
    except (TypeError, ValueError, RuntimeError) as wrong:
        raise TypeError(f"{name}: expected a number, got {shown(value)} of type {type(value).__name__}") from wrong


def check_finite_number(
    name: str, value: object, *, above: float = -math.inf, at_least: float = -math.inf, below: float = math.inf
) -> float:
    """Return `value` as a plain float if it is a number of any make, as `float` takes it, finite and in bounds."""
    number = check_number(name, value)
    # Compared rather than asked, for in a graph whose numbers may change it is a symbol.
    if not (-math.inf < number < math.inf and above < number < below and number >= at_least):
        seen = value if isinstance(value, int) else number
        bounds = (("greater than", above), ("of at least", at_least), ("less than", below))
        expected = " and ".join(f"{words} {bound:g}" for words, bound in bounds if math.isfinite(bound))
        raise ValueError(f"{name}: expected {f'a finite number {expected}'.rstrip()}, got {shown(seen)}")
    return number


def check_share(name: str, value: object) -> float:
    """Return `value` as a plain float if it is a number in [0, 1]."""
    number = check_finite_number(name, value, at_least=0.0)
    if number > 1:
        raise ValueError(f"{name}: expected a number in [0, 1], got {shown(value)}")
    return number


def check_scalar(name: str, value: float | Tensor, *, above: float = -math.inf) -> float | Tensor:
    """Return `value` as a float if it is a finite number above a bound, or as the floating tensor () of one."""
    if not isinstance(value, Tensor):
        return check_finite_number(name, value, above=above)
    if value.ndim != 0 or not value.is_floating_point():
        raise ValueError(
            f"{name}: expected a number or a floating-point tensor (), got {value.dtype} {tuple(value.shape)}"
        )
    check_not_batched(name, value)
    if checking.at_hand(value):
        check_finite_number(name, value.detach(), above=above)
    elif not checking.are_off():
        expected = "a finite number" + (f" greater than {above:g}" if above > -math.inf else "")
        require(value.detach().isfinite() & (value.detach() > above), f"{name}: expected {expected}")
    return value


def plain(value: object) -> object:
    """Return a number of any make, or a sequence's each, as Python's own; anything else as it is, to be refused."""
    if isinstance(value, tuple | list):
        return type(value)(map(plain, value))
    if type(value) in (bool, int, float, str):
        return value
    for check in (check_int, check_number):
        with suppress(TypeError, ValueError):
            return check("", value)
    return value


def make_plain(options: object) -> None:
    """Replace the numbers of a frozen dataclass by Python's own, which JSON knows."""
    for name, value in list(vars(options).items()):
        object.__setattr__(options, name, plain(value))


def _is_bool(value: object) -> bool:
    """Whether `value` is a truth value of Python, NumPy or torch, which they count as 0 or 1."""
    return isinstance(value, bool | np.bool_) or (isinstance(value, Tensor) and value.dtype == torch.bool)


def shown(value: object) -> str:
    """Return `value` as an error shows it, cut to a line; of a path the end, where paths differ."""
    if isinstance(value, PurePath):
        text = str(value)
        return text if len(text) <= QUOTED else f"...{text[-QUOTED:]}"
    try:
        return cut(str(value) if isinstance(value, int | float) else repr(value))
    except ValueError:  # Python writes no integer of more than some thousand digits
        return "one of thousands of digits"


def cut(text: str) -> str:
    """Return a text on one line, the beginning of it if it is long."""
    line = " ".join(text.split())
    return line if len(line) <= QUOTED else f"{line[:QUOTED]}..."


def check_choice(name: str, value: object, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`."""
    known = tuple(choices)
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {shown(value)}")
    return value


def check_names(name: str, values: Sequence[str], choices: Iterable[str]) -> None:
    """Raise ValueError unless `values` are some of the choices, each once."""
    known = tuple(choices)
    for value in values:
        check_choice(name, value, known)
    if not values or len(set(values)) < len(values):
        seen = cut(", ".join(values)) or "none"
        raise ValueError(f"{name}: expected distinct names out of {', '.join(known)}, got {seen}")


def check_hidden(name: str, hidden: Tensor, in_features: int) -> None:
    """Raise unless `hidden` is a floating-point tensor (..., in_features)."""
    if not isinstance(hidden, Tensor):
        raise TypeError(f"{name}: expected a tensor (..., {in_features}), got {type(hidden).__name__}")
    if not hidden.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got dtype {hidden.dtype}")
    if hidden.ndim == 0 or hidden.shape[-1] != in_features:
        raise ValueError(f"{name}: expected shape (..., {in_features}), got {tuple(hidden.shape)}")


def check_finite(name: str, values: Tensor, rows: Tensor | None = None) -> None:
    """Raise ValueError naming the first NaN or infinity of `values`, within `rows` if a mask of them is given."""
    check_not_batched(name, values)
    if values.numel() == 0 or checking.are_off():
        return
    if checking.at_hand(values) and torch.stack(values.aminmax()).isfinite().all():
        return  # one pass over the values, as nearly always; where they stand is looked for below
    finite = values.isfinite()
    if rows is not None:
        finite = finite | ~rows.unsqueeze(-1)

    def error() -> ValueError:
        place = tuple((~finite).nonzero()[0].tolist())
        return ValueError(f"{name}: expected finite values, got {values[place].item()} at {place}")

    require(finite.all(), f"{name}: expected finite values", error)


def check_all(name: str, expected: str, values: Tensor, holds: Tensor) -> None:
    """Raise ValueError naming the first of `values` for which a condition (...) bool does not hold."""

    def error() -> ValueError:
        seen = values[~holds].flatten()[0].item()
        return ValueError(f"{name}: expected {expected}, got {seen if isinstance(seen, int) else f'{seen:g}'}")

    if values.numel() > 0 and not checking.are_off():
        require(holds.all(), f"{name}: expected {expected}", error)


def check_ids(name: str, ids: Tensor, num_classes: int) -> None:
    """Raise unless `ids` is an int64 tensor of class ids in [0, num_classes), before they are used to index."""
    if not isinstance(ids, Tensor):
        raise TypeError(f"{name}: expected an int64 tensor of class ids, got {type(ids).__name__}")
    if ids.dtype != torch.int64:
        raise TypeError(f"{name}: expected int64 class ids, got dtype {ids.dtype}")
    check_not_batched(name, ids)
    if ids.numel() == 0 or checking.are_off():
        return
    if checking.at_hand(ids):
        least, most = torch.stack(ids.aminmax()).tolist()
        if least >= 0 and most < num_classes:
            return
    outside = (ids < 0) | (ids >= num_classes)
    expected = f"{name}: expected class ids in [0, {num_classes})"

    def error() -> ValueError:
        place = tuple(outside.nonzero()[0].tolist())
        return ValueError(f"{expected}, got {ids[place].item()} at {place}")

    require(~outside.any(), expected, error)


def check_distinct(name: str, ids: Tensor, ignore_index: int) -> None:
    """Raise ValueError if a row of ids (..., T) names a class twice; `ignore_index` fills places and may repeat."""
    if checking.are_off():
        return
    ordered = ids.sort(-1).values
    twice = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] != ignore_index)
    expected = f"{name}: expected distinct class ids in each row"

    def error() -> ValueError:
        place = tuple(twice.nonzero()[0].tolist())
        where = f" in row {place[0] if len(place) == 2 else place[:-1]}" if len(place) > 1 else ""
        return ValueError(f"{expected}, got {ordered[..., 1:][place].item()} twice{where}")

    require(~twice.any(), expected, error)


def check_target(target: Tensor, rows: Sequence[int], num_classes: int, ignore_index: int | None = None) -> Tensor:
    """Return in which rows `target` is `ignore_index`; raise unless the others hold one int64 class id in range."""
    if isinstance(target, Tensor) and target.shape != tuple(rows):
        raise ValueError(f"target: expected shape {tuple(rows)}, one class id per row, got {tuple(target.shape)}")
    if ignore_index is None or not isinstance(target, Tensor) or target.dtype != torch.int64:
        check_ids("target", target, num_classes)
        return torch.zeros_like(target, dtype=torch.bool)
    ignored = target == check_int("ignore_index", ignore_index)
    check_ids("target", target.masked_fill(ignored, 0), num_classes)
    return ignored


def check_distribution(name: str, probability: Tensor, shape: Sequence[int]) -> None:
    """Raise unless `probability` has this shape and its last axis holds probabilities that sum to one."""
    if probability.shape != tuple(shape):
        raise ValueError(
            f"{name}: expected shape {tuple(shape)}, the probability of every class, got {tuple(probability.shape)}"
        )
    check_not_batched(name, probability)
    if checking.are_off():
        return
    # Each number is rounded in proportion to itself, so their sum to a rounding of 1, besides those too small for
    # the dtype. The sum that they were divided by was one of V numbers in float32 or better.
    dtype, num_classes = torch.finfo(probability.dtype), probability.shape[-1]
    rounding = max(dtype.eps, torch.finfo(torch.float32).eps * max(4.0, num_classes**0.5))
    tolerance = 4 * rounding + num_classes * dtype.smallest_normal * dtype.eps
    sums = sums_of_rows(probability.detach(), torch.float64)
    holds = ((sums - 1).abs() <= tolerance).all()
    if probability.numel() > 0:
        holds = holds & (probability.amin() >= 0)

    def error() -> ValueError:
        worst = sums.flatten()[(sums - 1).abs().argmax()].item()
        least = probability.min().item()
        return ValueError(
            f"{name}: expected probabilities that sum to 1, got a sum of {worst:g}, a smallest entry of {least:g}"
        )

    require(holds, f"{name}: expected probabilities that sum to 1", error)


def sums_of_rows(values: Tensor, dtype: torch.dtype, weight: Tensor | None = None) -> Tensor:
    """Return the sums (...) of values (..., V), each times its `weight` (V,), without another tensor as large."""
    flat = values.reshape(-1, values.shape[-1])
    sums = torch.empty(len(flat), dtype=dtype, device=values.device)
    step = max(1, SUMMED_ELEMENTS // max(values.shape[-1], 1))
    for start in range(0, len(flat), step):
        rows = flat[start : start + step].to(dtype)
        sums[start : start + step] = rows.sum(-1) if weight is None else rows @ weight.to(dtype)
    return sums.view(values.shape[:-1])


def check_class_rows(name: str, weight: Tensor) -> None:
    """Raise unless `weight` is a floating (V, d) matrix with at least one class."""
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        kind = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"{name}: expected a floating-point tensor (num_classes, in_features), got {kind}")
    if weight.ndim != 2 or weight.shape[0] == 0:
        raise ValueError(
            f"{name}: expected shape (num_classes, in_features) with at least one class, got {tuple(weight.shape)}"
        )


def check_per_class(name: str, values: Tensor | None, num_classes: int) -> None:
    """Raise unless `values` is None or holds one floating-point number per class."""
    if values is None:
        return
    if not isinstance(values, Tensor) or not values.is_floating_point():
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"{name}: expected a floating-point tensor ({num_classes},), got {kind}")
    if values.shape != (num_classes,):
        raise ValueError(f"{name}: expected shape ({num_classes},), one per class, got {tuple(values.shape)}")


def check_class_weight(name: str, weight: Tensor | None, num_classes: int) -> Tensor | None:
    """Return `weight` if it is None or holds one finite number of at least 0 per class, not all of them 0."""
    check_per_class(name, weight, num_classes)
    if weight is not None and not weight.is_meta:
        check_finite(name, weight)
        if (weight < 0).any() or not weight.any():
            raise ValueError(
                f"{name}: expected weights of at least 0 and not all 0, got a least one of {weight.min().item():g}"
            )
    return weight


def check_counts(name: str, counts: Tensor | ArrayLike) -> Tensor:
    """Return `counts` as a float64 copy (V,) if they are finite numbers of at least 0, not all of them 0."""
    if not isinstance(counts, Tensor):
        try:
            array = np.asarray(counts)
        except ValueError as ragged:
            raise ValueError(f"{name}: expected shape (V,), got rows of different lengths") from ragged
        if array.dtype.kind not in "iuf":
            raise TypeError(f"{name}: expected integers or floats, got {type(counts).__name__} of {array.dtype}")
        counts = torch.from_numpy(array.astype(np.float64))
    if counts.dtype == torch.bool or counts.is_complex():
        raise TypeError(f"{name}: expected integers or floats, got dtype {counts.dtype}")
    if counts.ndim != 1 or len(counts) == 0:
        raise ValueError(f"{name}: expected shape (V,) with V at least 1, got {tuple(counts.shape)}")
    counts = counts.detach().to(torch.float64, copy=True)
    check_finite(name, counts)
    if (counts < 0).any():
        place = int((counts < 0).nonzero()[0])
        raise ValueError(f"{name}: expected counts of at least 0, got {counts[place].item():g} at {place}")
    if not counts.any():
        raise ValueError(f"{name}: expected at least one count greater than 0, got {len(counts)} zeros")
    return counts
