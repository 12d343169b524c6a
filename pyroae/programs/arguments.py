"""Arguments of programs of any form, nested tuples, lists and dicts, and keyword arguments, as a flat tuple of tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from inspect import Parameter, signature
from typing import Any, Self

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.utils._pytree import (
    MappingKey,
    TreeSpec,
    tree_flatten,
    tree_flatten_with_path,
    tree_unflatten,
)

from pyroae.errors import ConfigError, DataError
from pyroae.programs.sites import Program


class Structure(Messenger):
    """Turns a program into one of flat tensors `[N, ...]`. Other values (None, numbers, words) are constants.

    A messenger, as `owner_of` finds the module of a program through the handlers of Pyro; it handles nothing.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        pairs, self._spec = tree_flatten_with_path((args, dict(kwargs)))
        self._leaves = [leaf for _, leaf in pairs]
        self._paths = [path for path, leaf in pairs if isinstance(leaf, Tensor)]
        self.tensors = tuple(leaf for leaf in self._leaves if isinstance(leaf, Tensor))

    def __call__(self, program: Program) -> Program:
        return partial(_restored, self, program)

    def named(self) -> dict[str, Tensor]:
        """The tensors by the keys that they have in dicts and as keyword arguments; else x, x_1, …"""
        return _named(
            [[str(key.key) for key in path if isinstance(key, MappingKey)] for path in self._paths],
            self.tensors,
        )

    def restored(self, tensors: tuple[Tensor, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the program, with these tensors in the places of those that were given first."""
        left = iter(tensors)
        found: Any = tree_unflatten(
            [next(left) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves], self._spec
        )
        return found


class Plain:
    """The structure of tensors that are given one by one: programs take them as they are."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self.tensors = tensors

    def named(self) -> dict[str, Tensor]:
        """The tensors as x, x_1, …"""
        return _named([[] for _ in self.tensors], self.tensors)

    def __call__(self, program: Program) -> Program:
        return program


def structure_of(x: Any, kwargs: Mapping[str, Any], model: Program) -> Structure | Plain:
    """How the arguments of model and guide are made of tensors.

    Args:
        x: one argument, or a tuple of all positional ones; an argument is a tensor `[N, ...]`, or a dict, list or tuple of
            these.
        kwargs: keyword arguments.
        model: the program, whose signature tells keyword arguments from misspelt options.

    Raises:
        ConfigError: for a keyword argument that the model does not take.
        DataError: where the tensors are not of one length.

    >>> import torch
    >>> structure = structure_of({"x": torch.zeros(3), "n": 2}, {}, print)
    >>> len(structure.tensors), structure(lambda batch: sorted(batch))(torch.ones(3))
    (1, ['n', 'x'])
    """
    args = x if isinstance(x, tuple) else (x,)
    _check_keywords(model, kwargs)
    if not kwargs and not is_nested(args):
        return Plain(Arguments(args).tensors)
    structure = Structure(args, kwargs)
    Arguments(structure.tensors)
    return structure


def is_nested(args: tuple[Any, ...]) -> bool:
    """Whether an argument is a container of others."""
    return any(isinstance(arg, dict | list | tuple) for arg in args)


def flat(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], TreeSpec | None]:
    """All values of the arguments, and how they are arranged; None where they are positional and hold no others."""
    if not kwargs and not is_nested(args):
        return args, None
    leaves, spec = tree_flatten((args, dict(kwargs)))
    return tuple(leaves), spec


def arranged(
    values: tuple[Any, ...], spec: TreeSpec | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inverse of `flat`."""
    found: Any = (values, {}) if spec is None else tree_unflatten(list(values), spec)
    return found


def _named(keys: list[list[str]], tensors: tuple[Tensor, ...]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path, tensor in zip(keys, tensors, strict=True):
        stem = "_".join(path) or "x"
        others = sum(name == stem or name.startswith(f"{stem}_") for name in found)
        found[f"{stem}_{others}" if others else stem] = tensor
    return found


def _restored(structure: Structure, program: Program, *tensors: Tensor) -> Any:
    args, kwargs = structure.restored(tensors)
    return program(*args, **kwargs)


def _check_keywords(model: Program, kwargs: Mapping[str, Any]) -> None:
    if not kwargs:
        return
    try:
        known = signature(getattr(model, "forward", model)).parameters
    except (TypeError, ValueError):  # a program without a signature
        return
    if any(p.kind == Parameter.VAR_KEYWORD for p in known.values()):
        return
    for name in kwargs:
        if name not in known:
            raise ConfigError(
                f"'{name}' is no option here, and no argument of the model, which takes {', '.join(known)}"
            )


@dataclass(frozen=True)
class Arguments:
    """N data as the arguments of a program of one's own: tensors `[N, ...]` of any dtype, cut alike along the first dimension.

    Served in batches they are shuffled; in one batch of all N they keep their order, so that a program can number its data.
    Raises DataError where they are not of one length.
    """

    tensors: tuple[Tensor, ...]
    name: str = "data"

    def __post_init__(self) -> None:
        for other in (t for t in self.tensors if not isinstance(t, Tensor)):
            raise DataError(f"the arguments of a program are tensors, not {type(other).__name__}")
        shapes = [tuple(t.shape) for t in self.tensors]
        if len({s[:1] for s in shapes}) != 1 or not shapes[0]:
            raise DataError(
                f"the arguments of a program are tensors of one length N, a datum a row, not of shapes {shapes}"
            )
        if not len(self):
            raise DataError(f"the arguments of a program have no data: their shapes are {shapes}")
        for tensor in self.tensors:
            if tensor.layout != torch.strided or tensor.is_meta:
                kind = (
                    "on the device 'meta', without values"
                    if tensor.is_meta
                    else f"sparse ({tensor.layout})"
                )
                raise DataError(
                    f"the arguments of a program are dense tensors with values; one is {kind}"
                )

    def __len__(self) -> int:
        return len(self.tensors[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one datum in the first argument."""
        return tuple(self.tensors[0].shape[1:])

    def subset(self, index: Any) -> Self:
        """Return the data at `index`, in that order.

        Args:
            index: Whole numbers `[M]`, an array or a tensor, or a slice.

        Returns:
            M data.
        """
        return replace(self, tensors=tuple(t[index] for t in self.tensors))

    def first(self, count: int) -> Self:
        """Return the first `count` data, or all if there are fewer.

        Args:
            count: How many.

        Returns:
            The data.
        """
        return self.subset(slice(count))

    def to(self, device: torch.device | str) -> Self:
        """The same data on `device`."""
        return replace(self, tensors=tuple(t.to(device) for t in self.tensors))
