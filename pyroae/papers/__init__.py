"""Published tables and claims, measured again: one specification per paper."""

from pyroae.papers.results import Claim, PaperResult, PaperRow

__all__ = ["Claim", "PaperResult", "PaperRow"]
