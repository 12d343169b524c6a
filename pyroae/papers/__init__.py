"""Published tables and claims, measured again: one specification per paper."""

from pyroae.papers import (
    burda_2016,
    dong_2020,
    goda_2019,
    lievin_2020,
    nowozin_2018,
    rainforth_2018,
    rainforth_2018_snr,
    roeder_2017,
    tucker_2019,
    wu_2017,
)
from pyroae.papers.paper import PAPERS, Paper, Scale, Work
from pyroae.papers.results import Claim, PaperResult, PaperRow

__all__ = [
    "PAPERS",
    "Claim",
    "Paper",
    "PaperResult",
    "PaperRow",
    "Scale",
    "Work",
    "burda_2016",
    "dong_2020",
    "goda_2019",
    "lievin_2020",
    "nowozin_2018",
    "rainforth_2018",
    "rainforth_2018_snr",
    "roeder_2017",
    "tucker_2019",
    "wu_2017",
]
