"""For every LVIS v1 category, in how many training images it occurs (used by the federated loss)."""

from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

__all__ = ["LVIS_CATEGORY_IMAGE_COUNT"]

LVIS_CATEGORY_IMAGE_COUNT = [{"id": c["id"], "image_count": c["image_count"]} for c in LVIS_CATEGORIES]
