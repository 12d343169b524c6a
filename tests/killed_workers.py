"""A study on Ray, of which a part is killed: run in a process of its own.

    python tests/killed_workers.py WHAT AFTER FLAGS...

WHAT: `process`, a process that trains, on a cluster of this machine alone; `node`, one of the two
workers, of one CPU each, of a cluster; `interrupt`, SIGINT to the study itself, on such a cluster.
AFTER: so many cells have been finished. FLAGS: of `pyroae compare`; the last one is the study
directory. Prints how many cells were finished when something was killed, and how many nodes are
alive in the end; exits as pyroae does.
"""

import json
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")

import ray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from pyroae.cli import main  # noqa: E402


def training_process() -> int | None:
    """A process of this one that trains a cell now: Ray names it after its task."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if (place / "cmdline").read_bytes().startswith(b"ray::cell") and is_ours(
                int(place.name)
            ):
                return int(place.name)
        except OSError:
            continue
    return None


def is_ours(pid: int) -> bool:
    """Whether this process, or one that it started, has started it."""
    while pid > 1 and pid != os.getpid():
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid == os.getpid()


def kill(
    what: str, after: int, study: Path, told: dict[str, Any], cluster: Any = None, node: Any = None
) -> None:
    """Wait for so many finished cells, then kill."""
    while len(list(study.glob("*/outcome.safetensors"))) < after:
        time.sleep(0.02)
    if what == "node":
        cluster.remove_node(node, allow_graceful=False)
    elif what == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
    else:
        while (pid := training_process()) is None:
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
    told["finished"] = len(list(study.glob("*/outcome.safetensors")))


def run(what: str, after: int, flags: list[str]) -> int:
    """The study on Ray; the exit status of pyroae. A child of a background job ignores SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    told: dict[str, Any] = {}
    args = (what, after, Path(flags[-1]), told)
    if what == "process":
        threading.Thread(target=kill, args=args, daemon=True).start()
        status = main(["compare", *flags])
    else:
        status = run_on_two(args, told, flags)
    print(json.dumps(told))
    return status


def run_on_two(args: Any, told: dict[str, Any], flags: list[str]) -> int:
    """The same on a cluster of two workers."""
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    threading.Thread(target=kill, args=(*args, cluster, nodes[1]), daemon=True).start()
    status = main(["compare", *flags])
    until = time.monotonic() + 60  # the head needs a while to see that a node is gone
    while (
        (alive := sum(node["Alive"] for node in ray.nodes())) == 3
        and args[0] == "node"
        and time.monotonic() < until
    ):
        time.sleep(0.5)
    told["alive"] = alive
    ray.shutdown()
    cluster.shutdown()
    return status


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
