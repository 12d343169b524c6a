"""Published tables and claims, measured again: one specification per paper."""

from pyroae.papers.paper import PAPERS, Paper, Scale, Work
from pyroae.papers.results import Claim, PaperResult, PaperRow

__all__ = ["PAPERS", "Claim", "Paper", "PaperResult", "PaperRow", "Scale", "Work"]
