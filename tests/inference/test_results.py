import io
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from detectron2.data import Metadata
from detectron2.evaluation import analyze_detections
from detectron2.evaluation.panoptic_evaluation import rgb_to_id_map
from detectron2.inference.results import ROW_KEYS, SCHEMA, Result, object_rows, panoptic_categories
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.structures import BitMasks, Boxes, Instances, ROIMasks, RotatedBoxes

SIZE = (40, 60)
NAMES = Metadata(thing_classes=["person", "dog"], stuff_classes=["sky", "grass"])


def frame(**changes):
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    known = {"image": image, "name": "a.jpg", "path": None, "index": 3, "time": None, "error": None, "source": None}
    return SimpleNamespace(**{**known, **changes})


def result(outputs, metadata=NAMES, image_format="RGB", **changes):
    return Result(outputs, frame=frame(**changes), image_format=image_format, metadata=metadata, seconds=0.25)


def instances(classes=(1, 0, 1), scores=(0.875, 0.5, 0.25), **fields):
    count = len(classes)
    boxes = torch.tensor([[1.1, 2.2, 30.3, 20.4]]).repeat(count, 1) + torch.arange(count)[:, None]
    found = Instances(SIZE, pred_boxes=Boxes(boxes), scores=torch.tensor(scores))
    found.pred_classes = torch.tensor(classes, dtype=torch.int64)
    for name, value in fields.items():
        found.set(name, value)
    return found


def two_masks():
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[0, 5:15, 10:20] = True
    masks[0, 8:10, 12:14] = False  # a hole
    return masks


def panoptic():
    ids = torch.zeros(SIZE, dtype=torch.int32)
    ids[:10], ids[20:30, 5:25] = 2, 7
    grass, dog = {"id": 2, "category_id": 1, "isthing": False}, {"id": 7, "category_id": 1, "isthing": True}
    return ids, [grass, {**dog, "score": 0.75}]


def test_no_objects():
    for found in (Instances(SIZE), instances((), ())):
        empty = result({"instances": found})
        assert repr(empty) == "no objects in a.jpg (40 x 60)"
        assert (len(empty), empty.names, empty.to_coco(1), empty.to_dict()["objects"]) == (0, [], [], [])
        assert object_rows(empty.to_dict()) == []
        assert len(empty.filter(score=0.5, classes=["dog"])) == 0
        np.testing.assert_array_equal(empty.plot(), empty.frame.image)
        assert empty and json.loads(empty.to_json())["height"] == 40


def test_no_segments_and_no_classes():
    empty = result({"panoptic_seg": (torch.zeros(SIZE, dtype=torch.int64), [])}, metadata=None)
    assert repr(empty) == "no segments in a.jpg (40 x 60)" and empty.to_dict()["segments"] == []
    record, png = empty.to_coco_panoptic(5)
    assert record == {"image_id": 5, "file_name": "a.png", "segments_info": []}
    assert not np.asarray(Image.open(io.BytesIO(png))).any()
    void = result({"sem_seg": torch.full(SIZE, -1)})
    assert (len(void), void.to_coco_sem_seg(), void.to_dict()["pixel_classes"]) == (0, [], [])
    np.testing.assert_array_equal(void.plot(), void.frame.image)


def test_an_image_that_cannot_be_read():
    bad = result({}, image=None, error=OSError("it is truncated"))
    assert repr(bad) == "a.jpg cannot be read: it is truncated"
    assert bad.to_dict()["error"] == "it is truncated" and bad.to_dict()["objects"] is None
    assert (len(bad), bad.names, bad.to_coco(1), bad._repr_png_(), bad.size_hw) == (0, [], [], None, None)
    assert object_rows(bad.to_dict()) == [] and len(bad.filter(score=0.5)) == 0
    with pytest.raises(ValueError, match=r"a.jpg cannot be read, so there is no image: it is truncated"):
        bad.plot()


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="this one returns proposals"):
        result({"proposals": Instances(SIZE)})


