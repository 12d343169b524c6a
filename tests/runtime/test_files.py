"""Files of tensors: what is written is read back; what is damaged, altered or foreign is refused,
and nothing is executed.
"""

import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pyroae.errors import RunError
from pyroae.runtime import files
from pyroae.runtime.files import locked, read_tensors, write_tensors, write_whole

CONTENT = {
    "weights": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)},
    "steps": [1, 2.5, None, "three", {"deep": torch.zeros((), dtype=torch.int64)}],
    3: torch.zeros(0),
    "apart": {"x": {"y": torch.ones(1)}, "x/y": torch.zeros(1)},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_tensors(tmp_path / "last.safetensors", "state", CONTENT)
    return tmp_path / "last.safetensors"


def test_what_was_written_is_read(path: Path) -> None:
    found = read_tensors(path, "state")
    assert torch.equal(found["weights"]["a"], CONTENT["weights"]["a"])  # type: ignore[index]
    assert found["weights"]["b"].dtype is torch.bfloat16
    assert found["steps"][:4] == [1, 2.5, None, "three"]
    assert found["steps"][4]["deep"].shape == ()
    assert found[3].shape == (0,)
    assert found["apart"]["x"]["y"].item() == 1
    assert found["apart"]["x/y"].item() == 0
    assert [p.name for p in path.parent.iterdir()] == ["last.safetensors"]


def test_every_flipped_bit_is_seen(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    for i in range(len(whole)):
        other = bytearray(whole)
        other[i] ^= 1 << i % 8
        path.write_bytes(other)
        with pytest.raises(RunError, match=r"last\.safetensors' (is|holds)"):
            read_tensors(path, "state")


def test_every_truncation_is_seen(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(RunError, match="is damaged, or not a file of pyroae"):
            read_tensors(path, "state")


def test_foreign_files_are_refused_in_words(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="for another use: state, not outcome"):
        read_tensors(path, "outcome")
    with pytest.raises(RunError, match="there is no file"):
        read_tensors(path.with_name("none"), "state")
    monkeypatch.setattr(files, "FORMAT", 3)
    with pytest.raises(
        RunError, match=r"is in format 2 of pyroae .*, which this version, .*, cannot read"
    ):
        read_tensors(path, "state")
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(RunError, match="it has no header"):
        read_tensors(path, "state")
    path.unlink()
    path.mkdir()
    with pytest.raises(RunError, match="is damaged, or not a file"):
        read_tensors(path, "state")


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch exploded",)


def test_a_pickle_is_not_opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    for write in (lambda: path.write_bytes(pickle.dumps(Bomb())), lambda: torch.save(Bomb(), path)):
        write()
        with pytest.raises(RunError, match="is damaged, or not a file of pyroae"):
            read_tensors(path, "state")
    assert not (path.parent / "exploded").exists()


def test_a_full_disk_leaves_what_was_there(path: Path) -> None:
    before = path.read_bytes()
    code = f"""
import resource, torch
from pathlib import Path
from pyroae.runtime.files import write_tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, {resource.RLIM_INFINITY}))
path, previous = Path({str(path)!r}), Path({str(path.with_name("previous"))!r})
write_tensors(path, "state", {{"a": torch.zeros(10_000)}}, previous=previous)
"""
    found = subprocess.run(
        [sys.executable, "-B", "-c", code], capture_output=True, text=True, check=False
    )
    assert f"RunError: cannot write '{path}': File too large" in found.stderr
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["last.safetensors"]


def test_the_one_before_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    previous, first = path.with_name("previous.safetensors"), path.read_bytes()
    write_tensors(path, "state", 1, previous=previous)
    assert previous.read_bytes() == first
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    write_tensors(path, "state", 2, previous=previous)
    assert (read_tensors(previous, "state"), read_tensors(path, "state")) == (1, 2)
    with pytest.raises(ZeroDivisionError):
        write_whole(path, lambda file: 1 // 0, previous=previous)
    assert (read_tensors(previous, "state"), read_tensors(path, "state")) == (1, 2)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    left = tmp_path / ".metrics.123.csv"
    left.write_text("half")
    (tmp_path / ".mine").write_text("mine")
    code = (
        "from pathlib import Path\nfrom pyroae.runtime.files import locked\n"
        f"with locked(Path({str(tmp_path)!r}), 'run'): pass"
    )
    with locked(tmp_path, "run"):
        assert not left.exists()
        assert (tmp_path / ".mine").exists()
        found = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert f"RunError: another process is writing to the run '{tmp_path}'" in found.stderr
    with locked(tmp_path, "run"):
        pass
