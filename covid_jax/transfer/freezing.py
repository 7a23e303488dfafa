"""Freezing as a partition of a parameter tree.

Patterns over parameter paths (`encoder/stage_2/block_0/conv/kernel`) select the frozen leaves,
and the tree is split in two. Gradients, optimiser state and updates exist for the trainable half
only; the frozen half enters the step as a plain argument, so XLA never builds a backward pass
below the lowest trainable leaf.
"""

import difflib
import re
from collections.abc import Sequence
from typing import Any

import jax

from covid_jax.errors import UserError

Tree = Any
"""A nested dictionary of arrays; in a half, None where the leaf belongs to the other half."""


def mask(params: Tree, patterns: Sequence[str]) -> Tree:
    """A tree of bool like `params`: True for the leaves that `patterns` freeze.

    A pattern names a leaf, or a node and with it everything below. `*` stands for any part of one
    name, `**` for any number of names, `[0-2]` for one of these characters. A pattern after `!`
    takes out again what it matches; later patterns win.

    >>> mask({"encoder": {"kernel": 1.0}, "heads": {"kernel": 2.0}}, ["encoder"])
    {'encoder': {'kernel': True}, 'heads': {'kernel': False}}

    Raises:
      UserError: a pattern matches nothing.
    """
    paths = leaf_paths(params)
    frozen = dict.fromkeys(paths, False)
    for pattern in patterns:
        expression = re.compile(_translate(pattern.removeprefix("!")))
        matched = [path for path in paths if expression.fullmatch(path)]
        if not matched:
            raise UserError(
                f"pattern {pattern!r} matches no parameter; near: {_near(pattern, paths)}"
            )
        frozen.update(dict.fromkeys(matched, not pattern.startswith("!")))
    structure = jax.tree.structure(params)
    return jax.tree.unflatten(structure, [frozen[path] for path in paths])


def split(params: Tree, frozen: Tree) -> tuple[Tree, Tree]:
    """(trainable, frozen) halves of `params`, with None where a leaf is in the other half."""
    return (
        jax.tree.map(lambda leaf, held: None if held else leaf, params, frozen),
        jax.tree.map(lambda leaf, held: leaf if held else None, params, frozen),
    )


def join(trainable: Tree, frozen: Tree) -> Tree:
    """The inverse of split."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, trainable, frozen, is_leaf=lambda leaf: leaf is None
    )


def leaf_paths(params: Tree) -> list[str]:
    """The path of every leaf, in the order in which jax flattens the tree."""
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]
    ]


def leaves_by_path(params: Tree) -> dict[str, Any]:
    """Every leaf by its path, in the order in which jax flattens the tree."""
    return dict(zip(leaf_paths(params), jax.tree.leaves(params), strict=True))


def _translate(pattern: str) -> str:
    """The regular expression of a pattern; what lies below a match matches too."""
    parts = re.findall(r"\*\*/|/\*\*$|\*\*|\*|\[[^\]]*\]|.", pattern)
    meaning = {"**/": "(?:.*/)?", "/**": "(?:/.*)?", "**": ".*", "*": "[^/]*"}
    translated = (
        meaning.get(part) or (part if part.startswith("[") else re.escape(part)) for part in parts
    )
    return "".join(translated) + "(?:/.*)?"


def _near(pattern: str, paths: Sequence[str]) -> str:
    nodes = {"/".join(path.split("/")[:depth]) for path in paths for depth in range(1, 7)}
    plain = re.sub(r"[!*]+|/\*+$", "", pattern).strip("/")
    return ", ".join(difflib.get_close_matches(plain, sorted(nodes), 3, cutoff=0.3)) or paths[0]
