"""log p(x) of each datum by quadrature: deterministic, for one, two or three latent dimensions.

- `estimate`: `quadrature` and what it returns.
- `density`: log p(x, z) of a block of data at given points.
- `grid`, `modes`, `box`: where the mass of each datum lies.
- `trapezoid`: the sum over nested lattices, and its error.
"""

from pyroae.evaluation.adaptive_quadrature.estimate import QuadratureEstimate, quadrature

__all__ = ["QuadratureEstimate", "quadrature"]
