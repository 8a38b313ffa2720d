"""What patch features see, as pictures: principal components, attention, matches, neighbours, similarity, overlays."""

from .attention import attention_maps, draw_attention
from .attention_masks import attention_masks, color_heads, draw_attention_masks, head_colors
from .matching import Matches, draw_matches, match_patches, mutual_neighbours
from .neighbours import Neighbours, draw_neighbours, find_neighbours
from .overlays import depth_overlay, draw_depths, draw_labels, label_overlay, read_map
from .pca import draw_pca, find_foreground, pca_colors, plot_patch_pca, principal_colors
from .pictures import PATCHES_A_SIDE, Picture, open_picture, patch_features
from .similarity import best_patch, draw_similarity, patch_at, similarity_maps
from .sources import open_collection, open_pictures, read_images
from .video import Frames, animate_attention, open_frames

__all__ = [
    "PATCHES_A_SIDE",
    "Frames",
    "Matches",
    "Neighbours",
    "Picture",
    "animate_attention",
    "attention_maps",
    "attention_masks",
    "best_patch",
    "color_heads",
    "depth_overlay",
    "draw_attention",
    "draw_attention_masks",
    "draw_depths",
    "draw_labels",
    "draw_matches",
    "draw_neighbours",
    "draw_pca",
    "draw_similarity",
    "find_foreground",
    "find_neighbours",
    "head_colors",
    "label_overlay",
    "match_patches",
    "mutual_neighbours",
    "open_collection",
    "open_frames",
    "open_picture",
    "open_pictures",
    "patch_at",
    "patch_features",
    "pca_colors",
    "plot_patch_pca",
    "principal_colors",
    "read_images",
    "read_map",
    "similarity_maps",
]
