"""Trees of every shape, for tests to check what is true of all."""

import random

import torch

from vastmax import trees


def random_paths(num_classes, seed):
    """A complete prefix code, grown by dividing a random leaf at a time; the more often the first, the deeper."""
    draw = random.Random(seed)
    paths = [""]
    while len(paths) < num_classes:
        word = paths.pop(0 if draw.random() < 0.3 else draw.randrange(len(paths)))
        paths[:0] = [word + "0", word + "1"]
    draw.shuffle(paths)
    return paths


def chain(num_classes):
    """The deepest tree: a class leaves at every node."""
    return trees.from_paths(["1" * c + "0" for c in range(num_classes - 1)] + ["1" * (num_classes - 1)])


TREES = {
    "huffman": trees.huffman([1, 0, 7, 7, 2, 0, 30, 1, 1]),
    "huffman, equal counts": trees.huffman([3] * 11),
    "balanced": trees.balanced(13),
    "clustered": trees.clustered(torch.randn(10, 3, generator=torch.Generator().manual_seed(0))),
    "one class": trees.from_paths([""]),
    "two classes": trees.from_paths(["1", "0"]),
    "chain": chain(9),
    **{f"random {seed}": trees.from_paths(random_paths(seed + 2, seed)) for seed in range(0, 20, 3)},
}
