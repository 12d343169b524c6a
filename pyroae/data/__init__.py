"""Load data from a name, a file or an array, and iterate over batches of it."""

from pyroae.data.batching import batches
from pyroae.data.dataset import Dataset
from pyroae.data.loading import Splits, load
from pyroae.programs.arguments import Arguments

__all__ = ["Arguments", "Dataset", "Splits", "batches", "load"]
