"""What `compare_training` refuses: one sentence, before any training, nothing written."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyroae import Budget, PyroaeError, Scoring, TrainConfig, Variant, compare_training, zoo
from pyroae.errors import ConfigError, RunError
from pyroae.nn import MLP
from pyroae.objectives.named import dreg, iwae

pytestmark = pytest.mark.usefixtures("no_study_figures")


def binary(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 5, generator=torch.Generator().manual_seed(seed)).round()


MAKE = partial(zoo.vae, 5, latent=2, encoder=MLP((4,)))
GIVEN: dict[str, Any] = {
    "make": MAKE,
    "objectives": {"iwae": iwae},
    "train": binary(60),
    "valid": binary(20, 1),
    "held_out": binary(20, 2),
    "budget": Budget("epochs", 1),
    "ks": (2,),
    "seeds": (0,),
    "config": TrainConfig(keep="last", batch_size=20),
    "scoring": Scoring(num_particles=30, subset=5),
    "progress": False,
}

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a pair": ({"make": (print, print)}, "make= is a function that returns a new system"),
    "a system": ({"make": MAKE()}, "make= is a function that returns a new system"),
    "no variant": ({"make": {}}, "variants are functions or Variants by a name"),
    "numbers as names": ({"make": {1: MAKE}}, "variants are functions or Variants by a name"),
    "one directory": ({"make": {"a/b": MAKE, "a b": MAKE}}, "would have one directory"),
    "a setting": ({"make": Variant(MAKE, {"lr": -1.0})}, "lr must be positive"),
    "no held-out data": ({"held_out": None}, "a comparison needs data"),
    "a dict": ({"train": {"x": binary(60)}}, "held-out data are not arranged as the training data"),
    "a list of objectives": ({"objectives": [iwae]}, "needs objectives: functions from K"),
    "an objective": ({"objectives": {"iwae": iwae(2)}}, "is given by a function from K"),
    "a text as budget": ({"budget": "epochs:2"}, "budget= takes a Budget"),
    "a number of seeds": ({"seeds": 2}, "seeds are different whole numbers of at least 0, not 2"),
    "one K": ({"ks": 2}, "K takes different whole numbers of at least 1, not 2"),
    "validation shape": ({"valid": torch.eye(4)}, "takes \\[N, 5\\]"),
    "validation nan": ({"valid": torch.full((5, 5), torch.nan)}, "holds nan"),
    "tune one value": ({"tune": {"lr": 0.1}}, "the values of lr are different numbers, not 0.1"),
    "tune none": ({"tune": {"lr": ()}}, "the values of lr are different numbers"),
    "tune twice": ({"tune": {"lr": (0.1, 0.1)}}, "the values of lr are different numbers"),
    "tune texts": ({"tune": {"optimizer": ("Adam", "SGD")}}, "values of optimizer are different"),
    "tune a system": ({"tune": {"latent": (1, 2)}}, "unknown setting 'latent'"),
    "tune on nothing": ({"tune": {"lr": (0.1, 0.2)}, "valid": None}, "there are none"),
    "too large a subset": ({"scoring": Scoring(subset=30)}, "more than the 20 held-out data"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input(case: str, tmp_path: Path) -> None:
    changes, words = BAD[case]
    with pytest.raises(PyroaeError, match=words) as raised:
        compare_training(**{**GIVEN, **changes}, out=tmp_path / "study")
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


OTHER: dict[str, tuple[dict[str, Any], str]] = {
    "data": ({"train": binary(60, 3)}, "its data among them"),
    "validation data": ({"valid": binary(20, 3)}, "its data among them"),
    "held-out data": ({"held_out": binary(20, 3)}, "its data among them"),
    "size": ({"make": partial(zoo.vae, 5, latent=3)}, "its system among them"),
    "prior": ({"make": partial(MAKE, prior=zoo.priors.Laplace())}, "its system among them"),
    "objective": ({"objectives": {"iwae": dreg}}, "its objective among them"),
    "settings": ({"config": TrainConfig(lr=0.1, batch_size=20)}, "its config among them"),
    "scoring": ({"scoring": Scoring(num_particles=31, subset=5)}, "its scoring among them"),
}


def test_the_directory_of_another_comparison(tmp_path: Path) -> None:
    """Finished trainings are not taken for those of other data, systems or objectives."""
    first = compare_training(**GIVEN, out=tmp_path)
    written = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    for changes, words in OTHER.values():
        with pytest.raises(ConfigError, match=f"other settings, {words}"):
            compare_training(**{**GIVEN, **changes}, out=tmp_path)
    assert written == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    again = compare_training(**GIVEN, out=tmp_path)
    assert again.outcomes[0].score.log_px.equal(first.outcomes[0].score.log_px)


@pytest.mark.parametrize(
    ("name", "words"), [("study.yaml", "a study of pyroae compare"), ("config.yaml", "a run")]
)
def test_the_directory_of_another_command(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("seeds: [0]\n")
    with pytest.raises(RunError, match=f"is the directory of {words}: give another out="):
        compare_training(**GIVEN, out=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [name]
