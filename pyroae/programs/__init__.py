"""Any Pyro program: its sites and plates, one run of it with K particles, model and guide as one module."""
