"""Trainings compared: objectives, budgets and seeds, scored on held-out data."""
