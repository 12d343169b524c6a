"""The DataTree of standardized data in the units of their source."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from pyroae.data.dataset import Dataset

if TYPE_CHECKING:
    from xarray import DataTree

VALUES = ("observed_data", "prior_predictive", "posterior_predictive")
"""Groups with values of x."""


DENSITIES = ("log_lik", "log_weight")
"""Variables of the draws of the guide that contain log p(x|z)."""


def tree_in_units(tree: "DataTree", dataset: Dataset, log_units: Tensor) -> "DataTree":
    """Convert data, draws of x and log-densities of the guide's draws.

    Args:
        tree: The tree of an `Autoencoder` on standardized data; per-datum statistics and those of
            annealing are in the units of the source.
        dataset: The data.
        log_units: What is subtracted from log p(x) of each datum, `[N]`, nats.

    Returns:
        The same tree with x and log-densities in the units of the source.
    """
    from xarray import DataTree

    assert dataset.standardization is not None
    mean, deviation = (
        getattr(dataset.standardization, name).cpu().numpy() for name in ("mean", "deviation")
    )
    groups: dict[str, Any] = {}
    for path in tree.groups:
        node: Any = tree[path]
        data, name = node.to_dataset(inherit=False), path.strip("/")
        if name in VALUES and "x" in data:
            x = data["x"]
            data["x"] = (x * deviation + mean).astype(x.dtype).assign_attrs(x.attrs)
        if name == "sample_stats_guide":
            for one in DENSITIES:
                old = data[one]  # datum is the last dimension
                data[one] = (old - log_units.numpy()).astype(old.dtype).assign_attrs(old.attrs)
        groups[path] = data
    return DataTree.from_dict(groups)
