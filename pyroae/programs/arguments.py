"""Arguments of any Pyro program as a flat tuple of tensors.

Arguments may be nested tuples, lists and dicts, and keyword arguments.
"""

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
from pyroae.runtime.short_repr import Overview, Shown


class Structure(Messenger):
    """Turn a program into one of flat tensors `[N, ...]`; other values are constants.

    Constants are None, numbers and strings. The class is a messenger because `owner_of` finds
    the module of a program through Pyro's handlers; it handles no site.

    Args:
        args: Positional arguments of the program, with tensors `[N, ...]` as leaves.
        kwargs: Keyword arguments of the program, with tensors `[N, ...]` as leaves.

    Attributes:
        tensors: The tensors among the leaves, each `[N, ...]`.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        pairs, self._spec = tree_flatten_with_path((args, dict(kwargs)))
        self._leaves = [leaf for _, leaf in pairs]
        self._paths = [path for path, leaf in pairs if isinstance(leaf, Tensor)]
        self.tensors = tuple(leaf for leaf in self._leaves if isinstance(leaf, Tensor))

    def __call__(self, program: Program) -> Program:
        """Wrap a program.

        Args:
            program: A model or guide that takes the structured arguments.

        Returns:
            A program that takes the tensors `[N, ...]` one by one.
        """
        return partial(_restored, self, program)

    def named(self) -> dict[str, Tensor]:
        """Name each tensor by its keys in dicts and its keyword, joined by "_".

        Returns:
            Names and tensors `[N, ...]`; names without a key are x, x_1, …
        """
        return _named(
            [[str(key.key) for key in path if isinstance(key, MappingKey)] for path in self._paths],
            self.tensors,
        )

    def is_like(self, other: "Structure | None") -> bool:
        """Tell whether other arguments are arranged in the same way.

        Args:
            other: The structure of the other arguments; None for positional tensors.

        Returns:
            Whether containers, keys and the places of tensors are equal.
        """
        return other is not None and (self._spec, self._paths) == (other._spec, other._paths)

    def restored(self, tensors: tuple[Tensor, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Rebuild the arguments of the program with other tensors.

        Args:
            tensors: One tensor for each of `self.tensors`, in the same order.

        Returns:
            The positional and the keyword arguments; constants are those of the constructor.
        """
        remaining = iter(tensors)
        arguments: Any = tree_unflatten(
            [next(remaining) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves],
            self._spec,
        )
        return arguments


class Plain:
    """The structure of positional tensors, which a program takes unchanged.

    Args:
        tensors: The positional arguments, each `[N, ...]`.

    Attributes:
        tensors: The same tensors.
    """

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self.tensors = tensors

    def named(self) -> dict[str, Tensor]:
        """Name the tensors by their positions.

        Returns:
            The tensors `[N, ...]` as x, x_1, …
        """
        return _named([[] for _ in self.tensors], self.tensors)

    def __call__(self, program: Program) -> Program:
        """Return the program unchanged: it takes the tensors `[N, ...]` one by one.

        Args:
            program: A model or guide.

        Returns:
            The same program.
        """
        return program


def structure_of(x: Any, kwargs: Mapping[str, Any], model: Program) -> Structure | Plain:
    """Find the tensors in the arguments of a model and guide.

    Args:
        x: One argument, or a tuple of all positional ones; an argument is a tensor `[N, ...]`,
            or a dict, list or tuple of these.
        kwargs: Keyword arguments.
        model: The program whose signature distinguishes keyword arguments from misspelt options.

    Returns:
        The structure: its `tensors`, and a function from a program to one of flat tensors.

    Raises:
        ConfigError: If the model does not take a keyword argument.
        DataError: If the tensors are not of one length.

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
    """Tell whether an argument is a container of others.

    Args:
        args: Positional arguments of a program.

    Returns:
        True if one of them is a dict, a list or a tuple.
    """
    return any(isinstance(arg, dict | list | tuple) for arg in args)


def flatten_arguments(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], TreeSpec | None]:
    """List all values of the arguments of a program.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.

    Returns:
        The values, tensors or not, and their arrangement; the latter is None for positional
        arguments that are no containers.
    """
    if not kwargs and not is_nested(args):
        return args, None
    leaves, spec = tree_flatten((args, dict(kwargs)))
    return tuple(leaves), spec


def unflatten_arguments(
    values: tuple[Any, ...], spec: TreeSpec | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Rebuild arguments from their values: the inverse of `flatten_arguments`.

    Args:
        values: The values in the order of `flatten_arguments`.
        spec: Their arrangement; None for positional arguments that are no containers.

    Returns:
        The positional and the keyword arguments.
    """
    arguments: Any = (values, {}) if spec is None else tree_unflatten(list(values), spec)
    return arguments


