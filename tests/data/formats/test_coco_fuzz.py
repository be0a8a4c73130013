"""Annotation files with mistakes at random places: a clear error, or data that a model can be trained on."""

import copy
import json
import re
import warnings
from xml.sax.saxutils import escape

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets import convert_to_coco_dict, load_coco_json, load_voc_instances
from detectron2.data.datasets.coco_panoptic import load_coco_panoptic_json
from detectron2.data.formats.reading import AnnotationFileError
from detectron2.data.validation import DatasetError, validate_dataset_dicts

HEIGHT, WIDTH = 8, 10
NAME = "test_coco_fuzz"
FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))

IMAGES = [
    {"id": 2, "file_name": "a.png", "height": HEIGHT, "width": WIDTH, "license": 1},
    {"id": 1, "file_name": "b.png", "height": HEIGHT, "width": WIDTH, "license": 1},
    {"id": 9, "file_name": "c.png", "height": HEIGHT, "width": WIDTH},
]
VALID = {
    "info": {"year": 2020},
    "licenses": [{"id": 1, "name": "none"}],
    "categories": [{"id": 3, "name": "cat", "supercategory": "animal"}, {"id": 1, "name": "dog"}],
    "images": IMAGES,
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 3,
            "iscrowd": 0,
            "area": 10.5,
            "bbox": [1, 2, 3.5, 4],
            "segmentation": [[1, 2, 4.5, 2, 4.5, 6], [0, 0, 0, 1, 1, 1]],
            "keypoints": [1, 1, 2, 0, 0, 0],
            "num_keypoints": 1,
        },
        {
            "id": 2,
            "image_id": 1,
            "category_id": 1,
            "iscrowd": 1,
            "bbox": [0, 0, 10, 8],
            "segmentation": {"size": [HEIGHT, WIDTH], "counts": [10, 20, 50]},
        },
        {
            "id": 3,
            "image_id": 2,
            "category_id": 1,
            "bbox": [0, 0, 10, 8],
            "segmentation": {"size": [HEIGHT, WIDTH], "counts": ":d0b1"},
        },
        {"id": 4, "image_id": 2, "category_id": 1, "bbox": [5, 4, 3, 2, 30]},
    ],
}
PANOPTIC = {
    "images": IMAGES,
    "annotations": [
        {
            "image_id": 1,
            "file_name": "a.png",
            "segments_info": [
                {"id": 5, "category_id": 3, "iscrowd": 0, "bbox": [0, 0, 1, 1], "area": 1},
                {"id": 6, "category_id": 8},
            ],
        },
        {"image_id": "2", "file_name": "b.png", "segments_info": []},
    ],
}
META = {"thing_dataset_id_to_contiguous_id": {3: 0}, "stuff_dataset_id_to_contiguous_id": {8: 1}}
VOC = """<annotation><folder>x</folder><filename>a.jpg</filename>
<size><width>10</width><height>8</height><depth>3</depth></size>
<object><name>cat</name><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>5</xmax><ymax>6.5</ymax></bndbox></object>
</annotation>"""

SMALL = [0, -1, 1, 3, 0.5, 1.0, -7.25]
LARGE = [1e7, 1e20, -1e300, 1e308, 2**31, 2**63, 10**30, 10**400, float("nan"), float("inf"), -float("inf")]
TEXTS = ["", "0", "1", "x", "a.png", "ä\0\ud800", "..\\a.png", "~~"]
SCALARS = st.sampled_from([*SMALL, *LARGE, *TEXTS, None, True, False])
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=7)
        | st.dictionaries(st.sampled_from(["id", "size", "counts", "bbox", "image_id", "images"]), inner, max_size=4)
    ),
    max_leaves=8,
)


