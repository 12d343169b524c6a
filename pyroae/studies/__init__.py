"""A comparison on disk, and where its trainings run: here or on a Ray cluster."""
