"""The examples and the README's own example, in a short form."""

import re
from pathlib import Path
from types import ModuleType

import pytest

from tests.scripts import script

ROOT = Path(__file__).parents[1]


def example(name: str) -> ModuleType:
    return script(f"examples/{name}.py")


def test_svi_loop() -> None:
    pairs = example("svi_loop").main(["--epochs", "3"])
    for ours, pyros in pairs:
        assert ours == pytest.approx(pyros, rel=1e-5)
    assert pairs[-1][0] < pairs[0][0]


def test_own_choice() -> None:
    from pyroae.priors import PRIORS, Prior

    try:
        assert example("own_choice").main(["--epochs", "15"]) < 27
        made = PRIORS.parse("logistic:scale=3")
        assert isinstance(made, Prior)
    finally:
        PRIORS._choices.pop("logistic", None)


def test_latent_sizes(tmp_path: Path) -> None:
    example("latent_sizes").main(["--epochs", "1", "--out", str(tmp_path / "sizes.png")])
    assert (tmp_path / "sizes.png").read_bytes().startswith(b"\x89PNG")


def test_readme_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Copied as it stands, with fewer epochs."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[:1]
    assert len(code.strip().splitlines()) <= 15
    monkeypatch.chdir(tmp_path)
    short, count = re.subn(r"epochs=\d+", "epochs=2", code)
    assert count == 1
    exec(compile(short, "README.md", "exec"), {"__name__": "__main__"})
    assert re.search(r"\d+\.\d+ ± 0\.\d+", capsys.readouterr().out)
    assert list(tmp_path.glob("*.png"))


def test_readme_names_exist() -> None:
    """Every system and objective has its row in the README's tables."""
    from pyroae._names import NAMES

    readme = (ROOT / "README.md").read_text()
    for name in (*NAMES["system"], *NAMES["objective"]):
        assert f"| `{name}`" in readme, name


@pytest.mark.slow
def test_mnist_study(mnist_root: Path) -> None:
    """NLL by IS-5000 below 92.5 nats, and the two estimators within 0.5 of each other (in nats, 50
    epochs).
    """
    found = example("mnist_vae").main(["--data-root", str(mnist_root)])
    assert found["trace-elbo"].num_particles == 5000
    assert len(found["trace-elbo"].log_px) == 1000
    assert found["trace-elbo"].nll < 92.5
    assert abs(found["trace-elbo"].nll - found["analytic-kl"].nll) < 0.5
