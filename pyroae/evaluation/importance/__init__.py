"""Estimate log p(x) of each datum by importance sampling, with standard errors and diagnostics."""
