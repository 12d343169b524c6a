"""Lightning Fabric on the devices of a configuration, and tensors that its processes hold in parts."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pyroae.config import TrainConfig
from pyroae.errors import ConfigError
from pyroae.runtime.processes import Share


def fabric_of(config: TrainConfig) -> Fabric:
    """Lightning Fabric on the devices and in the precision of a configuration. Raises ConfigError where it has none."""
    strategy: Any = _fully_sharded(config) if config.strategy == "fsdp" else config.strategy
    settings: Any = {
        "devices": config.devices,
        "num_nodes": config.num_nodes,
        "precision": config.precision,
    }
    try:
        return Fabric(accelerator=config.accelerator, strategy=strategy, **settings)
    except (ValueError, RuntimeError, TypeError, ImportError) as error:
        where = (
            f", {config.devices} devices, strategy '{config.strategy}'"
            if config.is_distributed
            else ""
        )
        raise ConfigError(
            f"accelerator '{config.accelerator}' with precision '{config.precision}'{where}: {' '.join(str(error).split())}"
        ) from None


def launched(config: TrainConfig) -> Fabric:
    """Fabric with its processes started, those that torchrun or SLURM has not started already. Raises ConfigError."""
    for name in ("lightning.fabric", "lightning_fabric"):  # its banner of registered processes
        logging.getLogger(name).setLevel(logging.WARNING)
    fabric = fabric_of(config)
    try:
        fabric.launch()
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the processes of {config.devices} devices cannot be started: {' '.join(str(error).split())}"
        ) from None
    return fabric


def share_of(fabric: Fabric) -> Share:
    """The part of every batch that this process has."""
    return Share(fabric.global_rank, fabric.world_size)


@contextmanager
def default_dtype(config: TrainConfig) -> Iterator[None]:
    """Double precision as the default where it is asked for: Fabric converts what a module returns to the default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if config.precision == "64-true" else before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def whole(nest: Any) -> Any:
    """Every tensor of a nest as a copy of its own, put together where processes have parts of it: each has to call this."""
    from torch.distributed.tensor import DTensor

    def one(value: Any) -> Any:
        if isinstance(value, DTensor):
            return cast(Any, value.detach()).full_tensor().clone()
        return value.detach().clone() if isinstance(value, Tensor) else value

    return tree_map(one, nest)


def load_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """`load_state_dict` of whole tensors, where processes have parts of them too."""
    own = module.state_dict()
    module.load_state_dict({name: _like(value, own.get(name)) for name, value in weights.items()})


def load_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """`load_state_dict` of whole tensors, where processes have parts of them too."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parts = {
        i: {
            name: _like(v, parameters[i])
            if isinstance(v, Tensor) and v.shape == parameters[i].shape
            else v
            for name, v in of.items()
        }
        for i, of in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": parts})


def _part(value: Any, parameter: Tensor) -> Any:
    """What an optimizer keeps of a parameter: as that one lies where it is of its shape."""
    return (
        _like(value, parameter)
        if isinstance(value, Tensor) and value.shape == parameter.shape
        else value
    )


def _like(value: Tensor, own: Any) -> Tensor:
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(own, DTensor):
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)


def _fully_sharded(config: TrainConfig) -> Any:
    """FSDP of torch, in its second form, which runs on CPUs too."""
    from lightning_fabric.strategies import ModelParallelStrategy

    def parallel(module: nn.Module, mesh: Any) -> nn.Module:
        from torch.distributed.fsdp import fully_shard

        fully_shard(module, mesh=mesh["data_parallel"])
        return module

    devices = config.devices if config.devices > 0 else max(1, torch.cuda.device_count())
    return ModelParallelStrategy(
        cast(Any, parallel), data_parallel_size=devices * config.num_nodes, tensor_parallel_size=1
    )
