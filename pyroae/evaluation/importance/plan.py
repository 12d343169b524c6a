"""Plan how N data with K draws each are divided into blocks, parts, chunks and tasks."""

from dataclasses import dataclass
from itertools import batched

from pyroae.evaluation.blocks import spans
from pyroae.runtime.processes import Share

Chunk = tuple[int, int]
"""The index of a chunk among those of its part, and its number of draws per datum."""


@dataclass(frozen=True)
class Plan:
    """The division of N data and K draws per datum; it depends on no data and computes nothing.

    A block is a range of data, the unit of work that processes share. A block with more data than
    `rows` is divided into parts. Each part is drawn in chunks, which add up to K exactly, and each
    chunk has a seed of its own. A task computes one chunk or several.

    Attributes:
        num_data: N, the number of data.
        num_particles: K, the number of draws per datum.
        block_size: The number of data in a block; the last block may have fewer.
        rows: The largest number of pairs of a datum and a draw in one chunk.
        chunks_per_task: The largest number of chunks that one task computes.
        last_apart: The number of last chunks of the last part that are tasks of their own, so that
            threads end at nearly the same time.

    >>> plan = Plan(num_data=5, num_particles=10, block_size=2, rows=8)
    >>> plan.blocks, plan.chunks
    ([range(0, 2), range(2, 4), range(4, 5)], [4, 4, 2])
    """

    num_data: int
    num_particles: int
    block_size: int
    rows: int
    chunks_per_task: int = 1
    last_apart: int = 0

    @property
    def blocks(self) -> list[range]:
        """The blocks in the order of the data."""
        return spans(self.num_data, self.block_size)

    @property
    def part_size(self) -> int:
        """The number of data in the largest part."""
        return min(self.block_size, self.rows)

    @property
    def chunks(self) -> list[int]:
        """The number of draws per datum in each chunk of a part; the sum is K."""
        return chunk_sizes(self.num_particles, self.part_size, self.rows)

    def tasks(self, part: range) -> list[tuple[Chunk, ...]]:
        """Group the chunks of a part by task.

        Args:
            part: Indices of its data.

        Returns:
            The chunks of each task, in order.
        """
        chunks = list(enumerate(self.chunks))
        apart = self.last_apart if part.stop == self.num_data else 0
        joined = max(0, len(chunks) - apart)
        return [*batched(chunks[:joined], self.chunks_per_task), *batched(chunks[joined:], 1)]

    def parts(self, block: range) -> list[range]:
        """Divide a block into parts of at most `rows` data.

        Args:
            block: Indices of the data of one block.

        Returns:
            Indices of the data of each part, in order.
        """
        size = min(self.rows, len(block))
        return [block[part.start : part.stop] for part in spans(len(block), size)]

    def parts_from(self, first: int, share: Share) -> list[range]:
        """List the remaining parts of one process.

        Args:
            first: The index of the first datum of the first part that is wanted.
            share: The rank of the process and the number of processes, which take turns.

        Returns:
            The parts of the blocks of this process that start at `first` or later, in order.
        """
        blocks = self.blocks[share.rank :: share.world]
        return [part for block in blocks for part in self.parts(block) if part.start >= first]


def block_size(num_data: int, num_particles: int, rows: int, least: int) -> int:
    """Choose the number of data in a block.

    A chunk of `rows` pairs then holds `least` draws of each datum, or K if K is smaller.

    Args:
        num_data: N, the number of data.
        num_particles: K, the number of draws per datum.
        rows: The largest number of pairs of a datum and a draw in one chunk.
        least: The number of draws per datum in a chunk.

    Returns:
        A number from 1 to N.

    >>> block_size(num_data=1000, num_particles=5000, rows=8192, least=64)
    128
    """
    return min(num_data, max(1, rows // min(num_particles, least)))


def chunk_sizes(num_particles: int, num_data: int, rows: int) -> list[int]:
    """Divide K draws of a part into chunks.

    Args:
        num_particles: K, the number of draws per datum.
        num_data: The number of data in the part.
        rows: The largest number of pairs of a datum and a draw in one chunk; a chunk has at least
            one draw per datum.

    Returns:
        The number of draws per datum in each chunk; the sum is K.

    >>> chunk_sizes(num_particles=1000, num_data=10, rows=3000)
    [300, 300, 300, 100]
    """
    size = max(1, min(num_particles, rows // num_data))
    full, rest = divmod(num_particles, size)
    return [size] * full + [rest] * (rest > 0)
