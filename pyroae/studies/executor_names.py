"""The executor of a study that the command line names."""

from pyroae.errors import ConfigError, unknown_name
from pyroae.studies.executors import Executor
from pyroae.studies.process_executor import InProcesses
from pyroae.studies.ray_executor import OnRay


def executor_of(
    executor: str = "local",
    address: str | None = None,
    gpus_per_cell: float | None = None,
    jobs: int | None = None,
) -> Executor:
    """Return the executor that the command line names.

    Args:
        executor: `local` or `ray`.
        address: The address of the Ray cluster; None for this machine alone.
        gpus_per_cell: The share of a GPU per training, in [0, 1].
        jobs: How many trainings of this machine run side by side; None for `jobs_for`.

    Returns:
        The executor.

    Raises:
        ConfigError: For another name, for options of Ray without Ray, and for `jobs` with it.

    >>> executor_of("local"), executor_of("ray", gpus_per_cell=0.25)
    (InProcesses(jobs=None, retries=3), OnRay(address=None, gpus_per_cell=0.25, retries=3))
    """
    if executor == "ray":
        if jobs is not None:
            raise ConfigError(
                "--jobs is for trainings on this machine: Ray decides how many it runs"
            )
        return OnRay(address, gpus_per_cell)
    if executor != "local":
        raise unknown_name("executor", executor, ("local", "ray"))
    for flag, value in (("--address", address), ("--gpus-per-cell", gpus_per_cell)):
        if value is not None:
            raise ConfigError(f"{flag} is for trainings on Ray: give --executor ray too")
    return InProcesses(jobs)
