"""Runs of any Pyro model and guide: their arguments, sites, plates, particles and traces."""
