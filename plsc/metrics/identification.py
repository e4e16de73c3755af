"""Identification: whose image is it? Searches for probes in a gallery of known identities.

A template stands for several images of one identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from plsc.errors import DataError
from plsc.metrics.roc import at_rates, roc_of_pairs
from plsc.metrics.vectors import unit_rows

RANKS = (1, 5, 10)
FPIRS = (1e-1, 1e-2, 1e-3)
_PROBES, _GALLERY = 1024, 8192  # Rows that are compared at a time.


def average_templates(embeddings: np.ndarray, templates: np.ndarray) -> np.ndarray:
    """Returns the embeddings of templates: the mean of the unit vectors of their images, scaled to length 1.

    Args:
        embeddings: Embeddings of images, float [N, D].
        templates: Template of each image, int [N] in [0, T); none may be empty.

    Returns:
        Embeddings of the templates, float32 [T, D].

    Raises:
        DataError: The shapes do not fit.
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
    """Searches for every probe in the gallery, and measures the answers (ISO/IEC 19795-1, closed and open set).

    A probe is mated if the gallery holds its identity. Its rank is 1 plus the number of other identities that are at
    least as similar to it as its own. An open-set search answers with the most similar identity if the cosine reaches a
    threshold. FPIR is the share of the probes without a mate that get an answer, and TPIR the share of mated probes
    that get the right one.

    Args:
        gallery: Embeddings of the gallery, float [G, D], one row for each identity.
        gallery_identities: Identity of each row, int [G], all different.
        probes: Embeddings of the probes, float [P, D].
        probe_identities: Identity of each probe, int [P].
        ranks: Ranks k for `rank@k`.
        fpirs: Values of FPIR for `at_fpir`.

    Returns:
        `rank@1`, ... (shares of the mated probes with at most that rank), `gallery`, `probes` and `mated` (numbers),
        and `at_fpir`: `{'1e-2': {'tar', 'low', 'high', 'threshold'}}` as `at_far` of `verification_metrics`, where
        `tar` is TPIR.

    Raises:
        DataError: The shapes do not fit, an identity is twice in the gallery, or no probe is mated.
    """
    own = mates_of(gallery, gallery_identities, probes, probe_identities)
    return identification_rates(own, *search_gallery(gallery, probes, own), len(gallery), ranks, fpirs)


def mates_of(
    gallery: np.ndarray, gallery_identities: np.ndarray, probes: np.ndarray, probe_identities: np.ndarray
) -> np.ndarray:
    """Returns for each probe the row of the gallery with its identity, int64 [P]; -1 if the gallery does not hold it.

    Arguments and exceptions are those of `identification_metrics`.
    """
    for name, rows, identities in (("gallery", gallery, gallery_identities), ("probes", probes, probe_identities)):
        if rows.ndim != 2 or len(rows) != len(identities) or len(rows) == 0:
            raise DataError(
                f"identification: {name} {list(rows.shape)} do not fit identities {list(identities.shape)}; give [N, "
                "D] and [N]"
            )
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(bad):
            raise DataError(
                f"identification: row {int(bad[0])} of the {name} is not finite; training has diverged or the "
                "checkpoint is damaged"
            )
    order = np.argsort(gallery_identities)
    known = gallery_identities[order]
    if (known[1:] == known[:-1]).any():
        raise DataError(
            "identification: an identity is twice in the gallery; average its images with average_templates"
        )
    place = np.minimum(np.searchsorted(known, probe_identities), len(known) - 1)
    own = np.where(known[place] == probe_identities, order[place], -1)
    if not (own >= 0).any():
        raise DataError("identification: no probe has an identity of the gallery; check the two lists")
    return own


def search_gallery(gallery: np.ndarray, probes: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compares probes with the gallery. Parts of the probes may be searched for separately.

    Args:
        gallery: Embeddings of the gallery, float [G, D].
        probes: Embeddings of the probes, float [P, D].
        own: Row of the gallery with the identity of each probe, int64 [P]; -1 if there is none.

    Returns:
        Rank of each probe, int64 [P], which means nothing for a probe without a row of its own; and the highest cosine
        of each probe, float64 [P].
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
            # Two ways of summing differ in the last bits, so the cosine with the own row comes from one way alone.
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
    """Returns what `identification_metrics` does.

    Args:
        own: Result of `mates_of`.
        rank: First result of `search_gallery`.
        best: Second result of `search_gallery`.
        gallery: Number of identities in the gallery.
        ranks: Ranks k for `rank@k`.
        fpirs: Values of FPIR for `at_fpir`.
    """
    mated = own >= 0
    # A mated probe whose nearest identity is wrong gets no right answer at any threshold.
    scores = np.where(mated & (rank > 1), -np.inf, best)
    return {
        **{f"rank@{k}": float((rank[mated] <= k).mean()) for k in ranks},
        "gallery": gallery,
        "probes": len(own),
        "mated": int(mated.sum()),
        "at_fpir": at_rates(roc_of_pairs(scores, mated), fpirs),
    }
