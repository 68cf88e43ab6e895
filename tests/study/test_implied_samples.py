"""Numbers of samples, read off curves made up to have an answer."""

import math

import pytest

from vastmax.study.implied import Implied, implied_samples


def curve(ks, error, bias=lambda k: 0.0, resolution=1e-9):
    return [(k, {"error": error(k), "bias": bias(k), "bias_resolution": resolution}) for k in ks]


KS = (1, 10, 100, 1000)
IMPLIED = [
    ("on the line between", curve(KS, lambda k: 4 * k**-0.5), 0.2, None, (400, "between")),
    ("at a measured k", curve(KS, lambda k: 4 * k**-0.5), 0.4, None, (100, "between")),
    ("past the last", curve(KS, lambda k: 4 * k**-0.5), 0.05, None, (6400, "beyond")),
    ("past the last, of so many classes", curve(KS, lambda k: 4 * k**-0.5), 0.05, 5000, (5000, "beyond")),
    ("from the first on", curve(KS, lambda k: 0.1 * k**-0.5), 0.2, None, (1, "at most")),
    ("one k", curve((100,), lambda k: 1.0), 0.1, None, (10_000, "beyond")),
    ("exact at the last", curve(KS, lambda k: 0.0 if k == 1000 else 1.0), 0.5, None, (200, "between")),
    ("nearly exact at the last", curve(KS, lambda k: 1e-8 if k == 1000 else 1.0), 0.01, None, (1000, "between")),
    ("worse again", curve(KS, lambda k: {1: 0.1, 10: 2.0}.get(k, 2 * k**-0.5)), 0.1, None, (400, "between")),
    (
        "a bias that stays, above",
        curve(KS, lambda k: math.hypot(0.3, 4 * k**-0.5), lambda k: 0.3),
        0.3,
        None,
        (None, "never"),
    ),
    (
        "a bias that stays, below",
        curve(KS, lambda k: math.hypot(0.03, 4 * k**-0.5), lambda k: 0.03),
        0.05,
        None,
        (10_000, "beyond"),
    ),
    (
        "a bias that falls",
        curve(KS, lambda k: 40 / k, lambda k: 40 / k),
        0.02,
        None,
        (4000, "beyond"),
    ),
    (
        "a bias within its noise",
        curve(KS, lambda k: 4 * k**-0.5, lambda k: 0.1, resolution=0.06),
        0.05,
        None,
        (6400, "beyond"),
    ),
    ("too far", curve(KS, lambda k: 4 * k**-0.5), 0.001, None, (10**6, "more than")),
    ("too far, but for the classes", curve(KS, lambda k: 4 * k**-0.5), 0.001, 5000, (5000, "beyond")),
    ("no direction at first", curve(KS, lambda k: math.inf if k < 100 else 1.0), 1.0, None, (100, "between")),
    ("no direction", curve(KS, lambda k: math.inf), 0.1, None, (None, "never")),
]


@pytest.mark.parametrize(
    ("points", "accuracy", "limit", "expected"), [c[1:] for c in IMPLIED], ids=[c[0] for c in IMPLIED]
)
def test_implied_samples(points, accuracy, limit, expected):
    found = implied_samples(points, accuracy, limit=limit)
    assert (found.num_samples, found.how) == expected
    assert found == Implied(*expected, bias=points[-1][1]["bias"])
