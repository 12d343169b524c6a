"""Comparisons on disk; their trainings run in this process or on a Ray cluster."""