def places(value, path=()):
    """Every place in a JSON value but the outermost."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


@st.composite
def mutated(draw, valid):
    """A JSON value with some places replaced, removed, repeated, or exchanged for other parts of it."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        everywhere = list(places(value))
        if not everywhere:
            break
        *folder, key = draw(st.sampled_from(everywhere))
        holder = value
        for step in folder:
            holder = holder[step]
        action = draw(st.sampled_from(["replace", "replace", "remove", "repeat", "move"]))
        if action == "remove":
            del holder[key]
        elif action == "repeat" and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif action == "move":
            source = value
            for step in draw(st.sampled_from(everywhere)):
                source = source[step]
            holder[key] = copy.deepcopy(source)
        else:
            holder[key] = draw(JSON)
    return value


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    for name in "abc":
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 50, np.uint8)).save(folder / f"{name}.png")
    return folder


def forget():
    for catalog in (DatasetCatalog, MetadataCatalog):
        if NAME in catalog:
            catalog.remove(NAME)


def load(loader, *arguments):
    """Call a loader; None if it refused the file as it should."""
    try:
        return loader(*arguments)
    except AnnotationFileError as e:
        assert str(e).startswith(e.file) and len(e.what) > 10 and len(str(e)) < 2000
        return None


def check_training(records):
    """Every record can be mapped, or is refused with a reason; what the mapper returns is sound."""
    for crowded in (False, True):
        for masks in ("polygon", "bitmask"):
            mapper = DatasetMapper(
                True,
                augmentations=[T.RandomFlip(prob=1.0), T.ResizeShortestEdge(16, 40)],
                image_format="BGR",
                use_instance_mask=not crowded,
                instance_mask_format=masks,
                use_rotated_boxes=crowded,
            )
            for record in records:
                try:
                    result = mapper(record)
                except FileNotFoundError as e:
                    assert "image file not found" in str(e)
                except (ValueError, KeyError, OSError) as e:
                    assert record["file_name"] in str(e) or re.search("annotation.*has no", str(e))
                else:
                    check_instances(result["instances"])


def check_instances(instances):
    boxes, classes = instances.gt_boxes.tensor, instances.gt_classes
    assert torch.isfinite(boxes).all() and classes.dtype == torch.int64 and len(boxes) == len(classes)
    if boxes.shape[1] == 4 and len(boxes):
        height, width = instances.image_size
        assert boxes.min() >= 0 and boxes[:, 2].max() <= width and boxes[:, 3].max() <= height
    if instances.has("gt_masks") and len(boxes):
        cells = instances.gt_masks.crop_and_resize(instances.gt_boxes.tensor, 7)
        assert cells.shape == (len(boxes), 7, 7) and cells.dtype == torch.bool


def check_coco(folder, content):
    file = folder / "annotations.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    for name in (None, NAME):
        forget()
        with warnings.catch_warnings():
            warnings.filterwarnings("error", module="detectron2")
            records = load(load_coco_json, file, folder, name)
            if records is None:
                continue
            for options in ({}, {"num_classes": 2, "mask_format": "bitmask", "num_keypoints": 2}):
                try:
                    validate_dataset_dicts(records, name=NAME, **options)
                except DatasetError as e:
                    assert NAME in str(e)
            check_training(records)
            if name is not None:
                check_conversion(records)


def check_conversion(records):
    DatasetCatalog.register(NAME, lambda: records)
    try:
        converted = convert_to_coco_dict(NAME)
    except ValueError as e:
        assert f"Dataset '{NAME}': annotation" in str(e)
    else:
        json.dumps(converted, allow_nan=False)
        assert len(converted["images"]) == len(records)


def test_the_valid_files_are_valid(folder):
    """Otherwise the tests below would test nothing."""
    (folder / "annotations.json").write_text(json.dumps(VALID))
    forget()
    records = load_coco_json(folder / "annotations.json", folder, NAME)
    assert [len(r["annotations"]) for r in records] == [2, 2, 0]
    assert validate_dataset_dicts(records, name=NAME, num_classes=2) == records
    check_coco(folder, VALID)
    (folder / "annotations.json").write_text(json.dumps(PANOPTIC))
    assert len(load_coco_panoptic_json(folder / "annotations.json", "i", "p", META)) == 2
    forget()