def test_what_it_says_of_itself():
    assert repr(result({"instances": instances()})) == "3 objects in a.jpg (40 x 60): 2 dog, 1 person"
    one = result({"instances": instances((9,), (0.5,))})
    assert repr(one) == "1 object in a.jpg (40 x 60): 1 9" and one.names == ["9"]  # a class without a name
    assert repr(result({"panoptic_seg": panoptic()})) == "2 segments in a.jpg (40 x 60): 1 grass, 1 dog"
    scores = torch.zeros(2, *SIZE)
    scores[1, 0] = 1
    assert repr(result({"sem_seg": scores})) == "2 classes of pixels in a.jpg (40 x 60): sky, grass"
    many = result({"instances": instances(tuple(range(12)), (0.5,) * 12)}, metadata=None)
    assert repr(many).endswith("1 6, 1 7, …")
    assert (many.seconds, many.index, many.path, many.time) == (0.25, 3, None, None)


def test_filter():
    whole = result(
        {"instances": instances(), "panoptic_seg": panoptic(), "sem_seg": torch.eye(2)[:, :, None].repeat(1, 20, 60)}
    )
    assert len(whole) == 3
    assert whole.filter(score=0.5).instances.scores.tolist() == [0.875, 0.5]
    assert whole.filter(classes=["dog"]).instances.scores.tolist() == [0.875, 0.25]
    assert whole.filter(classes=[0]).names == whole.filter(classes="person").names == ["person"]
    assert whole.filter(score=0.6, classes=["person"]).names == []
    part = whole.filter(classes=["dog", "sky"])
    ids, segments = part.panoptic_seg
    assert [s["id"] for s in segments] == [7] and set(ids.unique().tolist()) == {0, 7} and int((ids == 7).sum()) == 200
    assert part.label_map[:2, 0].tolist() == [0, -1]
    assert [s["id"] for s in whole.filter(score=0.8).panoptic_seg[1]] == [2]  # stuff has no score
    assert len(whole) == 3 and whole.panoptic_seg[1][1]["id"] == 7  # the whole is as it was
    with pytest.raises(ValueError, match="no class 'cat'; it has person, dog, sky, grass"):
        whole.filter(classes=["cat"])


def test_filtered_and_tracked_objects_have_their_own_masks():
    found = result({"instances": instances((0, 1), (0.9, 0.8), pred_masks=two_masks())})
    assert [mask_util.area(rle) for rle in found.masks_rle] == [96, 0]
    found.instances = found.instances[[1]]
    assert [mask_util.area(rle) for rle in found.masks_rle] == [0]


def test_coco_records_are_loaded_by_pycocotools_and_analyzed():
    masks = two_masks()
    masks[1, 30:35, 40:50] = True
    found = result({"instances": instances((0, 1), (0.9, 0.8), pred_masks=masks)}, path="x/a.jpg")
    records = found.to_coco(image_id=7, category_ids={"person": 1, "dog": 18})
    assert [(r["image_id"], r["category_id"], r["category_name"]) for r in records] == [
        (7, 1, "person"),
        (7, 18, "dog"),
    ]
    assert {k: records[0][k] for k in ("file_name", "height", "width")} == {
        "file_name": "x/a.jpg",
        "height": 40,
        "width": 60,
    }
    corners = found.instances.pred_boxes.tensor.numpy()
    np.testing.assert_array_equal(
        np.array([r["bbox"] for r in records], np.float32), np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]])
    )
    assert records[1]["score"] == float(np.float32(0.8))  # not rounded
    json.dumps(records, allow_nan=False)
    truth = COCO()
    objects = [{**r, "id": i, "area": 96, "iscrowd": 0} for i, r in enumerate(records, 1)]
    truth.dataset = {
        "images": [{"id": 7, "height": 40, "width": 60}],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
        "annotations": objects,
    }
    truth.createIndex()
    loaded = truth.loadRes(records)
    for annotation, mask in zip(loaded.loadAnns([1, 2]), masks.numpy(), strict=True):
        np.testing.assert_array_equal(loaded.annToMask(annotation), mask)
    assert analyze_detections(truth.dataset, records, "bbox").metrics["AP"] == pytest.approx(1)


