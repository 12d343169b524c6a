"""Names and settings become instances, and whatever cannot is refused in one sentence."""

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import pytest
from torch import Tensor, nn

from pyroae import zoo
from pyroae.config import RunConfig
from pyroae.errors import ConfigError
from pyroae.likelihoods import LIKELIHOODS
from pyroae.likelihoods import Normal as NormalLikelihood
from pyroae.nn import MAPS, MLP, Conv, Linear
from pyroae.priors import PRIORS, Laplace, Prior
from pyroae.registry import Registry


@dataclass(frozen=True)
class Shape:
    radius: float = 1.0
    count: int = 2
    closed: bool = False
    name: str = "round"
    sizes: tuple[int, ...] = (1, 2)


@pytest.fixture
def shapes() -> Registry[Any]:
    registry: Registry[Any] = Registry("shape")
    registry.register("shape")(Shape)
    return registry


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("shape", Shape()),
        ("shape:", Shape()),
        ("shape:radius=2.5", Shape(radius=2.5)),
        ("shape:radius=2", Shape(radius=2)),
        ("shape:radius=1e-3", Shape(radius=1e-3)),
        ("shape:radius=-1.5e+2", Shape(radius=-150.0)),
        ("shape:count=7,closed=true,name=flat", Shape(count=7, closed=True, name="flat")),
        ("shape:sizes=[3,4,5]", Shape(sizes=(3, 4, 5))),
        ("shape:sizes=[3,4],count=1", Shape(sizes=(3, 4), count=1)),
        (" shape : radius = 3 , count = 4 ", Shape(radius=3, count=4)),
    ],
)
def test_parse(shapes: Registry[Any], text: str, expected: Shape) -> None:
    found = shapes.parse(text)
    assert found == expected
    assert hash(found) == hash(expected)  # lists have become tuples


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("shap", "unknown shape 'shap': did you mean 'shape'"),
        ("", "unknown shape ''; known: shape"),
        ("shape:radios=2", "unknown setting of the shape 'shape' 'radios': did you mean 'radius'"),
        ("shape:radius", "'shape:radius' is not of the form name:key=value,key=value"),
        ("shape:radius=big", "shape 'shape': radius takes a number, not 'big'"),
        ("shape:radius=true", "radius takes a number, not True"),
        ("shape:radius=", "radius takes a number, not None"),
        ("shape:count=1.5", "count takes int, not 1.5"),
        ("shape:count=true", "count takes int, not True"),
        ("shape:closed=1", "closed takes bool, not 1"),
        ("shape:name=3", "name takes str, not 3"),
        ("shape:sizes=3", "sizes takes tuple, not 3"),
        ("shape:radius=[1", "radius"),
        ("shape:radius={", "radius"),
    ],
)
def test_refused(shapes: Registry[Any], text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        shapes.parse(text)
    assert "\n" not in str(caught.value)


def test_missing_setting_is_named() -> None:
    registry: Registry[Any] = Registry("shape")
    registry.register("needy")(lambda radius: radius)
    assert registry.parse("needy:radius=3") == 3
    with pytest.raises(ConfigError, match="radius"):
        registry.parse("needy")


def test_given_arguments_reach_those_that_take_them(shapes: Registry[Any]) -> None:
    shapes.register("point")(lambda: "point")
    assert shapes.parse("shape:count=3", radius=9.0, count=8) == Shape(radius=9.0, count=3)
    assert shapes.parse("point", radius=9.0) == "point"


def test_a_name_is_registered_once(shapes: Registry[Any]) -> None:
    with pytest.raises(ConfigError, match="the shape 'shape' is registered already"):
        shapes.register("shape")(Shape)
    shapes.register("second")(Shape)
    assert list(shapes) == ["shape", "second"]
    assert len(shapes) == 2
    assert "second" in shapes
    assert "third" not in shapes
    assert shapes["second"] is Shape


@pytest.mark.parametrize(
    ("registry", "text", "expected"),
    [
        (PRIORS, "laplace:rate=2", Laplace(2)),
        (LIKELIHOODS, "normal:scale=0.1,learn=true", NormalLikelihood(0.1, learn=True)),
        (LIKELIHOODS, "normal:scale=1e-2", NormalLikelihood(0.01)),
        (MAPS, "linear:unit_norm=true", Linear(unit_norm=True)),
        (MAPS, "mlp:widths=[5,6],activation=relu", MLP((5, 6), "relu")),
        (MAPS, "conv:channels=[4],width=8", Conv((4,), 8)),
    ],
)
def test_choices_of_the_package(registry: Registry[Any], text: str, expected: object) -> None:
    assert registry.parse(text) == expected


def test_a_choice_of_ones_own_can_be_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PRIORS, "_choices", dict(PRIORS._choices))

    @PRIORS.register("wide")
    @dataclass(frozen=True)
    class Wide(Prior):
        scale: float = 2.0

        def distribution(self, zeros: Tensor, learned: nn.Module) -> dist.TorchDistribution:
            return dist.Normal(zeros, zeros + self.scale).to_event(1)

    system = zoo.from_config(RunConfig(prior="wide:scale=3", hidden=(5,)), 4)
    assert system.p_z().stddev.tolist() == [3.0] * 20
