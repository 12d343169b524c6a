"""The layers of z above the first: p(z_l | z_{l+1}) in the model, and the order of the guide."""

from pyroae.autoencoder.hierarchies.base import HIERARCHIES, Draw, Hierarchy, Layer, site_of
from pyroae.autoencoder.hierarchies.bottom_up import BottomUp
from pyroae.autoencoder.hierarchies.top_down import TopDown, precision_weighted

__all__ = [
    "HIERARCHIES",
    "BottomUp",
    "Draw",
    "Hierarchy",
    "Layer",
    "TopDown",
    "precision_weighted",
    "site_of",
]
