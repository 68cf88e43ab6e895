"""Calibration: probabilities that say how often they are right, fitted and measured on held-out rows."""

from vastmax.calibration.held_out import Fit
from vastmax.calibration.reliability import (
    Reliability,
    Top1,
    calibration_error,
    draw_reliability,
    reliability,
    top1,
)
from vastmax.calibration.temperature import TemperatureScaling
from vastmax.calibration.vector import VectorScaling

__all__ = [
    "Fit",
    "Reliability",
    "TemperatureScaling",
    "Top1",
    "VectorScaling",
    "calibration_error",
    "draw_reliability",
    "reliability",
    "top1",
]
