"""log p(x) by annealed importance sampling, and bounds from both sides."""
