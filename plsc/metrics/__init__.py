"""Measures how good embeddings are: verification of pairs, ROC curves, identification in a gallery. NumPy only."""

from plsc.metrics.identification import (
    average_templates,
    identification_metrics,
    identification_rates,
    mates_of,
    search_gallery,
)
from plsc.metrics.roc import FARS, roc_curve, tar_at_far
from plsc.metrics.verification import (
    all_pairs_metrics,
    count_different,
    mean_norm,
    pair_similarity,
    pairs_of_labels,
    verification_metrics,
)

__all__ = [
    "FARS",
    "all_pairs_metrics",
    "average_templates",
    "count_different",
    "identification_metrics",
    "identification_rates",
    "mates_of",
    "mean_norm",
    "pair_similarity",
    "pairs_of_labels",
    "roc_curve",
    "search_gallery",
    "tar_at_far",
    "verification_metrics",
]
