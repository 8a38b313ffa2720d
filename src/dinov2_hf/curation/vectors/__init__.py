"""Vector work of curation: indexes, duplicates, retrieval, clusters and balanced samples of embeddings."""

from .cluster import Hierarchy, assign, hierarchical_kmeans, kmeans
from .dedup import components, neighbour_pairs, relative_dedup, self_dedup
from .index import build_index, load_index, save_index, search
from .retrieve import retrieve_clusters, retrieve_nearest
from .rows import VectorShards
from .sampling import balanced_sample, waterfill

__all__ = [
    "Hierarchy",
    "VectorShards",
    "assign",
    "balanced_sample",
    "build_index",
    "components",
    "hierarchical_kmeans",
    "kmeans",
    "load_index",
    "neighbour_pairs",
    "relative_dedup",
    "retrieve_clusters",
    "retrieve_nearest",
    "save_index",
    "search",
    "self_dedup",
    "waterfill",
]
