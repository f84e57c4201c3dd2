"""Drafted token trees as root-to-leaf paths: how a backend without a tree mask scores them."""

from __future__ import annotations

from edgevlm.backends.session import Int64


def leaf_paths(parents: Int64) -> list[tuple[int, ...]]:
    """Returns the root-to-leaf paths of a tree in depth-first order."""
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(parents.tolist()):
        children.setdefault(parent, []).append(node)
    paths: list[tuple[int, ...]] = []
    stack: list[tuple[int, ...]] = [(root,) for root in reversed(children.get(-1, []))]
    while stack:
        path = stack.pop()
        below = children.get(path[-1])
        if below is None:
            paths.append(path)
        else:
            stack.extend((*path, child) for child in reversed(below))
    return paths


def shared_length(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """Returns how many nodes two paths have in common from the root."""
    n_shared = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        n_shared += 1
    return n_shared