def _named(keys: list[list[str]], tensors: tuple[Tensor, ...]) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    for path, tensor in zip(keys, tensors, strict=True):
        stem = "_".join(path) or "x"
        others = sum(name == stem or name.startswith(f"{stem}_") for name in result)
        result[f"{stem}_{others}" if others else stem] = tensor
    return result


def _restored(structure: Structure, program: Program, *tensors: Tensor) -> Any:
    args, kwargs = structure.restored(tensors)
    return program(*args, **kwargs)


def _check_keywords(model: Program, kwargs: Mapping[str, Any]) -> None:
    if not kwargs:
        return
    try:
        parameters = signature(getattr(model, "forward", model)).parameters
    except (TypeError, ValueError):  # a program without a signature
        return
    if any(p.kind == Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for name in kwargs:
        if name not in parameters:
            raise ConfigError(
                f"'{name}' is no option here, and no argument of the model, which takes "
                f"{', '.join(parameters)}"
            )


@dataclass(frozen=True, repr=False)
class Arguments(Shown):
    """The arguments of a user's program for N data: tensors `[N, ...]` of any dtype.

    Batches are rows of all tensors. In batches the data are shuffled; one batch of all N keeps
    their order, so that a program can number its data.

    Attributes:
        tensors: The arguments, each `[N, ...]`.
        name: Name of the data in messages.
        structure: How programs take them, if in dicts, lists or tuples; None for one by one.

    Raises:
        DataError: If they are not dense tensors of one length N > 0.

    >>> data = Arguments((torch.zeros(5, 2), torch.arange(5)))
    >>> len(data), [tuple(t.shape) for t in data.to("cpu").tensors]
    (5, [(5, 2), (5,)])
    """

    tensors: tuple[Tensor, ...]
    name: str = "data"
    structure: Structure | None = None

    def _overview(self) -> Overview:
        shapes = [
            f"{list(one.shape)} {str(one.dtype).removeprefix('torch.')}" for one in self.tensors
        ]
        return Overview([self.name, f"N={len(self)}", *shapes])

    def __post_init__(self) -> None:
        for other in (t for t in self.tensors if not isinstance(t, Tensor)):
            hint = "Dataset.from_array(...).tensors makes them of an array or a table"
            if isinstance(other, dict | list | tuple):
                hint = "give a tuple of its tensors, and build it in the program"
            raise DataError(
                f"the arguments of a program are tensors, not {type(other).__name__}: {hint}"
            )
        shapes = [tuple(t.shape) for t in self.tensors]
        if len({s[:1] for s in shapes}) != 1 or not shapes[0]:
            raise DataError(
                "the arguments of a program are tensors of one length N, with a row per datum, "
                f"not of shapes {shapes}"
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

    @classmethod
    def of(cls, given: Any) -> Self:
        """Make arguments of a tensor, a dict of tensors, or a tuple of these.

        Args:
            given: One argument, or a tuple of all positional ones, as evaluators take them.

        Returns:
            The arguments.

        Raises:
            DataError: If they hold no tensors, or tensors of several lengths.

        >>> data = Arguments.of({"x": torch.zeros(5, 2), "counts": torch.arange(5)})
        >>> len(data.tensors), data.flattened(print)(*data.tensors) is None
        {'x': tensor(...), 'counts': tensor([0, 1, 2, 3, 4])}
        (2, True)
        """
        args = given if isinstance(given, tuple) else (given,)
        if not is_nested(args):
            return cls(args)
        structure = Structure(args, {})
        if not structure.tensors:
            raise DataError("the data of a program hold no tensor")
        return cls(structure.tensors, structure=structure)

    def flattened(self, program: Program) -> Program:
        """Turn a program into one that takes `tensors` one by one."""
        return program if self.structure is None else self.structure(program)

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
        """Copy the data to a device.

        Args:
            device: The device of the copies.

        Returns:
            The same data, each tensor `[N, ...]` on `device`.
        """
        return replace(self, tensors=tuple(t.to(device) for t in self.tensors))
