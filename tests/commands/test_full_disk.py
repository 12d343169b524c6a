"""Every command that writes, on a disk that is full: one sentence, and nothing that was there is
lost.
"""

import os
import resource
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyroae import cli
from pyroae.errors import RunError
from pyroae.runtime.files import remove_temporaries, write_together
from tests.pictures import leave_out_pictures

DRAWN = True

NET = "--system ppca --likelihood normal --latent 2".split()  # noqa: SIM905
GRADIENTS = "--objectives iwae --num-particles 1 --replicates 25 --num-data 3".split()  # noqa: SIM905
COMPARE = "--objectives trace-elbo --num-particles 1 --seeds 1 --budget epochs:1".split()  # noqa: SIM905

COMMANDS = {
    "evaluate": (["evaluate", "RUN", "--num-particles", "30", "--num-data", "4"], 3000),
    "evaluate, other data": (["evaluate", "RUN", "--num-particles", "30", "--num-data", "3"], 3000),
    "gradients": (["gradients", "RUN", *GRADIENTS], 100),
    "sample": (["sample", "RUN", "--num", "4"], 100),
    "reconstruct": (["reconstruct", "RUN", "--num-data", "4", "--out", "OUT.csv"], 100),
    "encode": (["encode", "RUN", "--num-data", "4", "--out", "OUT.nc"], 3000),
    "encode as .npy": (["encode", "RUN", "--num-data", "4", "--out", "OUT.npy"], 100),
    "report": (["report", "RUN"], 1000),
    "impute": (["impute", "RUN", "--data", "DATA", "--out", "OUT.npz"], 1000),
    "impute as .csv": (["impute", "RUN", "--data", "DATA", "--out", "OUT.csv"], 1000),
    "impute as .parquet": (["impute", "RUN", "--data", "DATA", "--out", "OUT.parquet"], 1000),
    "compare": (["compare", *NET, *COMPARE, "--out", "OUT"], 3000),
    "demo": (["demo", "--epochs", "1", "--num-particles", "5", "--out", "OUT"], 3000),
    "reproduce": (["reproduce", "RUN", "--out", "OUT"], 3000),
}
"""The words of each command, and the size in bytes at which a file is cut off."""


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("full") / "ppca"
    assert cli.main(["train", *NET, "--missing", "--epochs", "1", "--out", str(path)]) == 0
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        assert cli.main(["evaluate", str(path), "--num-particles", "30", "--num-data", "4"]) == 0
    table = np.random.default_rng(0).random((5, 64))
    table[0, 0] = np.nan
    np.savetxt(path.parent / "data.csv", table, delimiter=",", header=",".join(map(str, range(64))))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != ".lock")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file may be larger than this, which a write past it reports like a full disk.

    Bytecode is not written meanwhile: Python would leave it cut off.
    """
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
        sys.dont_write_bytecode = written


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_full_disk_is_one_sentence(
    name: str,
    evaluated: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words, size = COMMANDS[name]
    if words[0] == "evaluate":
        leave_out_pictures(monkeypatch)
    run = Path(shutil.copytree(evaluated, tmp_path / "run"))
    named = {"RUN": str(run), "DATA": str(evaluated.parent / "data.csv")}
    words = [named.get(w, w.replace("OUT", str(tmp_path / "out"))) for w in words]
    before = contents(run)
    with full_disk(size):
        status = cli.main(words)
    error = capsys.readouterr().err.strip().splitlines()
    assert status == 2
    assert error[-1].startswith(f"pyroae {words[0]}: cannot write '")
    assert error[-1].endswith("File too large")
    assert "HDF5" not in "".join(error)
    assert contents(run) == before
    assert not list(tmp_path.glob("out.*"))


def test_a_directory_that_cannot_be_written(
    evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """It is found before any work."""
    run = Path(shutil.copytree(evaluated, tmp_path / "run"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr("pyroae.commands.evaluate._evaluated", None)
    assert cli.main(["evaluate", str(run), "--num-data", "4"]) == 2
    assert f"cannot write to '{run}'" in capsys.readouterr().err


def test_a_killed_process_leaves_whole_files(tmp_path: Path, monkeypatch: Any) -> None:
    """Killed by SIGKILL between two files: each of them is the old or the new one."""
    old = {tmp_path / name: b"old" for name in ("a", "b", "c")}
    write_together(old)
    child = os.fork()
    if not child:
        rename, left = Path.replace, [2]

        def replace(self: Path, new: Path) -> Path:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(self, new)

        monkeypatch.setattr(Path, "replace", replace)
        write_together(dict.fromkeys(old, b"new"))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert [file.read_bytes() for file in old] == [b"new", b"old", b"old"]
    assert len(list(tmp_path.iterdir())) == 5
    remove_temporaries(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(old)


def test_files_that_belong_together_are_written_all_or_none(tmp_path: Path) -> None:
    old = {tmp_path / name: name.encode() for name in ("a", "b", "moved")}
    write_together(old)
    new = {tmp_path / "a": b"new", tmp_path / "b": bytes(5000)}
    moves = {tmp_path / "moved": tmp_path / "folder" / "moved"}
    with full_disk(1000), pytest.raises(RunError, match=r"cannot write '.*b': File too large"):
        write_together(new, moves)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == old
    write_together(new, moves)
    assert contents(tmp_path) == {"a": b"new", "b": bytes(5000), "folder/moved": b"moved"}
