"""ROC curves of scores: rates, areas and thresholds, with confidence bounds from the bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np

from plsc.errors import DataError

FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
# With fewer expected false accepts, a rate cannot be distinguished from zero: an event that does not occur in N trials
# may have a rate of up to 3/N (at 95 % confidence, the "rule of three").
LEAST_ACCEPTS = 3
_RESAMPLES = 2000
_BINS = 1 << 20  # Cells of [-1, 1], as fine as float32 cosines are exact.


@dataclass(frozen=True)
class Roc:
    """The number of pairs that are accepted at each of T thresholds.

    Attributes:
        thresholds: Thresholds in falling order, float64 [T]; a pair is accepted if its score is at least the threshold.
        same: Accepted pairs of one identity, int64 [T]; the last entry counts all of them.
        different: Accepted pairs of two identities, int64 [T]; the last entry counts all of them.
    """

    thresholds: np.ndarray
    same: np.ndarray
    different: np.ndarray

    @property
    def num_same(self) -> int:
        """Number of pairs of one identity."""
        return int(self.same[-1]) if len(self.same) else 0

    @property
    def num_different(self) -> int:
        """Number of pairs of two identities."""
        return int(self.different[-1]) if len(self.different) else 0

    def rates(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns (far, tar), float64 [T + 1] each, starting with (0, 0), where no pair is accepted.

        A rate is NaN if there are no pairs of its kind.
        """
        return _rate(self.different, self.num_different), _rate(self.same, self.num_same)

    def threshold(self, point: int) -> float:
        """Returns the threshold of a point of `rates`; for point 0 it is just above all scores."""
        if point == 0:
            return float(np.nextafter(self.thresholds[0], np.inf))
        return float(self.thresholds[point - 1])


def _rate(accepted: np.ndarray, total: int) -> np.ndarray:
    counts = np.concatenate([[0], accepted])
    return counts / total if total else np.full(len(counts), np.nan)


def roc_of_pairs(scores: np.ndarray, issame: np.ndarray) -> Roc:
    """Returns the curve of single pairs.

    Args:
        scores: Score of each pair, float [P]; larger means more similar.
        issame: Whether the two are of one identity, bool [P].

    Raises:
        DataError: The shapes do not fit, or a score is not finite.
    """
    scores, issame = np.asarray(scores), np.asarray(issame).astype(bool)
    if scores.shape != issame.shape or scores.ndim != 1:
        raise DataError(
            f"verification: similarity {list(scores.shape)} does not fit issame {list(issame.shape)}; give [P] each"
        )
    if np.isnan(scores).any() or np.isposinf(scores).any():
        raise DataError("verification: a similarity is not finite; training has diverged or the checkpoint is damaged")
    order = np.argsort(-scores, kind="stable")
    ordered, same = scores[order], issame[order]
    # Equal scores are accepted together, so only the last of each run counts.
    last = np.append(ordered[1:] != ordered[:-1], True) if len(ordered) else np.zeros(0, bool)
    return Roc(ordered[last].astype(np.float64), np.cumsum(same)[last], np.cumsum(~same)[last])


def roc_of_counts(same_scores: np.ndarray, different_counts: np.ndarray) -> Roc:
    """Returns the curve of pairs whose different pairs are only counted.

    Args:
        same_scores: Scores of the pairs of one identity, float [S].
        different_counts: Result of `count_scores` for the pairs of two identities.
    """
    thresholds = np.arange(_BINS - 1, -1, -1) * (2 / _BINS) - 1
    ordered = np.sort(same_scores)
    return Roc(
        thresholds,
        len(ordered) - np.searchsorted(ordered, thresholds, side="left"),
        np.cumsum(different_counts[::-1]),
    )


def count_scores(scores: np.ndarray) -> np.ndarray:
    """Counts the cosines in each of the 2^20 cells of [-1, 1]; returns int64 [2^20]."""
    cells = ((scores + 1) * (_BINS / 2)).astype(np.int32)
    return np.bincount(np.clip(cells, 0, _BINS - 1).reshape(-1), minlength=_BINS)


