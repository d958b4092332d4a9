"""Images in memory: loading by name or folder, forget splits, batches by indexing."""

from salun_fast.data.batches import Batches
from salun_fast.data.images import ImageData, ImageSet, as_image_set
from salun_fast.data.sources import DATASETS, load_images
from salun_fast.data.split import forget_split

__all__ = [
    "DATASETS",
    "Batches",
    "ImageData",
    "ImageSet",
    "as_image_set",
    "forget_split",
    "load_images",
]
