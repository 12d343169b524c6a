"""The `repr` of results: as short as a screen, with shapes of tensors in place of their values."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

WIDTH = 100
"""Characters of a line."""


ROOM = 60
"""Characters of the elements of a sequence, without the brackets."""


FEW = 8
"""Largest number of elements of a tensor whose values are shown."""


def short_repr(*headline: str) -> Callable[[Any], str]:
    """Make the `__repr__` of a dataclass, to be assigned in its body.

    The text is one line where it fits, otherwise a line per field. Properties of the headline come
    first; one with a standard error, a property with the suffix `_se`, has it beside its value.

    Args:
        headline: Names of properties that are shown before the fields.

    Returns:
        A method that returns the text.

    >>> from dataclasses import dataclass
    >>> import torch
    >>> @dataclass
    ... class Found:
    ...     values: Tensor
    ...     seconds: float
    ...     mean = property(lambda self: self.values.mean().item())
    ...     mean_se = property(lambda self: self.values.std().item() / len(self.values) ** 0.5)
    ...     __repr__ = short_repr("mean")
    >>> Found(torch.arange(100.0), 0.5)
    Found(mean=49.5 ± 2.901, values=Tensor[100] float32, seconds=0.5)
    """

    def __repr__(self: Any) -> str:
        names = [*headline, *(field.name for field in fields(self) if field.repr)]
        items = [f"{name}={_with_error(self, name)}" for name in names]
        line = f"{type(self).__name__}({', '.join(items)})"
        if len(line) <= WIDTH:
            return line
        lines = [f"{_cut(f'    {item}')}," for item in items]
        return "\n".join([f"{type(self).__name__}(", *lines, ")"])

    return __repr__


def _with_error(result: Any, name: str) -> str:
    value = getattr(result, name)
    error = getattr(result, f"{name}_se", None)
    if isinstance(value, float) and isinstance(error, float):
        return f"{value:.6g} ± {error:.4g}"
    return _text(value)


def _text(value: Any) -> str:
    """A value in one line."""
    if isinstance(value, Tensor | np.ndarray):
        return _array(value)
    if isinstance(value, nn.Module):
        count = sum(parameter.numel() for parameter in value.parameters())
        return f"{type(value).__name__} with {count:,} parameters"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        items = [f"{key}: {_text(one)}" for key, one in value.items()]
        return _joined("{", items, "}") or _joined("{", list(map(str, value)), "}")
    named = isinstance(value, tuple) and hasattr(value, "_fields")
    if isinstance(value, list | tuple) and not named:
        return _several(value)
    return _one_line(str(value) if named else repr(value))


def _array(values: Tensor | np.ndarray) -> str:
    """The shape, the type and the device; values too where these are a few numbers."""
    size = values.size if isinstance(values, np.ndarray) else values.numel()
    device = str(getattr(values, "device", "cpu"))
    text = f"{type(values).__name__}{list(values.shape)} {values.dtype}".replace(" torch.", " ")
    if device != "cpu":
        return f"{text} on {device}"
    return f"{text} ({_numbers(values)})" if size <= FEW else text


def _numbers(values: Tensor | np.ndarray) -> str:
    return ", ".join(_text(value) for value in values.reshape(-1).tolist())


def _several(values: Sequence[Any]) -> str:
    """Elements of a sequence, or their number and type where they do not fit."""
    kinds = " or ".join(sorted({type(one).__name__ for one in values}))
    if len(values) > 1 and any(is_dataclass(one) for one in values):
        return f"{len(values)} × {kinds}"
    opening, closing = "[]" if isinstance(values, list) else "()"
    closing = ",)" if closing == ")" and len(values) == 1 else closing
    return _joined(opening, [_text(one) for one in values], closing) or f"{len(values)} × {kinds}"


def _joined(opening: str, items: list[str], closing: str) -> str:
    """Items in one line, the first ones where not all fit; nothing where none does."""
    between = "; " if any(", " in item for item in items) else ", "
    shown = [item for n, item in enumerate(items) if len(between.join(items[: n + 1])) <= ROOM]
    if not shown and items:
        return ""
    if len(shown) < len(items):
        shown.append(f"… {len(items)} in all")
    return f"{opening}{between.join(shown)}{closing}"


def _one_line(text: str) -> str:
    """A text without line breaks; of several lines the first, with the first item in brackets."""
    first, *rest = text.split("\n")
    if not rest:
        return first
    return f"{first}{rest[0].strip()} …)" if first.endswith("(") else f"{first} …"


def _cut(text: str) -> str:
    return text if len(text) < WIDTH else f"{text[: WIDTH - 2]}…"
