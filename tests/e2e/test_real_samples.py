"""The real COCO samples: loaded, drawn, and written in the COCO format without loss."""

import json

import numpy as np
import pytest

from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets import convert_to_coco_json, register_coco_instances
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES, _get_builtin_metadata
from detectron2.data.datasets.coco_panoptic import load_coco_panoptic_json
from detectron2.data.detection_utils import create_keypoint_hflip_indices, read_image
from detectron2.structures import BitMasks, PolygonMasks
from detectron2.utils.visualizer import Visualizer


@pytest.fixture
def register():
    """Return a function that registers a file, with the metadata of a family, until the test ends."""
    names = []

    def call(json_file, images, family=None):
        name = f"test_real_sample_{len(names)}"
        register_coco_instances(name, {}, str(json_file), str(images))
        names.append(name)
        for key, value in (_get_builtin_metadata(family) if family else {}).items():
            if key.startswith("keypoint"):
                MetadataCatalog.get(name).set(**{key: value})
        return name

    yield call
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def samples(shared_dir):
    """Annotation file, folder of images and metadata of each sample."""
    panoptic = shared_dir / "data" / "coco_panoptic_sample" / "sample_data"
    keypoints = shared_dir / "data" / "coco_keypoints_sample"
    return {
        "keypoints": (keypoints / "test_coco.json", keypoints, "coco_person"),
        "detection": (panoptic / "panoptic_coco_detection_format.json", panoptic / "input_images"),
    }


def draw(record, metadata):
    image = read_image(record["file_name"], "RGB")
    drawn = Visualizer(image, metadata).draw_dataset_dict(record).get_image()
    assert drawn.shape == image.shape
    changed = (drawn.astype(int) - image).any(axis=2).mean()
    assert changed > 0.02  # labels and outlines at least
    return drawn


@pytest.mark.parametrize("sample", ["keypoints", "detection"])
def test_round_trip(samples, register, sample, tmp_path):
    json_file, images, *_ = samples[sample]
    first = register(*samples[sample])
    records = DatasetCatalog.get(first)
    raw = json.loads(json_file.read_text())
    counts = {i["id"]: sum(a["image_id"] == i["id"] for a in raw["annotations"]) for i in raw["images"]}
    assert {r["image_id"]: len(r["annotations"]) for r in records} == counts
    assert sum(counts.values()) == len(raw["annotations"]) > 10

    convert_to_coco_json(first, str(tmp_path / "out.json"), allow_cached=False)
    second = register(tmp_path / "out.json", images)
    again = DatasetCatalog.get(second)
    assert MetadataCatalog.get(second).thing_classes == MetadataCatalog.get(first).thing_classes
    for old, new in zip(records, again, strict=True):
        for a, b in zip(old["annotations"], new["annotations"], strict=True):
            assert a.pop("bbox") == pytest.approx(b.pop("bbox"), abs=1e-3)
        assert new == old
    written = {
        (a["image_id"], tuple(a["bbox"])): a for a in json.loads((tmp_path / "out.json").read_text())["annotations"]
    }
    for a in raw["annotations"]:
        b = written[a["image_id"], tuple(round(float(v), 3) for v in a["bbox"])]
        assert a["category_id"] == b["category_id"] and a.get("num_keypoints") == b.get("num_keypoints")
        assert b["area"] == pytest.approx(a["area"], rel=0.02, abs=2)


@pytest.mark.parametrize("sample", ["keypoints", "detection"])
def test_drawing_and_mapping(samples, register, sample):
    name = register(*samples[sample])
    is_keypoints = sample == "keypoints"
    records = DatasetCatalog.get(name)
    mapper = DatasetMapper(
        True,
        augmentations=[T.ResizeShortestEdge(100, 200), T.RandomFlip(1.0)],
        image_format="RGB",
        use_instance_mask=True,
        use_keypoint=is_keypoints,
        keypoint_hflip_indices=create_keypoint_hflip_indices(name) if is_keypoints else None,
    )
    for record in records:
        draw(record, MetadataCatalog.get(name))
        instances = mapper(record)["instances"]
        # Polygons in one sample, run lengths in the other: both are trained on with the default mask format.
        assert isinstance(instances.gt_masks, PolygonMasks if is_keypoints else BitMasks)
        assert instances.has("gt_keypoints") == is_keypoints
        boxes, masks = instances.gt_boxes.tensor, instances.gt_masks.get_bounding_boxes().tensor
        # They went the same way, though thin ends of a bitmap may get lost in small images.
        assert len(boxes) > 0 and (boxes - masks).abs().median() < 1 and (boxes - masks).abs().max() < 8


def test_panoptic(shared_dir):
    root = shared_dir / "data" / "coco_panoptic_sample" / "sample_data"
    meta = _get_builtin_metadata("coco_panoptic_standard")
    metadata = MetadataCatalog.get("test_real_panoptic").set(**meta, label_divisor=1000, ignore_label=255)
    try:
        records = load_coco_panoptic_json(
            root / "panoptic_examples.json", root / "input_images", root / "panoptic_examples", meta
        )
        for record in records:
            drawn = draw(record, metadata)
            channels = read_image(record["pan_seg_file_name"], "RGB").astype(np.int64)
            segments = channels @ (1, 256, 65536)
            areas = {s["id"]: s["area"] for s in record["segments_info"]}
            ids, counts = np.unique(segments[segments != 0], return_counts=True)
            assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == areas
            # A large stuff region takes on its colour.
            stuff = max((s for s in record["segments_info"] if not s["isthing"]), key=lambda s: s["area"])
            color = next(
                c["color"] for c in COCO_CATEGORIES if c["name"] == meta["stuff_classes"][stuff["category_id"]]
            )
            before = read_image(record["file_name"], "RGB")[segments == stuff["id"]].mean(axis=0)
            after = drawn[segments == stuff["id"]].mean(axis=0)
            assert np.abs(after - color).sum() < np.abs(before - color).sum()
    finally:
        MetadataCatalog.remove("test_real_panoptic")
