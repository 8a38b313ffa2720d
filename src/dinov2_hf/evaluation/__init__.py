"""What frozen features can do, as numbers and as pictures."""

from .knn import KnnEvaluator, weighted_knn
from .pca import plot_patch_pca, principal_colors

__all__ = ["KnnEvaluator", "plot_patch_pca", "principal_colors", "weighted_knn"]
