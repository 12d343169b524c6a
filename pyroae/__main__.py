"""Run a command as `python -m pyroae`."""

import sys

from pyroae.cli import main

if __name__ == "__main__":
    sys.exit(main())
