"""log p(x) by annealed importance sampling, and bounds on it from both sides.

- `settings`: the path, its schedule and its Hamiltonian moves.
- `path`, `hmc`: densities along the path, transitions, the pilot and the chains.
- `plan`, `preparation`: what is run for every block of data, and the checks before it.
- `posterior`: resampling and moves at β = 1, for draws of p(z|x).
- `block`, `simulation`, `driver`, `checkpoint`: the execution over blocks of data.
- `compiled`, `chunks`: compiled code, in chunks that belong to one core each.
- `bounds`, `estimates`: `ais`, `bdmc` and what they return.
"""
