import csv
import io

from hypothesis import given
from hypothesis import strategies as st

from plsc.machine.tables import write_rows

TEXTS = st.text(st.sampled_from('a\r\n\t" 人'), max_size=6)


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=4))
def test_every_text_can_be_read_again(rows):
    stream = io.StringIO(newline="")
    write_rows(stream, rows)
    read = csv.reader(io.StringIO(stream.getvalue(), newline=""), csv.excel_tab)
    assert [tuple(row) for row in read] == rows
    for text in [text for row in rows for text in row if "\r" in text or '"' in text]:
        assert '"' + text.replace('"', '""') + '"' in stream.getvalue()
