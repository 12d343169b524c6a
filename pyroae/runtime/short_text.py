"""Values as short text in one line: shapes of tensors, rounded numbers with their errors."""

import math
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import partial
from types import FunctionType, MethodType
from typing import Any

WIDTH = 100
"""Characters of a line."""


ROOM = 60
"""Characters of the elements of a sequence, without the brackets."""


FEW = 8
"""Largest number of elements of a tensor whose values are shown."""


def width_of(text: str) -> int:
    """Return the number of columns that a text takes on a screen.

    Args:
        text: The text, in one line.

    Returns:
        The number of characters without those that combine with the one before.

    >>> width_of("k̂")
    1
    """
    return sum(not unicodedata.combining(character) for character in text)


def cut(text: str, width: int = WIDTH) -> str:
    """Return a text in one line.

    Args:
        text: The text; line breaks become spaces.
        width: The largest number of columns.

    Returns:
        The text, or its beginning with dots where it is longer.

    >>> cut("a long text", 7)
    'a long…'
    """
    text = " ".join(text.split()) if "\n" in text else text
    return text if width_of(text) <= width else f"{text[: width - 1].rstrip()}…"


def number(value: float, digits: int = 4) -> str:
    """Write a number.

    Args:
        value: The number.
        digits: Significant digits of a fraction; whole numbers are written in full.

    Returns:
        The text.

    >>> number(1234.56), number(0.00012345), number(1797), number(float("nan"))
    ('1235', '0.0001234', '1797', 'nan')
    """
    if isinstance(value, int) or (math.isfinite(value) and abs(value) >= 10**digits):
        return f"{value:.0f}" if abs(value) < 1e12 else f"{value:.{digits}g}"
    return f"{value:.{digits}g}"


def with_error(value: float, error: float | None, unit: str = "") -> str:
    """Write a number with its error, both rounded to two digits of the error.

    Args:
        value: The number.
        error: Its standard error; None or a value that is not finite and positive is left out.
        unit: The unit, for example `nats`.

    Returns:
        The text, as `90.18 ± 0.77 nats`.

    >>> with_error(90.1834, 0.7712, "nats"), with_error(-0.5, math.nan), with_error(3.21, 12.0)
    ('90.18 ± 0.77 nats', '-0.5', '3 ± 12')
    """
    unit = f" {unit}" if unit else ""
    if error is None or not (math.isfinite(value) and 0 < error < math.inf):
        return f"{number(value, 5)}{unit}"
    places = 1 - math.floor(math.log10(error))
    if not -6 < places < 9 or abs(value) >= 1e9:
        return f"{value:.4g} ± {error:.2g}{unit}"
    places = max(places, 0)
    return f"{value:.{places}f} ± {error:.{places}f}{unit}"


def percent(part: float, whole: float = 1) -> str:
    """Write a share in percent; what is neither nothing nor all is not rounded to that.

    Args:
        part: The part.
        whole: The whole, in the unit of the part.

    Returns:
        The text, as `3 %`.

    >>> percent(5, 179), percent(1, 10_000), percent(0, 10), percent(9999, 10_000), percent(3, 3)
    ('3 %', '<1 %', '0 %', '>99 %', '100 %')
    """
    share = part / whole if whole else math.nan
    if 0 < share < 0.005:
        return "<1 %"
    return ">99 %" if 0.995 <= share < 1 else f"{100 * share:.0f} %"


def duration(seconds: float) -> str:
    """Return a time as people write it.

    Args:
        seconds: The time; nan if it is not known.

    Returns:
        Seconds, minutes and seconds, hours and minutes, or days and hours.

    >>> duration(0.0123), duration(12.4), duration(125), duration(5820), duration(442800)
    ('0.012 s', '12 s', '2 min 05 s', '1 h 37 min', '5 d 03 h')
    >>> duration(1800), duration(math.nan)
    ('30 min', 'unknown time')
    """
    if not math.isfinite(seconds):
        return "unknown time"
    if seconds < 59.5:
        return f"{seconds:.2g} s"
    large, unit, names = 60, round(seconds), ("min", "s")
    if seconds >= 3599.5:
        unit, names = round(seconds / 60), ("h", "min")
    if seconds >= 86_370:
        large, unit, names = 24, round(seconds / 3600), ("d", "h")
    whole, rest = divmod(unit, large)
    return f"{whole} {names[0]}" + (f" {rest:02d} {names[1]}" if rest else "")


