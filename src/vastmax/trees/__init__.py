"""Class hierarchies: binary trees whose leaves are the classes, built from counts, vectors or codes."""

from vastmax.trees.clustering import clustered
from vastmax.trees.codes import from_paths
from vastmax.trees.halving import balanced
from vastmax.trees.merging import huffman
from vastmax.trees.search import Search
from vastmax.trees.tree import LeafOrder, Paths, Tree

__all__ = ["LeafOrder", "Paths", "Search", "Tree", "balanced", "clustered", "from_paths", "huffman"]
