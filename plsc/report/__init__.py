"""One HTML page about runs, from what they left in their folders. Needs no Paddle."""

from plsc.report.make import make_report

__all__ = ["make_report"]
