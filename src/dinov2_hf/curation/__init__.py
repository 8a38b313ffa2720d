"""From a pile of images to a training set: filter, hash, embed, deduplicate, retrieve or balance, assemble."""

from .run import curate

__all__ = ["curate"]
