"""How settings are written: YAML, `name:key=value`, BOUND+GRADIENT, and lists of objectives."""

import re
from collections.abc import Sequence

from pyroae.errors import ConfigError
from pyroae.names import check_name


def pair_of(objective: str) -> tuple[str, str] | None:
    """Split BOUND+GRADIENT.

    Args:
        objective: The text of an objective.

    Returns:
        The texts of bound and gradient; None for the name of an objective.

    >>> pair_of("renyi:alpha=-1e+1+score:baseline=none"), pair_of("renyi:alpha=1e+1")
    (('renyi:alpha=-1e+1', 'score:baseline=none'), None)
    """
    found = re.match(r"(.*?)\+([A-Za-z].*)$", objective)
    return (found[1], found[2]) if found else None


def objectives_in(text: str) -> tuple[str, ...]:
    """Split a list of objectives; commas also stand between the settings of one.

    Args:
        text: What `--objectives` takes.

    Returns:
        The text of each objective.

    >>> objectives_in("iwae,renyi:alpha=0.5,num_particles=4,jvi:order=2+doubly-reparameterized")
    ('iwae', 'renyi:alpha=0.5,num_particles=4', 'jvi:order=2+doubly-reparameterized')
    """
    return tuple(part.strip() for part in re.split(r",(?=\s*[A-Za-z][\w-]*\s*(?:[:,+]|$))", text))


def loggers_in(text: str | None) -> tuple[str, ...]:
    """Split a list of loggers; commas also stand between the settings of one.

    Args:
        text: What `--logger` takes, or None.

    Returns:
        The text of each logger; none for None.

    >>> loggers_in("csv,wandb:project=vae,mode=offline"), loggers_in(None)
    (('csv', 'wandb:project=vae,mode=offline'), ())
    """
    return () if text is None else objectives_in(text)


def check_objective_names(objective: str) -> None:
    """Refuse an objective, bound or gradient that does not exist.

    Args:
        objective: A name with its settings, or BOUND+GRADIENT.

    Raises:
        ConfigError: With the nearest known name.
    """
    pair = pair_of(objective)
    if pair is None:
        check_name("objective", objective)
        return
    check_name("bound", pair[0])
    check_name("gradient", pair[1])


def compared(names: Sequence[str], ks: Sequence[int]) -> None:
    """Refuse objectives that cannot be compared at each K.

    Args:
        names: Objectives.
        ks: Numbers of particles.

    Raises:
        ConfigError: If one does not exist or has a K of its own, or a K is below 1.
    """
    for name in names:
        check_objective_names(name)
        if "num_particles=" in name.replace(" ", ""):
            raise ConfigError(f"--num-particles gives every K: leave num_particles out of '{name}'")
    if not ks or min(ks) < 1:
        raise ConfigError(f"num_particles must be at least 1, not {min(ks, default='none')}")
