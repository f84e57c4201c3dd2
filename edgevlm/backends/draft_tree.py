"""Drafted token trees as root-to-leaf paths: how a backend without a tree mask scores them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from edgevlm.backends.session import Int64
from edgevlm.errors import UsageError


@dataclass(frozen=True)
class DraftTree:
    """A tree that was scored: its tokens, and the path whose rows lie in the cache behind the committed ones."""

    ids: Int64
    parents: Int64
    positions: Int64
    cached_path: tuple[int, ...]


def check_tree(ids: Int64, parents: Int64, positions: Int64) -> None:
    """Raises UsageError for an empty tree, lengths that differ, or a parent that does not stand before its child."""
    n_nodes = len(ids)
    if n_nodes == 0 or len(parents) != n_nodes or positions.shape[-1] != n_nodes:
        raise UsageError(f"a tree of {n_nodes} ids has {len(parents)} parents and {positions.shape[-1]} positions")
    if any(not -1 <= parent < node for node, parent in enumerate(parents.tolist())):
        raise UsageError("each parent in a drafted tree must stand before its child")


def accepted_path(tree: DraftTree | None, nodes: Int64) -> tuple[DraftTree, tuple[int, ...]]:
    """Returns `tree`, and `nodes` as a path. Raises UsageError without a tree, and for nodes that are no path in it."""
    path = tuple(int(node) for node in nodes)
    if tree is None:
        raise UsageError("accept() needs a tree scored just before")
    expected = -1
    for node in path:
        if not 0 <= node < len(tree.ids) or tree.parents[node] != expected:
            raise UsageError(f"nodes {path} are not a path from the root of the scored tree")
        expected = node
    return tree, path


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


def shared_length(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Returns how many items two paths, or two prompts, have in common from their beginning."""
    n_shared = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        n_shared += 1
    return n_shared
