"""Seeds of blocks are those of numpy's seed sequences."""

import numpy as np
import pytest

from pyroae.evaluation.blocks import block_seed


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**32, 2**63 - 1, 2**64 + 5, -3])
@pytest.mark.parametrize("key", [(0,), (3, 1), (10**6, 0, 75)])
def test_the_seed_of_a_block(seed: int, key: tuple[int, ...]) -> None:
    sequence = np.random.SeedSequence(seed % 2**64, spawn_key=key)
    assert block_seed(seed, *key) == int(sequence.generate_state(1, np.uint64)[0] >> 1)
