"""Why a bound is loose: the family of the guide, or the encoder that serves all data.

- `measure`: `gaps`, which splits the inference gap of each datum.
- `estimates`: what it returns.
- `block`: the fits and expectations of one block of data.
"""

from pyroae.evaluation.inference_gaps.estimates import FamilyGaps, Gaps, KnownLikelihood, PerDatum
from pyroae.evaluation.inference_gaps.measure import gaps

__all__ = ["FamilyGaps", "Gaps", "KnownLikelihood", "PerDatum", "gaps"]