def test_category_ids():
    found = result({"instances": instances()})
    assert [r["category_id"] for r in found.to_coco(1)] == [1, 0, 1]  # the order of the model's classes
    assert [r["category_id"] for r in found.to_coco(1, {0: 5, 1: 6})] == [6, 5, 6]
    with pytest.raises(ValueError, match="no id for the class 'dog'"):
        found.to_coco(1, {"person": 1})
    with pytest.raises(ValueError, match="gives no objects"):
        result({"panoptic_seg": panoptic()}).to_coco(1)


def test_numbers_that_are_not_finite():
    found = instances((0, 1), (math.nan, 0.5))
    found.pred_boxes.tensor[1, 0] = math.inf
    odd = result({"instances": found})
    assert odd.to_coco(1) == []
    objects = json.loads(odd.to_json())["objects"]
    assert objects[0]["score"] is None and objects[1]["box_xyxy"][0] is None
    assert object_rows(odd.to_dict())[1]["width"] is None


@pytest.mark.parametrize("form", ["full", "bits", "rle", "rle as bytes", "rle as numbers", "roi"])
def test_masks_in_each_form_are_the_same_run_lengths(form):
    masks = two_masks()
    encoded = [mask_util.encode(np.asfortranarray(m.numpy().astype(np.uint8))) for m in masks]
    expected = masks.numpy()
    fields = {"pred_masks": masks}
    if form == "bits":
        fields = {"pred_masks": BitMasks(masks)}
    elif form == "rle as bytes":
        fields = {"pred_masks_rle": encoded}
    elif form == "rle":
        fields = {"pred_masks_rle": [{**rle, "counts": rle["counts"].decode()} for rle in encoded]}
    elif form == "rle as numbers":
        counts = [_runs(m.numpy()) for m in masks]
        fields = {"pred_masks_rle": [{"size": list(SIZE), "counts": c} for c in counts]}
    found = instances((0, 1), (0.9, 0.8), **fields)
    if form == "roi":
        soft = torch.rand(2, 28, 28, generator=torch.Generator().manual_seed(0))
        found.pred_masks = ROIMasks(soft)
        expected = paste_masks_in_image(soft, found.pred_boxes, SIZE, threshold=0.5).numpy()
    entries = result({"instances": found}).to_dict()["objects"]
    for entry, mask in zip(entries, expected, strict=True):
        assert isinstance(entry["mask"]["counts"], str) and entry["area"] == mask.sum()
        np.testing.assert_array_equal(mask_util.decode(entry["mask"]), mask)


def _runs(mask):
    flat = mask.T.reshape(-1).astype(int)
    edges = np.flatnonzero(np.diff(flat, prepend=0))
    return np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()


def test_dictionary_has_all_that_is_known():
    points = torch.tensor([[[3.5, 4.5, 0.75], [5.0, 6.0, 0.25]]])
    found = instances((1,), (0.875,), pred_masks=two_masks()[:1], pred_keypoints=points, ID=[12])
    content = json.loads(result({"instances": found}, path="x/a.jpg", time=1.5).to_json(masks="polygons"))
    outline = content["objects"][0].pop("mask")
    box = found.pred_boxes.tensor[0].tolist()
    assert content == {
        "schema": SCHEMA,
        "file": "x/a.jpg",
        "index": 3,
        "time": 1.5,
        "seconds": 0.25,
        "height": 40,
        "width": 60,
        "error": None,
        "objects": [
            {
                "class_id": 1,
                "class": "dog",
                "score": 0.875,
                "box_xyxy": box,
                "track_id": 12,
                "area": 96,
                "keypoints": [[3.5, 4.5, 0.75], [5.0, 6.0, 0.25]],
            }
        ],
        "segments": None,
        "pixel_classes": None,
    }
    corners = np.array(outline[0]).reshape(-1, 2)  # of the outline, without the hole
    assert len(outline) == 1 and corners.min(0).tolist() == [10, 5] and corners.max(0).tolist() == [20, 15]
    assert "mask" not in result({"instances": found}).to_dict(masks=None)["objects"][0]
    with pytest.raises(ValueError, match=r'"rle", "polygons" or None, got .png.'):
        result({"instances": found}).to_dict(masks="png")


