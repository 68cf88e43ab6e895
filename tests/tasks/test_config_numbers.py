"""Options of tasks and studies given as NumPy numbers: a run would else be lost where its results are written."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from vastmax.study.bottleneck import BottleneckOptions
from vastmax.study.density import DensityOptions
from vastmax.study.estimator_options import StudyOptions
from vastmax.tasks.classify.config import ClassifyConfig
from vastmax.tasks.contrast.config import ContrastConfig
from vastmax.tasks.lm.config import LMConfig


def in_numpy(value):
    if isinstance(value, tuple):
        return tuple(map(in_numpy, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return np.float64(value) if isinstance(value, float) else np.int64(value)


@pytest.mark.parametrize(
    "options", [BottleneckOptions, ClassifyConfig, ContrastConfig, DensityOptions, LMConfig, StudyOptions]
)
def test_numpy_numbers_are_kept_as_plain_ones(options):
    given = options(**{name: in_numpy(value) for name, value in asdict(options()).items()})
    assert repr(given) == repr(options())
    assert json.dumps(asdict(given)) == json.dumps(asdict(options()))
