"""What pytest does not collect."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("triton") else ["pyroae/compilation/adam_kernel.py"]