def test_rotated_boxes():
    boxes = torch.tensor([[30.0, 20.0, 20.0, 10.0, 90.0], [30.0, 20.0, 10.0, 10.0, 45.0]])
    found = Instances(SIZE, pred_boxes=RotatedBoxes(boxes), scores=torch.tensor([0.5, 0.5]))
    found.pred_classes = torch.tensor([0, 1])
    turned = result({"instances": found})
    entries = turned.to_dict()["objects"]
    assert entries[0]["box_rotated"] == boxes[0].tolist()
    np.testing.assert_allclose(entries[0]["box_xyxy"], [25, 10, 35, 30], atol=1e-5)
    half = 5 * math.sqrt(2)
    np.testing.assert_allclose(entries[1]["box_xyxy"], [30 - half, 20 - half, 30 + half, 20 + half], atol=1e-5)
    assert [r["bbox"] for r in turned.to_coco(1)] == boxes.tolist()
    row = object_rows(turned.to_dict())[0]
    assert (row["width"], row["height"], row["angle"]) == (20, 10, 90)


def test_table_against_rows_written_by_hand():
    pandas = pytest.importorskip("pandas")
    found = instances((1, 0), (0.5, 0.25), pred_masks=two_masks(), ID=[4, 9])
    found.pred_boxes = Boxes([[1, 2, 11, 22], [0, 0, 4, 8]])
    table = result({"instances": found}, path="a.jpg", time=2.0).to_dataframe()
    rows = [
        ["a.jpg", 3, 2.0, 0, 1, "dog", 0.5, 1.0, 2.0, 11.0, 22.0, 10.0, 20.0, None, 96, 4],
        ["a.jpg", 3, 2.0, 1, 0, "person", 0.25, 0.0, 0.0, 4.0, 8.0, 4.0, 8.0, None, 0, 9],
    ]
    pandas.testing.assert_frame_equal(table, pandas.DataFrame(rows, columns=list(ROW_KEYS)))
    none = result({"instances": Instances(SIZE)}).to_dataframe()
    assert list(none.columns) == list(ROW_KEYS) and not len(none)
    segments = result({"panoptic_seg": panoptic()}).to_dataframe()
    assert segments[["class", "area", "x1", "y2"]].values.tolist() == [["grass", 600, 0, 10], ["dog", 200, 5, 30]]
    pixels = result({"sem_seg": torch.zeros(1, *SIZE)}).to_dataframe()
    assert pixels[["class", "area"]].values.tolist() == [["sky", 2400]]


def test_panoptic_segmentation():
    ids, segments = panoptic()
    ids[39, 59] = -1  # void, and a segment without a pixel
    whole = result({"panoptic_seg": (ids, [*segments, {"id": 9, "category_id": 0, "isthing": True}])})
    record, png = whole.to_coco_panoptic(4)
    assert record["segments_info"] == [
        {"id": 2, "category_id": 3, "isthing": 0, "area": 600, "bbox": [0, 0, 60, 10], "iscrowd": 0},
        {"id": 7, "category_id": 1, "isthing": 1, "area": 200, "bbox": [5, 20, 20, 10], "iscrowd": 0},
    ]
    np.testing.assert_array_equal(rgb_to_id_map(np.asarray(Image.open(io.BytesIO(png)))), ids.clamp(min=0))
    own = {"person": 1, "dog": 18, "sky": 187, "grass": 193}
    assert [s["category_id"] for s in whole.to_coco_panoptic(4, own)[0]["segments_info"]] == [193, 18]
    entry = whole.to_dict()["segments"][1]
    assert (entry["class"], entry["score"], entry["is_thing"], entry["area"]) == ("dog", 0.75, True, 200)
    np.testing.assert_array_equal(mask_util.decode(entry["mask"]), ids == 7)
    with pytest.raises(ValueError, match="no panoptic"):
        result({"instances": instances()}).to_coco_panoptic(1)


