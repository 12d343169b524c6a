"""The package as it is distributed: a wheel in an environment of its own."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UV = shutil.which("uv") or str(Path(sys.executable).parent / "uv")


def run(*command: str | Path, cwd: Path) -> str:
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    found = subprocess.run(
        [*map(str, command)], cwd=cwd, env=clean, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout


@pytest.mark.slow
@pytest.mark.skipif(not Path(UV).exists(), reason="uv is not installed")
def test_a_wheel_in_an_empty_environment_runs_the_demo(tmp_path: Path) -> None:
    quiet = ("--quiet", "--disable-pip-version-check", "--no-deps")
    run(sys.executable, "-m", "pip", "wheel", *quiet, "-w", tmp_path, ROOT, cwd=tmp_path)
    (wheel,) = tmp_path.glob("pyroae-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "pyroae/py.typed" in names
    assert {f"pyroae/runs/templates/{page}.html" for page in ("page", "run", "study")} <= set(names)
    assert not [n for n in names if n.startswith(("tests", "benchmarks", "docs"))]
    run(UV, "venv", "--python", sys.executable, tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    run(UV, "pip", "install", "--python", python, wheel, cwd=tmp_path)
    where = run(python, "-c", "import pyroae; print(pyroae.__file__)", cwd=tmp_path)
    assert str(tmp_path / "env") in where
    command = (python.with_name("pyroae"), "demo", "--epochs", "1", "--num-particles", "20")
    said = run(*command, "--out", tmp_path / "demo", cwd=tmp_path)
    assert "analytic-kl" in said
    assert (tmp_path / "demo" / "trace-elbo" / "report.html").is_file()
