"""Finds the nearest identities of images. Needs no Paddle.

embeddings    embeddings folders, which `predict` writes
parquet       their Parquet file, for other programs
index         an index of such a folder, and the search in it
page          an HTML page of the images searched for and what was found
"""

from plsc.search.index import Hit, SearchIndex, build_index

__all__ = ["Hit", "SearchIndex", "build_index"]
