"""What the commands of the command line do, one function a command."""

from pyroae.commands.compare import compare
from pyroae.commands.evaluate import evaluate
from pyroae.commands.gradients import gradients
from pyroae.commands.reproduce import reproduce
from pyroae.commands.runs import demo, encode, reconstruct, report, sample, train

__all__ = ["compare", "demo", "encode", "evaluate", "gradients", "reconstruct", "report", "reproduce", "sample", "train"]
