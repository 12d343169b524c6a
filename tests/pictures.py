"""Evaluations without most of their pictures, which take most of the time of a small one."""

from collections.abc import Collection
from typing import Any

import pytest

from pyroae.errors import DataError

PICTURES = {
    **dict.fromkeys(
        ("manifold", "reconstructions", "samples", "latent_scatter", "filters", "kl_per_unit"),
        "pyroae.plots",
    ),
    **dict.fromkeys(("interpolation", "traversals", "column_errors"), "pyroae.plots"),
    **dict.fromkeys(("extremes", "likelihood_per_datum"), "pyroae.plots.likelihood"),
    "predictive_check": "pyroae.commands.pictures",
}
"""Where the functions of the pictures that are left out are looked up."""


def leave_out_pictures(patch: pytest.MonkeyPatch, keep: Collection[str] = ()) -> None:
    """Leave out most pictures of an evaluation, as of a system that does not have them."""

    def left_out(*args: Any, **options: Any) -> Any:
        raise DataError("left out")

    for name, module in PICTURES.items():
        if name not in keep:
            patch.setattr(f"{module}.{name}", left_out)
