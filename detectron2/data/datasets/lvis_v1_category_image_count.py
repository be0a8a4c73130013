"""For each LVIS v1 category, the number of training images that contain it (used by the federated loss)."""

from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

__all__ = ["LVIS_CATEGORY_IMAGE_COUNT"]

LVIS_CATEGORY_IMAGE_COUNT = [{"id": c["id"], "image_count": c["image_count"]} for c in LVIS_CATEGORIES]
"""For each category of LVIS v1, its id and the number of training images that show it."""
