"""The one system, conditional or not, and M2, whose condition is a class that may be missing."""

from pyroae.autoencoder.parameters import announce_parameters
from pyroae.autoencoder.semi_supervised import M2, correct_classes
from pyroae.autoencoder.system import Autoencoder

__all__ = ["M2", "Autoencoder", "announce_parameters", "correct_classes"]
