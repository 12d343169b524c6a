"""`pyroae gradients` as a user runs it: what it writes and shows, and what it refuses."""

import csv
import math
import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import arviz
import matplotlib.image
import numpy as np
import pytest
import torch
import xarray

from pyroae.cli import main
from pyroae.config import Part
from pyroae.data.dataset import Dataset
from pyroae.evaluation.gradient_lab.groups import parameter_groups
from pyroae.evaluation.gradient_lab.measure import measure_slopes
from pyroae.evaluation.gradient_lab.slopes import SNRCurve
from pyroae.objectives import parse_objective
from pyroae.runs.data_of_run import part_of
from pyroae.runs.run import Run
from tests.pictures import in_full
from tests.systems import FOR_GAUSSIANS

FEW = [
    "--objectives",
    "iwae,dreg,vimco",
    "--num-particles",
    "1,4",
    "--replicates",
    "25",
    "--num-data",
    "10",
    "--seed",
    "3",
]
CELLS = [
    (name, k) for name in ("iwae", "dreg", "vimco") for k in (1, 4) if (name, k) != ("vimco", 1)
]
MODULES = ["encoder.0", "encoder.2", "decoder.0", "decoder.2"]
GROUPS = ["θ", "φ", *MODULES]


def gradients(*flags: str | Path) -> int:
    return main(["gradients", *map(str, flags)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small VAE of the digits; tests that write into a run take a copy."""
    path = tmp_path_factory.mktemp("gradients") / "vae"
    assert (
        main(["train", "--latent", "2", "--hidden", "8", "--epochs", "3", "--out", str(path)]) == 0
    )
    return path


@pytest.fixture(scope="module")
def measured(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stem of what one command has written."""
    stem = tmp_path_factory.mktemp("measured") / "found"
    with in_full():
        assert gradients(trained, *FEW, "--out", stem) == 0
    return stem


def rows(stem: Path) -> list[dict[str, str]]:
    with stem.with_suffix(".csv").open(newline="") as opened:
        return list(csv.DictReader(opened))


def contents(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def place_of(trained: Path, **part: Any) -> tuple[Any, torch.Tensor, dict[str, Any]]:
    """Programs, data, and the parameters and groups of the run."""
    run = Run(trained)
    system = run.autoencoder(None)
    dataset = part_of(run, Part(**{"split": "train", "num_data": 10, **part}))
    assert isinstance(dataset, Dataset)
    x = dataset.x.to(next(system.parameters()).dtype)
    parameters = dict(system.named_parameters())
    groups = parameter_groups(system.model, system.guide, x, parameters)
    return system, x, {"parameters": parameters, "groups": groups}


def direct(trained: Path, **part: Any) -> Mapping[str, Mapping[str, SNRCurve]]:
    """What the command is to find, from `measure_slopes`."""
    system, x, place = place_of(trained, **part)
    make = {name: partial(parse_objective, name) for name in ("iwae", "dreg", "vimco")}
    settings: dict[str, Any] = {"replicates": 25, "seed": 3, "reference": "iwae"}
    return measure_slopes(system.model, system.guide, x, make, ks=(1, 4), **place, **settings)


def check_rows(
    found: list[dict[str, str]], curves: Mapping[str, Mapping[str, SNRCurve]], num_data: int
) -> None:
    """Every row of a table holds the figures of its curve."""
    assert [(r["objective"], int(r["particles"]), r["group"]) for r in found] == [
        (n, k, g) for n, k in CELLS for g in GROUPS
    ]
    for row in found:
        curve = curves[row["objective"]][row["group"]]
        k = int(row["particles"])
        one = curve.statistics[curve.ks.index(k)]
        known = {
            "snr": one.snr,
            "snr_low": one.snr_interval[0],
            "snr_high": one.snr_interval[1],
            "directional_snr": one.directional_snr,
            "variance": one.variance.mean().item(),
            "bias": one.bias,
            "bias_se": one.bias_se,
            "bias_low": one.bias_interval[0],
            "bias_high": one.bias_interval[1],
            "relative_bias": one.relative_bias,
            "slope": curve.slope.slope,
            "num_parameters": len(one.mean),
        }
        assert {name: float(row[name] or math.nan) for name in known} == pytest.approx(
            known, rel=1e-6, nan_ok=True
        )
        assert row["evaluations"] == str(k * num_data) == str(one.evaluations)
        assert float(row["seconds"]) > 0


# What it writes.


def test_table_holds_every_objective_k_and_group(trained: Path, measured: Path) -> None:
    """With the figures of `measure_slopes` itself; VIMCO has no row at K = 1, where it is not
    defined.
    """
    check_rows(rows(measured), direct(trained), num_data=10)


def test_datatree_holds_the_figures_of_the_table(measured: Path) -> None:
    tree = arviz.from_netcdf(measured.with_suffix(".nc"))
    data = tree["gradients"].to_dataset().load()
    assert dict(data["snr"].sizes) == {"objective": 3, "particles": 2, "group": len(GROUPS)}
    for row in rows(measured):
        cell = data.sel(
            objective=row["objective"], particles=int(row["particles"]), group=row["group"]
        )
        for name in (
            "snr",
            "directional_snr",
            "variance",
            "bias",
            "bias_se",
            "seconds",
            "evaluations",
        ):
            assert float(cell[name]) == float(row[name])
    assert (
        data.sel(objective="vimco", particles=1)[["snr", "seconds", "evaluations"]]
        .to_array()
        .isnull()
        .all()
    )
    assert data["evaluations"].attrs["units"] == "decoder evaluations per gradient"
    given = {"replicates": 25, "num_data": 10, "reference": "iwae", "seed": 3}
    assert {name: tree.attrs[name] for name in given} == given
    tree.close()
    with xarray.open_datatree(measured.with_suffix(".nc"), engine="h5netcdf") as again:
        assert again["gradients"].to_dataset().load().equals(data)


def test_figure_is_a_picture_with_something_on_it(measured: Path) -> None:
    picture = matplotlib.image.imread(measured.with_suffix(".png"))
    assert min(picture.shape[:2]) > 600
    assert picture[..., :3].std() > 0.05


@pytest.mark.slow
def test_same_seed_gives_the_same_files(trained: Path, measured: Path, tmp_path: Path) -> None:
    """All but the seconds."""
    assert gradients(trained, *FEW, "--out", tmp_path / "again") == 0
    once, again = (
        [{n: v for n, v in row.items() if n != "seconds"} for row in rows(stem)]
        for stem in (measured, tmp_path / "again")
    )
    assert once == again
    with (
        xarray.open_datatree(measured.with_suffix(".nc"), engine="h5netcdf") as first,
        xarray.open_datatree(tmp_path / "again.nc", engine="h5netcdf") as second,
    ):
        assert (
            first["gradients"]
            .to_dataset()
            .drop_vars("seconds")
            .equals(second["gradients"].to_dataset().drop_vars("seconds"))
        )


def test_results_lie_in_the_run_or_where_out_says(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    before = set(contents(run))
    flags = [
        "--objectives",
        "iwae",
        "--num-particles",
        "2",
        "--replicates",
        "20",
        "--num-data",
        "5",
    ]
    assert gradients(run, *flags) == 0
    assert set(contents(run)) - before == {"gradients.csv", "gradients.nc", "figures/gradients.png"}
    for number, given in enumerate(("a.csv", "b.v2")):
        place = tmp_path / f"out{number}" / "deeper"
        assert gradients(trained, *flags, "--out", place / given) == 0
        stem = given.removesuffix(".csv")
        assert sorted(p.name for p in place.iterdir()) == [
            f"{stem}.csv",
            f"{stem}.nc",
            f"{stem}.png",
        ]


# What it measures.


def test_which_data(trained: Path, tmp_path: Path) -> None:
    assert (
        gradients(trained, *FEW, "--split", "test", "--num-data", "7", "--out", tmp_path / "found")
        == 0
    )
    check_rows(rows(tmp_path / "found"), direct(trained, split="test", num_data=7), num_data=7)


def test_bias_is_from_the_reference(trained: Path, measured: Path, tmp_path: Path) -> None:
    """IWAE lies as far from DReG as DReG from IWAE."""
    flags = ["--objectives", "iwae,dreg", "--num-particles", "4", "--reference", "dreg"]
    assert gradients(trained, *FEW, *flags, "--out", tmp_path / "found") == 0
    one, other = (
        {(r["objective"], r["particles"], r["group"]): r for r in rows(s)}
        for s in (measured, tmp_path / "found")
    )
    for group in GROUPS:
        assert float(other["dreg", "4", group]["bias"]) == 0
        assert float(other["iwae", "4", group]["bias"]) == pytest.approx(
            float(one["dreg", "4", group]["bias"]), rel=1e-6
        )
    assert float(other["iwae", "4", "φ"]["bias"]) > 0


def test_without_iwae_the_first_is_the_reference(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "--objectives",
        "stl,dreg",
        "--num-particles",
        "2",
        "--replicates",
        "20",
        "--num-data",
        "5",
    ]
    assert gradients(trained, *flags, "--out", tmp_path / "found") == 0
    assert "bias from stl" in capsys.readouterr().out
    assert {float(r["bias"]) for r in rows(tmp_path / "found") if r["objective"] == "stl"} == {0.0}


def test_known_biases_are_found(trained: Path, tmp_path: Path) -> None:
    """DReG moves φ as IWAE does, STL by another bound, IWAE with STL is biased; all but STL move θ
    alike, draw by draw.
    """
    flags = [
        "--objectives",
        "iwae,dreg,stl,iwae-stl",
        "--num-particles",
        "8",
        "--replicates",
        "60",
        "--num-data",
        "5",
    ]
    assert gradients(trained, *flags, "--out", tmp_path / "found") == 0
    at = {
        (r["objective"], r["group"]): {n: float(r[n]) for n in r if n.startswith("bias")}
        for r in rows(tmp_path / "found")
    }
    dreg = at["dreg", "φ"]
    assert 0 < dreg["bias"] < 2 * dreg["bias_se"]
    assert dreg["bias_low"] == 0.0
    for biased in (at["stl", "φ"], at["iwae-stl", "φ"]):
        assert biased["bias"] > 2 * biased["bias_se"]
        assert biased["bias_low"] > dreg["bias"]
    for name in ("dreg", "iwae-stl"):
        assert at[name, "θ"]["bias"] < 1e-5 < at["stl", "θ"]["bias_low"]


def test_evaluations_are_the_rows_that_the_decoder_sees(trained: Path) -> None:
    """Of every objective: one gradient runs the decoder as often as the objective states, or on the
    number of draws that a random bound has drawn.
    """
    system, x, _ = place_of(trained, num_data=5)
    seen: list[int] = []
    system.decoder.register_forward_hook(
        lambda _module, _inputs, output: seen.append(output[..., 0].numel())
    )
    for name in FOR_GAUSSIANS:
        objective = parse_objective(name, 4)
        objective.loss_and_grads(system.model, system.guide, x)  # which finds the plates, once
        seen.clear()
        objective.loss_and_grads(system.model, system.guide, x)
        drawn = objective.variant
        stated = drawn if isinstance(drawn, int) else objective.evaluations
        assert sum(seen) == stated * 5, name


# What it shows.


def test_table_is_shown_with_its_notes(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--objectives", "iwae,vimco,stl,rws-dreg,ovis-mc:auxiliary=2", "--replicates", "20"]
    assert gradients(trained, *FEW, *flags, "--out", tmp_path / "found") == 0
    out = capsys.readouterr().out
    table, _, notes = out.partition("parameters:")
    assert max(map(len, table.splitlines())) <= 80
    assert not [name for name in MODULES if name in out]
    for words in (
        "gradients at 10 data of digits (train), 20 replicates; bias from iwae",
        " θ 600, φ 556; SNR: mean over them of |mean| / σ, about 0.18 where the mean is 0",
        "DSNR: length of the gradient along the mean of iwae over that across it",
        "one gradient: its milliseconds under ms, and K × 10 evaluations of the decoder",
        "bias: distance from the mean of iwae, in % of its norm; if none: the distance that noise "
        "alone gives",
        "another bound than that of iwae: stl",
        "by design not the gradient of their bound: rws-dreg",
        "other numbers of evaluations of the decoder: ovis-mc:auxiliary=2 60 at K = 4",
    ):
        assert words in (table if words.startswith("gradients") else notes)
    assert not [line for line in out.splitlines() if "slope" in line and "nan" in line]
    (shown,) = [line.split() for line in out.splitlines() if line.split()[:2] == ["vimco", "4"]][:1]
    (row,) = [
        r
        for r in rows(tmp_path / "found")
        if (r["objective"], r["particles"], r["group"]) == ("vimco", "4", "θ")
    ]
    assert shown[2] == f"{float(row['snr']):.3g}"
    assert not [line for line in out.splitlines() if line.split()[:2] == ["vimco", "1"]]


def test_by_module(
    trained: Path, measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table shows every module; the files hold them in either case."""
    assert gradients(trained, *FEW, "--by", "module", "--out", tmp_path / "found") == 0
    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in shown if line in GROUPS] == GROUPS
    assert [r["snr"] for r in rows(tmp_path / "found")] == [r["snr"] for r in rows(measured)]


# Bad input.


BAD: dict[str, tuple[list[str], str]] = {
    "objective": (["--objectives", "iwae,drge"], "unknown objective 'drge': did you mean 'dreg'?"),
    "bound": (["--objectives", "jvj+pathwise"], "unknown bound 'jvj': did you mean 'jvi'?"),
    "own K": (
        ["--objectives", "iwae:num_particles=4"],
        "leave num_particles out of 'iwae:num_particles=4'",
    ),
    "objective twice": (
        ["--objectives", "iwae,dreg,iwae"],
        "an objective is given twice: iwae, dreg, iwae",
    ),
    "setting": (["--objectives", "renyi:foo=1"], "unknown setting of the objective 'renyi' 'foo'"),
    "K of 0": (["--num-particles", "0,4"], "num_particles must be at least 1, not 0"),
    "K twice": (
        ["--num-particles", "4,4"],
        "K takes different whole numbers of at least 1, not [4, 4]",
    ),
    "nowhere defined": (
        ["--objectives", "vimco", "--num-particles", "1"],
        "'vimco' is defined at none of K = 1",
    ),
    "replicates": (["--replicates", "19"], "replicates must be at least 20, not 19"),
    "reference": (["--reference", "stll"], "unknown reference 'stll'"),
    "near reference": (["--reference", "drge"], "unknown reference 'drge': did you mean 'dreg'?"),
    "exact reference": (
        ["--objectives", "iwae", "--num-particles", "4", "--reference", "enumerate"],
        "'iwae' with K = 4 has another bound, whose exact gradient is a sum over tuples of K",
    ),
    "negative seed": (["--seed", "-1"], "seed must be at least 0 and below 1e+12, not -1"),
    "large seed": (["--seed", "9" * 13], "seed must be at least 0 and below 1e+12"),
    "no data": (["--num-data", "0"], "num_data must be at least 1, not 0"),
    "no such data": (["--data", "nowhere.npy"], "nowhere.npy"),
}


def refused(capsys: pytest.CaptureFixture[str], words: str, *flags: str | Path) -> None:
    """Status 2, and one sentence."""
    capsys.readouterr()
    assert gradients(*flags) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("pyroae gradients: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input(
    case: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written, neither into the run nor elsewhere."""
    flags, words = BAD[case]
    before = contents(trained)
    refused(capsys, words, trained, *FEW, *flags)
    refused(capsys, words, trained, *FEW, *flags, "--out", tmp_path / "found")
    assert contents(trained) == before
    assert not list(tmp_path.iterdir())


def test_data_of_another_width(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "narrow.npy", np.random.default_rng(0).random((40, 5), dtype=np.float32))
    words = f"narrow has 5 features per datum; the run '{trained}' was trained on 64"
    refused(
        capsys, words, trained, *FEW, "--data", tmp_path / "narrow.npy", "--out", tmp_path / "found"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["narrow.npy"]


def test_guides_without_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "ae"
    assert (
        main(
            [
                "train",
                "--system",
                "ae",
                "--latent",
                "2",
                "--hidden",
                "8",
                "--epochs",
                "1",
                "--out",
                str(run),
            ]
        )
        == 0
    )
    before = contents(run)
    refused(
        capsys, f"the guide of the run '{run}' is a Delta: its gradients have no noise", run, *FEW
    )
    assert contents(run) == before


def test_runs_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, str(tmp_path / "none"), tmp_path / "none", *FEW)
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused before anything is measured."""
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    file.write_text("mine")
    (tmp_path / "taken.png").mkdir()
    before = contents(tmp_path), sorted(tmp_path.rglob("*"))
    refused(capsys, f"cannot write '{folder}': it is a directory", trained, *FEW, "--out", folder)
    refused(capsys, "taken.png' is no place for a file", trained, *FEW, "--out", tmp_path / "taken")
    refused(capsys, f"'{file}' is no place for a file", trained, *FEW, "--out", file / "found")
    assert (contents(tmp_path), sorted(tmp_path.rglob("*"))) == before


def test_places_without_permission(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    refused(
        capsys, f"'{tmp_path}' is no place for a file", trained, *FEW, "--out", tmp_path / "found"
    )
    assert not list(tmp_path.iterdir())


def test_other_flags_are_refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, words in (
        (["--by", "layer"], "invalid choice: 'layer'"),
        (["--replicate-count", "3"], "unrecognized arguments"),
    ):
        with pytest.raises(SystemExit) as stopped:
            gradients(trained, *flags)
        assert stopped.value.code == 2
        assert words in capsys.readouterr().err
