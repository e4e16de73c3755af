"""Log lines for the results of a test."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from plsc.metrics.identification import FPIRS
from plsc.metrics.roc import LEAST_ACCEPTS, can_tell

logger = logging.getLogger("plsc")


def log_test(results: Mapping[str, Mapping[str, Any]], fars: Sequence[float] = ()) -> None:
    """Logs one line for each set and, with `fars`, how many pairs or probes are accepted at each rate.

    Args:
        results: What an `Evaluator` returns.
        fars: False accept rates that the user has asked for.
    """
    for name, values in results.items():
        if "accuracy" not in values:
            _log_identification(name, values, bool(fars))
            continue
        logger.info(
            "test %s: accuracy %.4f +- %.4f, TAR@FAR=1e-3 %.4f, XNorm %.3f",
            name,
            values["accuracy"],
            values["std"],
            values["tar@1e-3"],
            values["xnorm"],
        )
        if not fars:
            continue
        logger.info("test %s: AUC %.5f, EER %.4f at %.3f", name, values["auc"], values["eer"], values["eer_threshold"])
        _log_rates(name, "TAR@FAR", values["at_far"])
        if not can_tell(values["different_pairs"], min(fars)):
            logger.info(
                "test %s: only %s pairs of different classes; measuring a FAR needs at least %d / FAR of them",
                name,
                f"{values['different_pairs']:,}",
                LEAST_ACCEPTS,
            )


def _log_identification(name: str, values: Mapping[str, Any], with_rates: bool) -> None:
    ranks = ", ".join(f"{key} {share:.4f}" for key, share in values.items() if key.startswith("rank@"))
    counts = tuple(f"{values[key]:,}" for key in ("mated", "probes", "gallery"))
    logger.info("test %s: %s over the %s of %s probes that have a mate in the gallery of %s", name, ranks, *counts)
    if not with_rates:
        return
    _log_rates(name, "TPIR@FPIR", values["at_fpir"])
    strangers = values["probes"] - values["mated"]
    if not can_tell(strangers, min(FPIRS)):
        text = "test %s: only %s strangers among the probes; measuring an FPIR needs at least %d / FPIR of them"
        logger.info(text, name, f"{strangers:,}", LEAST_ACCEPTS)


def _log_rates(name: str, what: str, rates: Mapping[str, Mapping[str, float]]) -> None:
    for rate, found in rates.items():
        bounds = f"[{found['low']:.4f}, {found['high']:.4f}]"
        text = "test %s: %s=%s %.4f %s at threshold %.3f"
        logger.info(text, name, what, rate, found["tar"], bounds, found["threshold"])
