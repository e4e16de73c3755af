"""Embeddings in folders, and finding the nearest identities in them."""

from plsc.search.index import Hit, SearchIndex, build_index

__all__ = ["Hit", "SearchIndex", "build_index"]
