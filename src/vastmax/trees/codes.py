"""Trees of the user's own: a code word per class."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vastmax.trees.tree import Tree
from vastmax.validation import shown


def from_paths(paths: Sequence[str | Sequence[int]]) -> Tree:
    """Build the tree whose paths these are.

    They must be the words of a complete prefix code: no path is the beginning of another, and wherever a path
    turns one way, some path turns the other.

    Args:
        paths: V paths, that of class c at index c: the turns from the root, 0 for left and 1 for right, as a
            string or a sequence of integers. A single class has the empty path.

    Returns:
        The tree, on the CPU.

    Raises:
        TypeError: `paths`, or one of them, is no such sequence.
        ValueError: paths that are not such a code; the message names the class.

    Example:
        >>> from_paths(["0", "10", [1, 1]]).children
        tensor([[-1,  1],
                [-2, -3]])
    """
    if isinstance(paths, str) or not isinstance(paths, Sequence):
        raise TypeError(f"paths: expected a sequence with a path per class, got {type(paths).__name__}")
    if len(paths) == 0:
        raise ValueError("paths: expected a path for at least one class, got none")
    words = [_word(label, path) for label, path in enumerate(paths)]
    _check_complete_code(words)

    children: list[list[int]] = [[0, 0] for _ in range(len(words) - 1)]
    num_nodes = 1
    for label, word in enumerate(words):
        node = 0
        for turn in word[:-1]:
            if children[node][int(turn)] == 0:  # the root is nobody's child: nothing is here yet
                children[node][int(turn)] = num_nodes
                num_nodes += 1
            node = children[node][int(turn)]
        if word:
            children[node][int(word[-1])] = ~label
    return Tree(torch.tensor(children, dtype=torch.int64).view(-1, 2))


def _word(label: int, path: str | Sequence[int]) -> str:
    if not isinstance(path, Sequence):
        raise TypeError(f"paths: expected strings or sequences of 0 and 1, got {shown(path)} for class {label}")
    turns = ("0", "1") if isinstance(path, str) else (0, 1)
    for turn in path:
        if turn not in turns:
            raise ValueError(f"paths: expected turns 0 and 1, got {shown(turn)} in the path of class {label}")
    return path if isinstance(path, str) else "".join(str(int(turn)) for turn in path)


def _check_complete_code(words: list[str]) -> None:
    """Raise unless the words, in alphabetical order, are the paths to the leaves of a tree from left to right.

    To the right of a leaf is the leftmost one below the last node on its path where it turned left: its word up
    to there, then 1, then zeros only.
    """
    order = sorted(range(len(words)), key=words.__getitem__)
    branch: str | None = ""  # where the next word must go on from, by zeros
    last = order[0]
    for label in order:
        word = words[label]
        if label != order[0] and word.startswith(words[last]):
            raise ValueError(
                f"paths: expected no path at the beginning of another, got {shown(words[last])} for class {last} "
                f"and {shown(word)} for class {label}"
            )
        if branch is not None and not word.startswith(branch):
            raise _missing(branch, last)
        right = word.find("1", len(branch or ""))
        if right >= 0:
            raise _missing(word[:right] + "0", label)
        left = word.rfind("0")
        branch = word[:left] + "1" if left >= 0 else None
        last = label
    if branch is not None:
        raise _missing(branch, last)


def _missing(branch: str, label: int) -> ValueError:
    return ValueError(
        f"paths: expected a path that begins with {shown(branch)}, because that of class {label} turns the other "
        f"way after {shown(branch[:-1])}; got none"
    )
