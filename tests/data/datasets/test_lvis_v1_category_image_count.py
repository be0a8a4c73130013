"""The numbers of images that the federated loss reads."""

from detectron2.data.datasets.lvis_v1_category_image_count import LVIS_CATEGORY_IMAGE_COUNT


def test_rows():
    assert [row["id"] for row in LVIS_CATEGORY_IMAGE_COUNT] == list(range(1, 1204))
    assert LVIS_CATEGORY_IMAGE_COUNT[0] == {"id": 1, "image_count": 64}
    assert min(row["image_count"] for row in LVIS_CATEGORY_IMAGE_COUNT) >= 1
