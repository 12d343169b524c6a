"""Lightning Fabric on the devices of a configuration, and tensors sharded over its processes."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pyroae.config import TrainConfig
from pyroae.errors import ConfigError
from pyroae.runtime.processes import Share

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def fabric_of(config: TrainConfig) -> "Fabric":
    """Make Lightning Fabric with the devices and the precision of a configuration.

    Args:
        config: A configuration of a training.

    Returns:
        Fabric whose processes are not yet started.

    Raises:
        ConfigError: If Fabric refuses the devices, the strategy or the precision.
    """
    strategy: Any = _fully_sharded(config) if config.strategy == "fsdp" else config.strategy
    settings: Any = {
        "devices": config.devices,
        "num_nodes": config.num_nodes,
        "precision": config.precision,
    }
    try:
        return _fabric_class()(accelerator=config.accelerator, strategy=strategy, **settings)
    except (ValueError, RuntimeError, TypeError, ImportError) as error:
        where = (
            f", {config.devices} devices, strategy '{config.strategy}'"
            if config.is_distributed
            else ""
        )
        raise ConfigError(
            f"accelerator '{config.accelerator}' with precision '{config.precision}'{where}: "
            f"{' '.join(str(error).split())}"
        ) from None


@cache
def _fabric_class() -> "type[Fabric]":
    """Import Fabric, without two of its searches.

    One is for callbacks of other packages: 11 ms for each Fabric. The other is a setting by which
    torch loads the driver's library at each question for GPUs, of which there is one for each
    traced operation: 40 µs, a quarter of the time of tracing. It is undone where there is no GPU.
    """
    from lightning_fabric import Fabric

    if not torch.cuda.is_available():
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"

    class WithoutPlugins(Fabric):
        @staticmethod
        def _configure_callbacks(callbacks: Any) -> list[Any]:
            return []

    return WithoutPlugins


def launch_fabric(config: TrainConfig) -> "Fabric":
    """Make Fabric and start the processes that torchrun or SLURM has not started already.

    Args:
        config: A configuration of a training.

    Returns:
        Fabric with its processes started.

    Raises:
        ConfigError: If Fabric refuses the configuration, or the processes cannot be started.
    """
    for name in ("lightning.fabric", "lightning_fabric"):  # its banner of registered processes
        logging.getLogger(name).setLevel(logging.WARNING)
    fabric = fabric_of(config)
    try:
        fabric.launch()
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the processes of {config.devices} devices cannot be started: "
            f"{' '.join(str(error).split())}"
        ) from None
    return fabric


def share_of(fabric: "Fabric") -> Share:
    """Find the part of every batch that this process takes.

    Args:
        fabric: Fabric with its processes started.

    Returns:
        The share of this process's rank.
    """
    return Share(fabric.global_rank, fabric.world_size)


@contextmanager
def default_dtype(config: TrainConfig) -> Iterator[None]:
    """Set double precision as torch's default for a configuration of precision "64-true".

    Fabric converts what a module returns to the default.

    Args:
        config: A configuration of a training.

    Yields:
        None, in the context; the default is restored on exit.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if config.precision == "64-true" else before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def gather_tensors(nest: Any) -> Any:
    """Copy all tensors of a nest, gathering sharded ones. Collective: call it on every rank.

    Args:
        nest: A tensor, or nested dicts, lists and tuples of tensors and other values.

    Returns:
        The same nest, each tensor a detached copy of full shape; other values are unchanged.
    """
    from torch.distributed.tensor import DTensor

    def gathered(value: Any) -> Any:
        if isinstance(value, DTensor):
            return cast(Any, value.detach()).full_tensor().clone()
        return value.detach().clone() if isinstance(value, Tensor) else value

    return tree_map(gathered, nest)


def load_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load a state dict of full tensors into a module whose parameters may be sharded.

    Args:
        module: The module.
        weights: The state dict: names and full tensors.
    """
    own = module.state_dict()
    module.load_state_dict(
        {name: _sharded_like(value, own.get(name)) for name, value in weights.items()}
    )


def load_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """Load a state dict of full tensors into an optimizer whose parameters may be sharded.

    Args:
        optimizer: An optimizer of torch.
        state: Its state dict; tensors of a parameter's shape are sharded like the parameter.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    shards = {
        i: {
            name: _sharded_like(value, parameters[i])
            if isinstance(value, Tensor) and value.shape == parameters[i].shape
            else value
            for name, value in values.items()
        }
        for i, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": shards})


def _sharded_like(value: Tensor, own: Any) -> Tensor:
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(own, DTensor):
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)


def _fully_sharded(config: TrainConfig) -> Any:
    """The second version of torch's FSDP, which runs on CPUs too."""
    from lightning_fabric.strategies import ModelParallelStrategy

    def parallel(module: nn.Module, mesh: Any) -> nn.Module:
        from torch.distributed.fsdp import fully_shard

        fully_shard(module, mesh=mesh["data_parallel"])
        return module

    devices = config.devices if config.devices > 0 else max(1, torch.cuda.device_count())
    return ModelParallelStrategy(
        cast(Any, parallel), data_parallel_size=devices * config.num_nodes, tensor_parallel_size=1
    )