def shape_text(shape: Iterable[int]) -> str:
    """Write the shape of a datum.

    Args:
        shape: The size of each dimension.

    Returns:
        The text, as `28 × 28`.

    >>> shape_text((28, 28)), shape_text(())
    ('28 × 28', 'scalar')
    """
    return " × ".join(map(str, shape)) or "scalar"


def memory_text(count: int) -> str:
    """Write an amount of memory.

    Args:
        count: The number of bytes.

    Returns:
        The text, in bytes, kB, MB or GB.

    >>> memory_text(1797 * 64 * 4)
    '460 kB'
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def text_of(value: Any) -> str:
    """Write a value in one line.

    Args:
        value: Any value.

    Returns:
        The shape and type of an array, the type and size of a module, the first line of a `Shown`
        object, the elements of a short collection; the `repr` of others.

    >>> text_of([1.0, 1 / 3]), text_of({"a": None})
    ('[1, 0.333333]', '{a: None}')
    """
    headline = getattr(type(value), "_headline", None)
    if headline is not None:
        return str(headline(value))
    if is_array(value):
        return _array(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return _text_of_parts(value)


def _text_of_parts(value: Any) -> str:
    """A collection, a call or a module by its parts; anything else by its own `repr`."""
    if isinstance(value, partial):
        given = [
            *map(text_of, value.args),
            *(f"{k}={text_of(v)}" for k, v in value.keywords.items()),
        ]
        return f"{text_of(value.func)}({', '.join(given)})"
    if isinstance(value, FunctionType | MethodType | type):
        return value.__qualname__
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.nn.Module):
        return f"{type(value).__name__} with {parameters_of(value):,} parameters"
    if isinstance(value, Mapping):
        items = [f"{key}: {text_of(one)}" for key, one in value.items()]
        return _joined("{", items, "}") or _joined("{", list(map(str, value)), "}")
    named = isinstance(value, tuple) and hasattr(value, "_fields")
    if isinstance(value, list | tuple) and not named:
        return _several(value)
    return _one_line(str(value) if named else repr(value))


def is_array(value: Any) -> bool:
    """Return whether a value is an array of NumPy or a tensor of torch.

    Args:
        value: Any value.

    Returns:
        Whether it has a shape and a type of elements.
    """
    return hasattr(value, "dtype") and hasattr(value, "reshape") and hasattr(value, "shape")


def parameters_of(module: Any) -> int:
    """Return the number of parameters of a module.

    Args:
        module: A module of torch.

    Returns:
        The number of all elements of its parameters.
    """
    return sum(parameter.numel() for parameter in module.parameters())


def _array(values: Any) -> str:
    """The shape, the type and the device; values too where these are a few numbers."""
    device = str(getattr(values, "device", "cpu"))
    dtype = str(values.dtype).removeprefix("torch.")
    text = f"{type(values).__name__}{list(values.shape)} {dtype}"
    if device != "cpu":
        return f"{text} on {device}"
    return f"{text} ({_numbers(values)})" if math.prod(values.shape) <= FEW else text


def _numbers(values: Any) -> str:
    return ", ".join(text_of(value) for value in values.reshape(-1).tolist())


def _several(values: Sequence[Any]) -> str:
    """Elements of a sequence, or their number and type where they do not fit."""
    kinds = " or ".join(sorted({type(one).__name__ for one in values}))
    if len(values) > 1 and any(is_dataclass(one) for one in values):
        return f"{len(values)} × {kinds}"
    opening, closing = "[]" if isinstance(values, list) else "()"
    closing = ",)" if closing == ")" and len(values) == 1 else closing
    return _joined(opening, [text_of(one) for one in values], closing) or f"{len(values)} × {kinds}"


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
