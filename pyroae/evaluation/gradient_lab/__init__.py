"""Measure mean, bias, variance and signal-to-noise ratio of gradient estimators."""