def roc_curve(similarity: np.ndarray, issame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ROC curve of pairs.

    Args:
        similarity: Similarity of each pair, float [P]; larger means more similar.
        issame: Whether the two are of one identity, bool [P].

    Returns:
        (far, tar), float64 arrays with one point for each distinct similarity, starting with (0, 0), where no pair is
        accepted. A rate is NaN if there are no pairs of its kind.
    """
    return roc_of_pairs(similarity, issame).rates()


def tar_at_far(similarity: np.ndarray, issame: np.ndarray, far: float = 1e-3) -> float:
    """Returns the share of same pairs that are accepted at the largest reachable false accept rate up to `far`.

    Nothing is interpolated. The result is NaN if there are no pairs of either kind.

    Args:
        similarity: Similarity of each pair, float [P]; larger means more similar.
        issame: Whether the two are of one identity, bool [P].
        far: False accept rate.
    """
    return tar_of(roc_of_pairs(similarity, issame), far)


def tar_of(roc: Roc, far: float) -> float:
    """Returns the true accept rate of a curve at a false accept rate; see `tar_at_far`."""
    if not roc.num_same or not roc.num_different:
        return float("nan")
    return float(roc.rates()[1][_point(roc, int(far * roc.num_different))])


def _point(roc: Roc, accepts: np.ndarray | int) -> np.ndarray:
    """Returns the last points of the curve with at most the given numbers of false accepts."""
    return np.searchsorted(roc.different, accepts, side="right")


def auc(roc: Roc) -> float:
    """Returns the area under the curve: how often a same pair scores above a different one, with ties counted half."""
    far, tar = roc.rates()
    return float(np.sum(np.diff(far) * (tar[1:] + tar[:-1])) / 2)


def equal_error_rate(roc: Roc) -> tuple[float, float]:
    """Returns (rate, threshold) at which the share of accepted different pairs equals that of rejected same pairs.

    The rate is interpolated between the two points of the curve around it; the threshold is that of the nearer one.
    Both are NaN if there are no pairs of either kind.
    """
    far, tar = roc.rates()
    gap = far - (1 - tar)  # It rises from -1 to 1.
    if np.isnan(gap).any():
        return float("nan"), float("nan")
    after = int(np.argmax(gap >= 0))
    before = max(after - 1, 0)
    step = gap[after] - gap[before]
    share = -gap[before] / step if step else 0.0
    rate = far[before] + share * (far[after] - far[before])
    return float(rate), roc.threshold(after if share >= 0.5 else before)


def at_rates(
    roc: Roc, rates: Sequence[float] = FARS, identities: Optional[tuple[np.ndarray, np.ndarray]] = None, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Returns the true accept rate at chosen false accept rates, with confidence bounds.

    Args:
        roc: The curve.
        rates: False accept rates, in (0, 1). A rate is left out if there are fewer than 3 / rate different pairs, which
            cannot distinguish it from zero.
        identities: Score and identity of each same pair, [S] each. The scores of pairs of one identity depend on each
            other, so the bootstrap resamples identities. With None it resamples pairs.
        seed: Seed of the bootstrap.

    Returns:
        `{'1e-3': {'tar', 'low', 'high', 'threshold'}}`: the share of same pairs that are accepted; the bounds of 95 %
        of 2,000 bootstrap resamples of both kinds of pairs (percentiles; Efron and Tibshirani, An Introduction to the
        Bootstrap, section 13.3); and the score from which a pair is accepted.
    """
    result: dict[str, dict[str, float]] = {}
    if not roc.num_same or not roc.num_different:
        return result
    rng = np.random.default_rng(seed)
    total, tars = roc.num_different, roc.rates()[1]
    for rate in rates:
        if not can_tell(total, rate):
            continue
        accepts = int(rate * total + 1e-9)
        point = int(_point(roc, accepts))
        # The first rejected pair of a resample is the (accepts + 1)-th highest of its different pairs. Its place among
        # the original pairs follows from the order statistics of uniform numbers, so no pair need be drawn.
        first_refused = np.ceil(total * rng.beta(accepts + 1, total - accepts, _RESAMPLES)).astype(np.int64)
        points = _point(roc, np.clip(first_refused, 1, total) - 1)
        if identities is None:
            drawn = rng.binomial(roc.num_same, tars[points]) / roc.num_same
        else:
            drawn = _draw_identities(roc, points, *identities, rng)
        low, high = np.percentile(drawn, [2.5, 97.5])
        result[rate_name(rate)] = {
            "tar": float(tars[point]),
            "low": float(low),
            "high": float(high),
            "threshold": roc.threshold(point),
        }
    return result


def can_tell(num_different: int, rate: float) -> bool:
    """Returns whether so many different pairs are enough to distinguish a false accept rate from zero."""
    return num_different * rate >= LEAST_ACCEPTS - 1e-6


def rate_name(rate: float) -> str:
    """Returns a rate as a text, such as '1e-3' for 0.001 and '2.5e-4' for 0.00025."""
    digits, _, exponent = f"{rate:.6e}".partition("e")
    return f"{float(digits):g}e{int(exponent)}"


def _draw_identities(
    roc: Roc, points: np.ndarray, scores: np.ndarray, identities: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Returns the share of accepted same pairs at each of `points`, each in a resample of the identities."""
    _, group = np.unique(identities, return_inverse=True)
    pairs = np.bincount(group)
    drawn = np.empty(len(points))
    # Few points differ, so the resamples of equal points are drawn together.
    for point in np.unique(points):
        where = np.flatnonzero(points == point)
        accepted = np.bincount(group[scores >= roc.threshold(int(point))], minlength=len(pairs))
        for part in np.array_split(where, max(1, len(where) * len(pairs) // 10_000_000)):
            times = rng.multinomial(len(pairs), np.full(len(pairs), 1 / len(pairs)), len(part))
            drawn[part] = times @ accepted / np.maximum(times @ pairs, 1)
    return drawn
