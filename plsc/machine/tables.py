"""Tables whose columns are divided by tabs, with texts of any kind in them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from typing import TextIO

from plsc.machine.names import to_text


def write_rows(stream: TextIO, rows: Iterable[Sequence[str]]) -> None:
    """Writes rows. A text with a tab, a line end or a double quote stands in double quotes, as in CSV.

    Args:
        stream: An open text file with `newline=""`, whose encoding takes what `to_text` gives.
        rows: Texts, which may be native names of files.
    """
    plain = csv.writer(stream, csv.excel_tab, lineterminator="\n")
    quoted = csv.writer(stream, csv.excel_tab, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        # Before Python 3.13 csv does not quote \r itself.
        (quoted if any("\r" in one for one in row) else plain).writerow([to_text(one) for one in row])
