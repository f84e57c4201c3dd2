"""Attention over the kernels' own cache layout."""
