"""Who is it? Probes are looked for in a gallery of known identities; and templates, which stand for several images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from plsc.errors import DataError
from plsc.metrics.roc import at_rates, roc_of_pairs
from plsc.metrics.vectors import unit_rows

RANKS = (1, 5, 10)
FPIRS = (1e-1, 1e-2, 1e-3)
_PROBES, _GALLERY = 1024, 8192  # compared at a time


def average_templates(embeddings: np.ndarray, templates: np.ndarray) -> np.ndarray:
    """Embeddings of templates: unit vectors of the mean of their images' unit vectors.

    Args:
        embeddings: float [N, D].
        templates: int [N], the template of each image, in [0, T), none of them empty.

    Returns:
        float32 [T, D].
    """
    embeddings, templates = np.asarray(embeddings, dtype=np.float32), np.asarray(templates)
    if len(embeddings) != len(templates) or embeddings.ndim != 2:
        raise DataError(
            f"templates {list(templates.shape)} do not fit embeddings {list(embeddings.shape)}; give [N] each"
        )
    order = np.argsort(templates, kind="stable")
    firsts = np.flatnonzero(np.diff(templates[order], prepend=-1))
    if len(order) == 0:
        return embeddings
    return unit_rows(np.add.reduceat(unit_rows(embeddings)[order], firsts, axis=0))


def identification_metrics(
    gallery: np.ndarray,
    gallery_identities: np.ndarray,
    probes: np.ndarray,
    probe_identities: np.ndarray,
    ranks: Sequence[int] = RANKS,
    fpirs: Sequence[float] = FPIRS,
) -> dict[str, Any]:
    """Look for every probe in the gallery (ISO/IEC 19795-1, closed and open set).

    A probe is mated when its identity is in the gallery. Its rank is 1 more than the number of other identities at least
    as similar as its own. An open-set search answers with the most similar identity if its cosine reaches a threshold:
    FPIR is the share of probes that are not mated and get an answer, TPIR the share of mated ones that get the right one.

    Args:
        gallery: float [G, D], one row for each identity.
        gallery_identities: int [G], all different.
        probes: float [P, D].
        probe_identities: int [P].

    Returns:
        `rank@1`, ... (shares of the mated probes), `gallery`, `probes`, `mated`, and `at_fpir`, as `at_far` of
        `verification_metrics`: `{'1e-2': {'tar', 'low', 'high', 'threshold'}}`, where `tar` is TPIR.

    Raises:
        DataError: shapes that do not fit, an identity twice in the gallery, or no probe that is mated.
    """
    own = mates_of(gallery, gallery_identities, probes, probe_identities)
    return identification_rates(own, *search_gallery(gallery, probes, own), len(gallery), ranks, fpirs)


def mates_of(
    gallery: np.ndarray, gallery_identities: np.ndarray, probes: np.ndarray, probe_identities: np.ndarray
) -> np.ndarray:
    """The row of the gallery that is of each probe's identity, int64 [P]; -1 of strangers.

    Takes and raises what `identification_metrics` does.
    """
    for name, rows, identities in (("gallery", gallery, gallery_identities), ("probes", probes, probe_identities)):
        if rows.ndim != 2 or len(rows) != len(identities) or len(rows) == 0:
            raise DataError(
                f"identification: {name} {list(rows.shape)} do not fit identities {list(identities.shape)}; give [N, D] and [N]"
            )
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(bad):
            raise DataError(f"identification: row {int(bad[0])} of the {name} is not finite; training has diverged")
    order = np.argsort(gallery_identities)
    known = gallery_identities[order]
    if (known[1:] == known[:-1]).any():
        raise DataError(
            "identification: an identity is twice in the gallery; average its images with average_templates"
        )
    place = np.minimum(np.searchsorted(known, probe_identities), len(known) - 1)
    own = np.where(known[place] == probe_identities, order[place], -1)  # the probe's row of the gallery
    if not (own >= 0).any():
        raise DataError("identification: no probe is of an identity of the gallery; check the two lists")
    return own


def search_gallery(gallery: np.ndarray, probes: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank int64 [P] of each probe's `own` row (means nothing without one), and the highest cosine float64 [P] of each.

    Parts of the probes may be looked for apart.
    """
    gallery, probes = unit_rows(gallery.astype(np.float32)), unit_rows(probes.astype(np.float32))
    rank, best = np.ones(len(probes), np.int64), np.full(len(probes), -np.inf)
    for first in range(0, len(probes), _PROBES):
        part = slice(first, first + _PROBES)
        mates = np.einsum("ij,ij->i", probes[part], gallery[own[part]])
        for start in range(0, len(gallery), _GALLERY):
            cosines = probes[part] @ gallery[start : start + _GALLERY].T
            inside = np.flatnonzero((own[part] >= start) & (own[part] < start + _GALLERY))
            column = own[part][inside] - start
            # Two ways of summing differ in the last bits: the own row is compared with nothing.
            cosines[inside, column] = mates[inside]
            best[part] = np.maximum(best[part], cosines.max(axis=1))
            cosines[inside, column] = -np.inf
            rank[part] += (cosines >= mates[:, None]).sum(axis=1)
    return rank, best


def identification_rates(
    own: np.ndarray,
    rank: np.ndarray,
    best: np.ndarray,
    gallery: int,
    ranks: Sequence[int] = RANKS,
    fpirs: Sequence[float] = FPIRS,
) -> dict[str, Any]:
    """What `identification_metrics` returns, of `mates_of` and `search_gallery`, with a gallery of so many identities."""
    mated = own >= 0
    # A mated probe whose answer is wrong is never answered rightly, however low the threshold.
    scores = np.where(mated & (rank > 1), -np.inf, best)
    return {
        **{f"rank@{k}": float((rank[mated] <= k).mean()) for k in ranks},
        "gallery": gallery,
        "probes": len(own),
        "mated": int(mated.sum()),
        "at_fpir": at_rates(roc_of_pairs(scores, mated), fpirs),
    }
