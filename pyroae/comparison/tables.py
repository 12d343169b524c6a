"""Rankings as tables: pandas, and LaTeX for a paper."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pyroae.comparison.outcomes import Entry, Outcome, Row
from pyroae.comparison.scores import Interval
from pyroae.comparison.tuning import Tuning

if TYPE_CHECKING:
    from pandas import DataFrame

OutcomesOf = Callable[[Entry], Sequence[Outcome]]
"""The outcomes of an entry, one for each seed."""


MARKS = {"score not known": r"$^\dagger$"}
"""The mark of an entry whose difference from the best cannot be told, in LaTeX."""


METHODS = {
    "is": "importance sampling from the guide, not corrected",
    "local": "importance sampling, corrected by Gaussians fitted to the posterior of each datum",
    "ais": "importance sampling, corrected by annealing from the guide",
    "exact": "exact values",
    "enumeration": "exact sums",
}
"""What a table says of the method of the scores."""


def ranking_table(
    ranking: Sequence[Row], outcomes_of: OutcomesOf, tuning: Tuning | None
) -> "DataFrame":
    """Return a ranking as a DataFrame.

    Args:
        ranking: The rows, the best first.
        outcomes_of: Returns the outcomes of an entry.
        tuning: How settings were chosen, or None.

    Returns:
        One row for each entry; see `Comparison.table`.
    """
    from pandas import DataFrame

    rows = []
    for rank, row in enumerate(ranking, 1):
        outcomes = outcomes_of(row.entry)
        rows.append(
            {
                "rank": rank,
                **row.entry._asdict(),
                **_spread("nll", row.nll),
                **_spread("from_baseline", row.from_baseline.estimate),
                **_spread("from_best", row.from_best.estimate),
                "verdict": "best" if rank == 1 else row.from_best.verdict,
                **scoring_of(outcomes),
                **{n: _mean([getattr(o, n) for o in outcomes]) for n in ("evaluations", "seconds")},
                **_tuned(row.entry, tuning),
            }
        )
    return DataFrame(rows)


def scoring_of(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return how the trainings of an entry were scored.

    Args:
        outcomes: The outcomes, one for each seed.

    Returns:
        By name: the method; means over the seeds of the NLL by importance sampling, the correction
        and the error of the score, in nats per datum, of the share of data whose k̂ or ESS is not
        reliable, and of the median ESS.
    """
    scores = [outcome.score for outcome in outcomes]
    return {
        "score_method": scores[0].method,
        "nll_is": _mean([score.nll_uncorrected for score in scores]),
        "shift": _mean([score.shift.value for score in scores]),
        "scoring_error": _mean([score.error for score in scores]),
        "unreliable": _mean([score.unreliable_share for score in scores]),
        "ess_median": _mean([score.ess_median for score in scores]),
    }


def _spread(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _tuned(entry: Entry, tuning: Tuning | None) -> dict[str, Any]:
    if tuning is None:
        return {}
    evaluations, seconds = tuning.cost(entry.short)
    cost = {"tuning_evaluations": evaluations, "tuning_seconds": seconds}
    return {**{f"tuned_{k}": v for k, v in tuning.best(entry.short).settings.items()}, **cost}


def latex(
    ranking: Sequence[Row],
    baseline: Entry,
    outcomes_of: OutcomesOf,
    tuning: Tuning | None,
    data: str = "",
) -> str:
    """Return a ranking as a LaTeX table.

    Args:
        ranking: The rows, the best first.
        baseline: The entry that differences are taken from.
        outcomes_of: Returns the outcomes of an entry.
        tuning: How settings were chosen, or None.
        data: The name of the held-out data.

    Returns:
        A `table` environment; see `Comparison.to_latex`.
    """
    has_variants = any(row.entry.variant for row in ranking)
    chosen = [] if tuning is None else list(tuning.grid)
    head = ["objective", "$K$", *(["variant"] if has_variants else []), *map(_escape, chosen)]
    head += ["NLL", f"less {_escape(baseline.short)}", "unreliable", "ESS", "correction"]
    lines = [" & ".join(head) + r" \\"]
    lines += [
        " & ".join(_cells(row, baseline, outcomes_of, tuning, has_variants, i == 0)) + r" \\"
        for i, row in enumerate(ranking)
    ]
    columns = "lr" + "l" * has_variants + "r" * (len(head) - 2 - has_variants)
    body = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\begin{{tabular}}{{{columns}}}",
            *body,
            r"\end{tabular}",
            rf"\caption{{{_caption(ranking, outcomes_of, tuning, data)}}}",
            r"\end{table}",
            "",
        ]
    )


def _cells(
    row: Row,
    baseline: Entry,
    outcomes_of: OutcomesOf,
    tuning: Tuning | None,
    has_variants: bool,
    is_best: bool,
) -> list[str]:
    entry, gap = row.entry, row.from_baseline.estimate
    scoring = scoring_of(outcomes_of(entry))
    verdict = "best" if is_best else row.from_best.verdict
    nll = f"{row.nll.value:.3f}" + MARKS.get(verdict, "")
    chosen = [] if tuning is None else tuning.best(entry.short).settings.values()
    return [
        _escape(entry.objective),
        str(entry.num_particles),
        *([_escape(entry.variant)] if has_variants else []),
        *(_escape(f"{value:g}") for value in chosen),
        rf"\textbf{{{nll}}}" if verdict in ("best", "within noise") else nll,
        "" if entry == baseline else rf"${gap.value:+.3f} \pm {gap.high - gap.value:.3f}$",
        rf"{100 * scoring['unreliable']:.0f}\,\%",
        f"{scoring['ess_median']:.0f}",
        f"${scoring['shift']:+.3f}$" if scoring["score_method"] != "is" else "",
    ]


def _caption(
    ranking: Sequence[Row], outcomes_of: OutcomesOf, tuning: Tuning | None, data: str
) -> str:
    outcomes = outcomes_of(ranking[0].entry)
    score, seeds = outcomes[0].score, len(outcomes)
    methods = "; ".join(
        dict.fromkeys(METHODS[o.score.method] for row in ranking for o in outcomes_of(row.entry))
    )
    corrected = f" on {len(score.correction.index)} of them" if score.correction is not None else ""
    tuned = (
        ""
        if tuning is None
        else f" {', '.join(map(_escape, tuning.grid))} tuned on validation data."
    )
    of = f" of {_escape(data)}" if data else ""
    draws = f", $K = {score.num_particles}$" if score.num_particles else ""
    return (
        f"Held-out NLL in nats per datum of {len(score.log_px)} data{of}, mean of {seeds} "
        f"seed{'s' * (seeds != 1)}; scores: {methods}{corrected}{draws}. Bold: not told from the "
        "best at 95\\,\\%; "
        r"$\dagger$: not told because the error of a score is not known. "
        "Differences are paired by seed and datum, with 95\\,\\% intervals. "
        r"Unreliable: share of data whose $\hat k$ or effective sample size (ESS) under the "
        f"guide is not reliable.{tuned}"
    )


def _escape(text: str) -> str:
    for character in "&%$#_{}":
        text = text.replace(character, "\\" + character)
    return text
