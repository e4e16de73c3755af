"""The damaged images that a run skips: counted over all ranks, logged once, and listed in a file of its folder."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any, Optional

from plsc import parallel
from plsc.config import DAMAGED_LIST
from plsc.data.damaged import Skipping, too_many
from plsc.data.exclusion import line_of
from plsc.engine.callbacks import Callback, Run
from plsc.errors import one_line

logger = logging.getLogger("plsc")

_LONGEST_REASON = 500


class DamagedImages(Callback):
    """The images that a run could not read or decode.

    A rank tells the others about images that are new to it, so that all ranks know the same ones after each step.

    Args:
        most: Most images that may be damaged.
        save_dir: Folder of the run, where rank 0 lists them; None for no list.
    """

    def __init__(self, most: int, save_dir: Optional[Path]) -> None:
        self._most, self._save_dir = most, save_dir
        self._reasons: dict[str, str] = {}  # by name, of all ranks
        self._news: dict[str, str] = {}  # of this rank, which the others do not know

    @property
    def skipping(self) -> Skipping:
        """What the loader of this rank needs to know."""
        return Skipping(self._most, self._add)

    @property
    def has_news(self) -> bool:
        """Whether `share` must be called on all ranks."""
        return bool(self._news)

    def share(self) -> None:
        """Tells all ranks about the damaged images of this one, logs and lists them; every rank must call it.

        Raises:
            DataError: There are too many; on every rank.
        """
        of_ranks = parallel.all_gather_object(self._news, "its damaged images")
        self._news = {}
        for name, reason in itertools.chain(*(news.items() for news in of_ranks)):
            if name in self._reasons:
                continue
            self._reasons[name] = reason
            self._list({name: reason}, append=True)
            if len(self._reasons) > self._most:
                raise too_many(self._most, len(self._reasons), reason)
            if parallel.rank() == 0:
                logger.warning("damaged image %d of at most %d is skipped: %s", len(self._reasons), self._most, reason)

    def state(self) -> Optional[dict[str, str]]:
        """Returns the images and the reasons."""
        return self._reasons or None

    def load_state(self, state: Any) -> None:
        """Takes back the images that an earlier part of the run has met."""
        self._reasons = {str(name): str(reason) for name, reason in state.items()}

    def on_train_begin(self, run: Run) -> None:
        """Lists the images of a resumed run again, as far as its checkpoint knows them."""
        self._list(self._reasons, append=False)

    def on_train_end(self, run: Run) -> None:
        """Logs how many images were skipped, and how to leave them out."""
        if self._reasons and parallel.rank() == 0:
            path = None if self._save_dir is None else self._save_dir / DAMAGED_LIST
            place = f"; {path} lists them, for set_dataset_dir(exclude=...)" if path is not None else ""
            logger.warning("damaged images that were skipped: %d%s", len(self._reasons), place)

    def _add(self, name: str, reason: str) -> None:
        if name not in self._reasons:
            self._news[name] = one_line(reason, _LONGEST_REASON)

    def _list(self, reasons: dict[str, str], append: bool) -> None:
        if self._save_dir is None or parallel.rank() != 0:
            return
        path = self._save_dir / DAMAGED_LIST
        try:
            if not reasons:
                path.unlink(missing_ok=True)
                return
            with open(path, "ab" if append else "wb") as stream:
                stream.writelines(line_of(name, reason) or b"" for name, reason in reasons.items())
        except OSError as problem:
            logger.warning("%s: cannot be written (%s); the log names the damaged images", path, problem.strerror)
