"""scikit-learn estimators: VAE, Autoencoder, PPCA and their siblings.

They are transformers with the conventions of scikit-learn, for pipelines and searches; `model_` is
the trained system, which the rest of the package evaluates and draws. Nothing else of the package
imports this one.
"""

from pyroae.sklearn.base import LatentModel
from pyroae.sklearn.ppca import PPCA
from pyroae.sklearn.trained import VAE, Autoencoder, DenoisingAutoencoder, SparseAutoencoder

__all__ = [
    "PPCA",
    "VAE",
    "Autoencoder",
    "DenoisingAutoencoder",
    "LatentModel",
    "SparseAutoencoder",
]
