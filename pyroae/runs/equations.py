"""The equations of objectives as MathML, which browsers typeset without a script."""

import re
from functools import cache
from html import escape
from pathlib import Path

import yaml

from pyroae.errors import ConfigError
from pyroae.objectives import BOUNDS, ObjectiveBase

_FILE = Path(__file__).parent / "templates" / "equations.yaml"


_TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|\d|[A-Za-z]|\S")


_GREEK = {
    **dict(zip(("alpha", "beta", "gamma", "pi", "theta", "phi", "sigma"), "αβγπθφσ", strict=True)),
    **{"Delta": "Δ", "lambda": "λ"},
}
_SYMBOLS = {"mid": "|", "|": "‖", "le": "≤", "in": "∈", "propto": "∝", "to": "→"}
_SPACES = {"qquad": "2em", "quad": "1em", ",": "0.17em"}
_FIXED = {
    **{name: f"<mi>{letter}</mi>" for name, letter in _GREEK.items()},
    **{name: f"<mo>{symbol}</mo>" for name, symbol in _SYMBOLS.items()},
    **{name: f'<mspace width="{width}"></mspace>' for name, width in _SPACES.items()},
    **{n: f'<mrow><mi>{n}</mi><mspace width="0.17em"></mspace></mrow>' for n in ("log", "KL")},
    "max": "<mi>max</mi>",
    "sum": '<mo largeop="true" movablelimits="false">∑</mo>',
    "big": "",
}
"""Elements of commands without arguments."""


_ACCENTS = {"hat": "^", "bar": "‾", "tilde": "~"}
_BIG = ("sum", "max")


def equations_of(objective: ObjectiveBase, name: str) -> list[str]:
    """Return the equation of an objective as MathML.

    Args:
        objective: The objective.
        name: Its name with its settings, as of `RunConfig.estimator`.

    Returns:
        Elements `<math>`, one for each formula; empty for an objective of a user.

    >>> from pyroae.objectives import parse_objective
    >>> equations_of(parse_objective("dreg", 8), "dreg")[0][:31]
    '<math display="block"><mi>F</mi'
    """
    return [mathml(formula) for formula in formulas_of(objective, name)]


def formulas_of(objective: ObjectiveBase, name: str) -> list[str]:
    """Return the equation of an objective as LaTeX.

    Args:
        objective: The objective.
        name: Its name with its settings.

    Returns:
        Formulas: those of its name, otherwise those of its bound.
    """
    known = _known()
    name = name.partition(":")[0]
    if name in known:
        return known[name]
    if name == "trace-elbo":
        return known["elbo"]
    bound = type(getattr(objective, "bound_function", None))
    return next((known[one] for one in known if one in BOUNDS and BOUNDS[one] is bound), [])


def explained(objective: ObjectiveBase) -> str:
    """Say in a sentence what the gradient of an objective is, or the objective itself.

    Args:
        objective: The objective.

    Returns:
        The first sentence of a docstring; empty for a class without one.
    """
    of = getattr(objective, "gradient", None) if hasattr(objective, "bound_function") else None
    text = type(objective if of is None else of).__doc__ or ""
    return " ".join(text.partition("\n\n")[0].split())


def mathml(latex: str) -> str:
    r"""Convert a formula to MathML.

    Args:
        latex: LaTeX of the kind that `equations.yaml` has: letters, fractions, sums, accents,
            scripts and text.

    Returns:
        An element `<math>`.

    Raises:
        ConfigError: For a command that is not known.

    >>> mathml(r"\frac1K")
    '<math display="block"><mfrac><mn>1</mn><mi>K</mi></mfrac></math>'
    """
    texts = re.findall(r"\\text\{([^}]*)\}", latex)
    tokens = _TOKEN.findall(re.sub(r"\\text\{[^}]*\}", r"\\text ", latex))
    parser = _Parser(tokens, texts)
    return f'<math display="block">{"".join(parser.row())}</math>'


class _Parser:
    """A parser of one formula by recursive descent.

    Args:
        tokens: Its tokens, which are consumed.
        texts: The arguments of its commands text, in order.
    """

    def __init__(self, tokens: list[str], texts: list[str]) -> None:
        self.tokens, self.texts = tokens[::-1], texts[::-1]

    def row(self) -> list[str]:
        """Elements up to a closing brace or the end."""
        row: list[str] = []
        while self.tokens and self.tokens[-1] != "}":
            if element := self.scripted():
                row.append(element)
        return row

    def scripted(self) -> str:
        """An element with its primes, index and exponent."""
        is_big = self.tokens[-1][1:] in _BIG
        base = self.atom()
        scripts: dict[str, str] = {}
        while self.tokens and self.tokens[-1] == "'":
            self.tokens.pop()
            base = f"<msup>{base}<mo>′</mo></msup>"
        while self.tokens and self.tokens[-1] in "_^":
            mark = self.tokens.pop()
            scripts[mark] = self.atom()
        if not scripts:
            return base
        names = {"_": "under", "^": "over"} if is_big else {"_": "sub", "^": "sup"}
        given = [mark for mark in "_^" if mark in scripts]
        tag = "m" + "".join(names[mark] for mark in given)
        return f"<{tag}>{base}{''.join(scripts[mark] for mark in given)}</{tag}>"

    def atom(self) -> str:
        """One element: a letter, a number, a group or a command with its arguments."""
        token = self.tokens.pop()
        if token == "{":
            row = self.row()
            self.tokens.pop()
            return row[0] if len(row) == 1 else f"<mrow>{''.join(row)}</mrow>"
        if token.startswith("\\"):
            return self.command(token[1:])
        if token.isdigit():
            return f"<mn>{token}</mn>"
        if token.isalpha():
            return f"<mi>{token}</mi>"
        fixed = ' stretchy="false"' if token in "()[]" else ""
        return f"<mo{fixed}>{escape(token.replace('-', '−'))}</mo>"

    def command(self, name: str) -> str:
        """The element of a command, of which the arguments follow."""
        if name in ("frac", "tfrac"):
            return f"<mfrac>{self.atom()}{self.atom()}</mfrac>"
        if name in _ACCENTS:
            return f'<mover accent="true">{self.atom()}<mo>{_ACCENTS[name]}</mo></mover>'
        if name == "text":
            return f"<mtext>{escape(self.texts.pop())}</mtext>"
        if name in _FIXED:
            return _FIXED[name]
        raise ConfigError(f"\\{name} is no command of LaTeX that can be shown")


@cache
def _known() -> dict[str, list[str]]:
    return dict(yaml.safe_load(_FILE.read_text(encoding="utf-8")))
