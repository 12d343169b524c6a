"""`pyroae data`, and `pyroae train` on a table, as a user runs them."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from pyroae.cli import main
from pyroae.config import RunConfig

DRAWN = True

DRAW = np.random.default_rng(0)
SMALL = ["--latent", "2", "--hidden", "8", "--epochs", "1", "--batch-size", "20"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    values = DRAW.normal(100.0, 30.0, (80, 2))
    values[7, 0] = 9e4
    columns = {"width": values[:, 0], "height": values[:, 1], "none": 3.0, "flag": [0, 1] * 40}
    kinds = ["often"] * 78 + ["rare"] * 2
    pd.DataFrame(columns).assign(species=kinds).to_csv(tmp_path / "a.csv", index=False)
    return tmp_path / "a.csv"


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_a_table(table: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "pairs.png"
    assert main(["data", str(table), "--labels", "species", "--out", str(picture)]) == 0
    text = shown(capsys)
    for words in (
        "80 data, a table of 4 columns",
        "labels 2: often (78), rare (2)",
        "parts training 65, validation 7, test 8 (split seed 0)",
        "mixed:columns=normal(feature)*3+bernoulli (the data set has columns of different kinds)",
        "flag binary 0 1 0.5 0.5 0 2",
        "warning: column none: one value alone",
        "warning: the most frequent label has 78 data, the rarest 2",
    ):
        assert words in text
    assert matplotlib.image.imread(picture).std() > 0


def test_images(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    images = DRAW.integers(0, 256, (40, 8, 8)).astype(np.uint8)
    images[20:] = images[:20]
    np.savez(tmp_path / "a.npz", x_train=images, x_test=images[:5])
    assert main(["data", str(tmp_path / "a.npz")]) == 0
    text = shown(capsys)
    for words in (
        "45 data, arrays of shape 8×8 (uint8)",
        "training 36, validation 4, test 5, with a test set of its own",
        "scaling 0 to 255 becomes 0 to 1",
        "all values integers 0 255",
        "likelihood bernoulli (the default of vae)",
        "warning: 20 of 40 rows occur more than once",
        "warning: 5 of 5 test data are also training data",
    ):
        assert words in text


def test_missing_values_are_counted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n" + "1.5,\n-2,3\n" * 10)
    assert main(["data", str(tmp_path / "a.csv")]) == 0
    assert "warning: 10 values are missing: train with --missing" in shown(capsys)
    assert main(["train", "--data", str(tmp_path / "a.csv"), "--out", str(tmp_path / "run")]) == 2
    assert "nan at row 0, column 1 ('b'): every value must be finite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "flags", "words"),
    [
        ("a.csv", "a,b\n1,2\n3,4\n", ["--labels", "c"], "unknown column of"),
        ("a.csv", "a,b\n1,cat\n3,4\n", [], "column 'b' of"),
        ("a.csv", "a,b\n1,2\n3,4,5\n", [], "line 3 has 3 values"),
        ("a.doc", "a", [], "has an unknown suffix"),
    ],
)
@pytest.mark.parametrize("command", ["data", "train"])
def test_one_sentence_and_nothing_written(
    command: str,
    name: str,
    content: str,
    flags: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, run = tmp_path / name, tmp_path / "run"
    file.write_text(content)
    where = [str(file)] if command == "data" else ["--data", str(file), "--out", str(run)]
    assert main([command, *where, *flags]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
    assert list(tmp_path.iterdir()) == [file]


def test_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", str(tmp_path)]) == 2
    assert "holds no images" in capsys.readouterr().err


def test_a_picture_of_an_unknown_format(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "digits", "--out", "a.txt"]) == 2
    assert "--out takes a file that ends in .png, .pdf, .svg" in capsys.readouterr().err


def test_a_real_table_trains_and_its_results_have_its_units(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run records the likelihood, and is continued without another choice."""
    run = tmp_path / "run"
    train = ["train", "--data", str(table), "--labels", "species", *SMALL, "--out", str(run)]
    assert main(train) == 0
    assert "has columns of different kinds: likelihood mixed" in shown(capsys)
    text = (run / "config.yaml").read_text()
    assert "likelihood: mixed:columns=normal(feature)*3+bernoulli" in text
    assert "scale: standard" in text
    assert main(["train", "--resume", str(run), "--epochs", "2"]) == 0
    assert "likelihood" not in shown(capsys)
    assert main(["sample", str(run), "--num", "20", "--out", str(tmp_path / "s.npy")]) == 0
    means = np.load(tmp_path / "s.npy").mean(0)
    assert 50 < means[1] < 150
    assert abs(means[2] - 3) < 1
    names = "width,height,none,flag"
    for command in (["sample", "--num", "5"], ["reconstruct", "--num-data", "4"]):
        out = tmp_path / "written.csv"
        assert main([command[0], str(run), *command[1:], "--out", str(out)]) == 0
        assert out.read_text().splitlines()[0] == names
        assert f" {command[-1]} rows: " in f" {shown(capsys)}"
    before = table.read_bytes()
    assert main(["sample", str(run), "--num", "5", "--out", str(table)]) == 2
    assert "holds the data: give another file to write" in capsys.readouterr().err
    assert table.read_bytes() == before
    table.unlink()
    assert main(["sample", str(run), "--num", "5", "--out", str(tmp_path / "b.npy")]) == 2


def test_options_are_those_of_the_data() -> None:
    from pyroae.cli import make_parser

    options = vars(make_parser().parse_args(["data", "digits", "--scale", "none"]))
    assert options["settings.scale"] == RunConfig(scale="none").scale
    with pytest.raises(SystemExit):
        make_parser().parse_args(["data", "digits", "--lr", "1"])


def test_outliers_of_counts_call_for_no_likelihood_of_real_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = DRAW.poisson(2.0, (300, 2))
    counts[3, 0] = 400
    for name, values in {"counts": counts, "real": counts + 0.5}.items():
        pd.DataFrame(values, columns=["a", "b"]).to_csv(tmp_path / f"{name}.csv", index=False)
        assert main(["data", str(tmp_path / f"{name}.csv")]) == 0
        assert ("student and laplace" in shown(capsys)) == (name == "real")


def test_a_column_of_texts_may_hold_the_labels(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", str(table)]) == 2
    assert (
        "if it holds the labels, give labels='species' (--labels species)"
        in capsys.readouterr().err
    )
