"""A calibration as an ArviZ DataTree."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pyroae._version import __version__
from pyroae.evaluation.calibration.results import PROBABILITIES, Calibration

if TYPE_CHECKING:
    from xarray import DataTree


def calibration_to_datatree(found: Calibration) -> "DataTree":
    """Convert a calibration to a DataTree with the group `calibration`.

    - p_value, rank: (simulation, quantity); ess: (simulation);
    - shift and spread with their 95 % intervals, p-values of the tests, single (`symmetry`, …) and
      adjusted (`adjusted_symmetry`, …), and verdict: (quantity);
    - coverage with its 95 % interval: (probability, quantity).

    `arviz.plot_ecdf_pit(tree, group="calibration", var_names="p_value",
    sample_dims=["simulation"])` draws the p-values of each quantity.

    Args:
        found: The calibration.

    Returns:
        The DataTree; the settings and the overall verdict are attributes.

    >>> import torch
    >>> from pyroae import measure_calibration, zoo
    >>> system = zoo.ppca(4, latent=2, exact=True)
    >>> found = measure_calibration(system.model, system.guide, torch.zeros(1, 4))
    >>> dict(calibration_to_datatree(found)["calibration"]["p_value"].sizes)
    {'simulation': 500, 'quantity': 5}
    """
    from xarray import Dataset, DataTree

    both, each = ("simulation", "quantity"), ("quantity",)
    columns: dict[str, tuple[tuple[str, ...], Any]] = {
        "p_value": (both, found.p_values.numpy()),
        "rank": (both, found.ranks.numpy()),
        "ess": (("simulation",), found.ess.numpy()),
        "verdict": (each, [quantity.verdict for quantity in found.quantities]),
    }
    for end, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
        for name in ("shift", "spread"):
            values = [getattr(getattr(q, name), end) for q in found.quantities]
            columns[name + suffix] = each, values
        covered = [
            [getattr(q.coverage[i], end) for q in found.quantities]
            for i in range(len(PROBABILITIES))
        ]
        columns["coverage" + suffix] = ("probability", "quantity"), covered
    for prefix, field in (("", "tests"), ("adjusted_", "adjusted")):
        for test in ("symmetry", "dispersion", "uniformity"):
            values = [getattr(getattr(q, field), test) for q in found.quantities]
            columns[prefix + test] = each, values
    coords = {
        "quantity": [quantity.name for quantity in found.quantities],
        "probability": list(PROBABILITIES),
    }
    attributes = {
        **asdict(found.settings),
        "overall_verdict": found.verdict,
        "inference_library": "pyroae",
        "inference_library_version": __version__,
    }
    return DataTree.from_dict({"/": Dataset(), "calibration": Dataset(columns, coords, attributes)})
