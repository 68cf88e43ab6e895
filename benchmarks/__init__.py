"""Measurements, side by side in one run: every figure a ratio, with the floor beside it."""
