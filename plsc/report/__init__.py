"""Writes one HTML page about runs, from what they left in their folders. Needs no Paddle.

make                          the entry point: page and charts
run_folder, pairs_file        read what a run left; `pairs_file` also defines and writes `<set>_pairs.npz`
headline                      the numbers that a run is judged by
page, charts                  the sections of the page and the charts in them
outliers                      the page of `plsc data outliers`
document, markup, style       self-contained HTML files; `plsc search --page` uses them too
"""

from plsc.report.make import make_report

__all__ = ["make_report"]