def with_change(key, value):
    content = copy.deepcopy(VALID)
    content["annotations"][0][key] = value
    return content


@FUZZ
@given(content=mutated(VALID))
@example(content=with_change("bbox", [0] + [10**400] * 5))
@example(content=with_change("segmentation", {"size": [10**900] * 4, "counts": [1]}))
@example(content=with_change("segmentation", {"size": [HEIGHT, WIDTH], "counts": [10**3000]}))
def test_coco(folder, content):
    check_coco(folder, content)


@FUZZ
@given(content=JSON | st.fixed_dictionaries({"images": JSON}, optional={"annotations": JSON, "categories": JSON}))
@example(content=[])
@example(content={})
@example(content={"images": []})
def test_coco_of_random_values(folder, content):
    check_coco(folder, content)


@FUZZ
@given(text=st.binary(max_size=40), keep=st.integers(0, 700), at_end=st.booleans())
@example(text=b"", keep=0, at_end=True)
def test_coco_of_broken_text(folder, text, keep, at_end):
    valid = json.dumps(VALID).encode()
    file = folder / "annotations.json"
    file.write_bytes(valid[:keep] + text + (b"" if at_end else valid[keep:]))
    load(load_coco_json, file, folder)


@FUZZ
@given(content=mutated(PANOPTIC) | JSON)
def test_panoptic(folder, content):
    file = folder / "panoptic.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    for record in load(load_coco_panoptic_json, file, "i", "p", META) or ():
        assert isinstance(record["image_id"], (int, str)) and record["file_name"].startswith(("i/", "/"))
        for segment in record["segments_info"]:
            assert segment["category_id"] in (0, 1) and 0 <= segment["id"] < 256**3


VALUES = ["", " ", "nan", "-inf", "1e400", "-5", "0", "1_0", "ä", "cat", "1e20", "0.5", "5 6", "&amp;", "<x/>", "\0"]


@FUZZ
@given(data=st.data())
def test_voc(folder, data):
    for name in ("Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets/Main/fuzz.txt").write_text("a\n")
    text = VOC
    for _ in range(data.draw(st.integers(1, 3))):
        action = data.draw(st.sampled_from(["value", "cut", "insert", "tag"]))
        begin = data.draw(st.integers(0, len(text)))
        if action == "value":
            leaves = list(re.finditer(r">([^<>]*)</", text))
            if leaves:
                leaf = data.draw(st.sampled_from(leaves))
                text = text[: leaf.start(1)] + data.draw(st.sampled_from(VALUES)) + text[leaf.end(1) :]
        elif action == "cut":
            text = text[:begin] + text[begin + data.draw(st.integers(1, 60)) :]
        elif action == "insert":
            text = text[:begin] + escape(data.draw(st.text(max_size=5))) + text[begin:]
        else:
            tag = data.draw(st.sampled_from(["name", "bndbox", "xmin", "object", "size", "width", "annotation"]))
            text = text.replace(tag, data.draw(st.sampled_from(["x", "", "size", "a b"])))
    (folder / "Annotations/a.xml").write_text(text, encoding="utf-8", errors="surrogatepass")
    for record in load(load_voc_instances, folder, "fuzz", ["cat"]) or ():
        assert record["height"] > 0 and record["width"] > 0
        for annotation in record["annotations"]:
            assert annotation["category_id"] == 0 and np.isfinite(annotation["bbox"]).all()


@pytest.mark.parametrize("encoding", ["utf-16", "shift_jis", "utf-7", "no-such-encoding"])
def test_voc_of_strange_encodings(folder, encoding):
    for name in ("Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets/Main/one.txt").write_text("a")
    (folder / "Annotations/a.xml").write_text(f'<?xml version="1.0" encoding="{encoding}"?>' + VOC)
    assert load(load_voc_instances, folder, "one", ["cat"]) is None