def test_panoptic_segmentation_without_segments():
    metadata = Metadata(
        thing_classes=["road", "car"], stuff_classes=["road", "car"], label_divisor=1000,
        thing_dataset_id_to_contiguous_id={26: 1},
    )  # fmt: skip
    ids = torch.full(SIZE, -1)
    ids[:10], ids[20:30, :10] = 0, 1002
    whole = result({"panoptic_seg": (ids, None)}, metadata=metadata)
    assert [(s["id"], s["class"], s["is_thing"], s["area"]) for s in whole.to_dict()["segments"]] == [
        (1, "road", False, 600),
        (1003, "car", True, 100),
    ]
    assert [s["category_id"] for s in whole.to_coco_panoptic(1)[0]["segments_info"]] == [0, 1]
    assert panoptic_categories(metadata)[1] == {"id": 1, "name": "car", "isthing": 1}
    with pytest.raises(ValueError, match="label_divisor"):
        result({"panoptic_seg": (ids, None)})


def test_semantic_segmentation():
    scores = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0))
    whole = result({"sem_seg": scores})
    labels = scores.numpy().argmax(0)
    np.testing.assert_array_equal(whole.label_map, labels)
    assert whole.names == ["sky", "grass", "2"]
    records = whole.to_coco_sem_seg({"sky": 10, "grass": 11, "2": 12})
    assert [r["category_id"] for r in records] == [10, 11, 12]
    for label, (record, entry) in enumerate(zip(records, whole.to_dict()["pixel_classes"], strict=True)):
        np.testing.assert_array_equal(mask_util.decode(record["segmentation"]), labels == label)
        assert entry["area"] == (labels == label).sum()
    with pytest.raises(ValueError, match="no semantic"):
        result({"instances": instances()}).to_coco_sem_seg()


@pytest.mark.parametrize(
    ("image", "format"),
    [
        (np.zeros((*SIZE, 3), np.uint8), "BGR"),
        (np.zeros((*SIZE, 1), np.uint8), "L"),
        (np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE), None),
        (np.zeros((*SIZE, 7), np.float32), None),
        (np.zeros((*SIZE, 1), np.uint8), "BGR"),
    ],
    ids=["BGR", "L", "16 bits", "7 channels", "grey"],
)
def test_images_of_any_kind_are_drawn_on(image, format):
    found = result({"instances": instances()}, image=image, image_format=format)
    assert found.plot(scale=2).shape == (80, 120, 3) and found.plot().dtype == np.uint8


def test_colours_are_not_swapped():
    image = np.zeros((*SIZE, 3), np.uint8)
    image[..., 0] = 200  # blue
    found = result({"instances": instances((), ())}, image=image, image_format="BGR")
    assert found.plot()[0, 0].tolist() == [0, 0, 200]


def test_an_image_that_was_not_kept_is_read_again(tmp_path):
    Image.fromarray(np.full((*SIZE, 3), 77, np.uint8)).save(tmp_path / "a.png")
    found = result({"instances": instances((), ())}, image=None, path=str(tmp_path / "a.png"))
    assert (found.plot() == 77).all() and found.size_hw == SIZE
    with pytest.raises(ValueError, match="was not kept"):
        result({"instances": instances()}, image=None).plot()


def test_saving(tmp_path):
    found = result({"instances": instances()})
    for suffix in ("png", "jpg", "svg", "pdf", "json"):
        found.save(tmp_path / "sub" / f"a.{suffix}")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "sub/a.png")), found.plot())
    assert json.loads((tmp_path / "sub/a.json").read_text()) == found.to_dict()
    assert Image.open(io.BytesIO(found._repr_png_())).size == (60, 40)
    found.save(tmp_path / "b.png", scale=2, color_by="class")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "b.png")), found.plot(scale=2, color_by="class"))
    with pytest.raises(ValueError, match="no suffix"):
        found.save(tmp_path / "c.txt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.png", "sub"]


def test_without_pandas_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        result({"instances": instances()}).to_dataframe()
