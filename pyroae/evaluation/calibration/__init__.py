"""Calibration of amortized posteriors on simulated data: VSBC and SBC.

- `measure`: `measure_calibration`.
- `simulation`: simulated pairs (z, x), and draws of q(z|x).
- `ranks`: ranks of the truth among draws, as p-values.
- `uniformity`: tests of p-values.
- `results`: what it returns; `datatree` converts it.
"""

from typing import TYPE_CHECKING

from pyroae._exports import lazy_exports

if TYPE_CHECKING:
    from pyroae.evaluation.calibration.datatree import calibration_to_datatree
    from pyroae.evaluation.calibration.measure import measure_calibration
    from pyroae.evaluation.calibration.results import Calibration, Quantity

__all__ = ["Calibration", "Quantity", "calibration_to_datatree", "measure_calibration"]

__getattr__, __dir__ = lazy_exports(__name__)
