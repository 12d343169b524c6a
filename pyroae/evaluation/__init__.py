"""Evaluation of any Pyro model and guide: likelihoods, closed forms, diagnostics. Log-weights come from `weights.py`."""
