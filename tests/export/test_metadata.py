"""``model.json``: what it says of a model, and which ones are refused."""

import json

import pytest
import torch

from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, Metadata
from detectron2.data import transforms as T
from detectron2.export.graphs import GraphOptions, build_graph
from detectron2.export.metadata import LAYOUT, describe, preprocessing_of, read_description
from tests.export.conftest import MEAN, STD

FACTS = {"format": "onnx", "artifact": "model.onnx", "dynamic": (), "size": (32, 64), "precision": "fp32"}


def test_preprocessing(segmenter, mapper):
    found = preprocessing_of(segmenter, mapper)
    assert {k: found[k] for k in ("short_edge", "long_edge", "channels", "exif")} == {
        "short_edge": 48,
        "long_edge": 96,
        "channels": "RGB",
        "exif": "apply",
    }
    assert (found["size_divisibility"], found["square"]) == (8, 0)
    assert found["pixel_mean"] == MEAN and found["pixel_std"] == STD
    # Without a mapper images are taken as they are.
    assert preprocessing_of(segmenter, None)["short_edge"] == 0


@pytest.mark.parametrize(
    ("augmentations", "message"),
    [
        ([T.ResizeShortestEdge(48), T.FixedSizeCrop((64, 64))], "does ResizeShortestEdge, FixedSizeCrop"),
        ([T.Resize((48, 48))], "does Resize"),
        ([T.ResizeShortestEdge((40, 48), 96, "choice")], r"\[40, 48\]; give it one length"),
    ],
)
def test_what_a_program_could_not_do_is_refused(segmenter, augmentations, message):
    with pytest.raises(ValueError, match=message):
        preprocessing_of(segmenter, DatasetMapper(False, augmentations=augmentations, image_format="BGR"))
    with pytest.raises(ValueError, match="BGR or RGB, not L"):
        preprocessing_of(segmenter, DatasetMapper(False, augmentations=[], image_format="L"))


def test_description_of_a_segmenter(segmenter, mapper):
    graph, cfg = build_graph(segmenter), get_cfg()
    metadata = Metadata().set(name="x", stuff_classes=["a", "b", "c", "d"], stuff_colors=[(1, 2, 3)] * 4)
    found = describe(
        graph, segmenter, preprocessing=preprocessing_of(segmenter, mapper), metadata=metadata, cfg=cfg, **FACTS
    )
    assert json.loads(json.dumps(found)) == found
    assert (found["layout"], found["task"], found["architecture"]) == (LAYOUT, "semantic", "SemanticSegmentor")
    assert (found["inputs"], found["outputs"]) == (["images", "image_sizes"], ["sem_seg"])
    assert (found["classes"], found["stuff_classes"], found["stuff_colors"][0]) == ([], ["a", "b", "c", "d"], [1, 2, 3])
    assert (found["score_threshold"], found["max_detections"], found["masks"]) == (None, None, None)
    assert found["size"] == [32, 64] and len(found["config_sha256"]) == 64
    cfg.MODEL.DEVICE = "cpu" if cfg.MODEL.DEVICE != "cpu" else "cuda"
    changed = describe(graph, segmenter, preprocessing={}, metadata=metadata, cfg=cfg, **FACTS)
    assert changed["config_sha256"] != found["config_sha256"]
    # Names of another data set would be wrong ones; numbers are not.
    wrong = describe(graph, segmenter, preprocessing={}, metadata={"stuff_classes": ["a"]}, **FACTS)
    assert wrong["stuff_classes"] == ["0", "1", "2", "3"] and wrong["config_sha256"] is None


def test_description_of_a_detector(mask_rcnn):
    graph = build_graph(mask_rcnn, GraphOptions(max_detections=7))
    found = describe(graph, mask_rcnn, preprocessing={}, masks="raw", max_detections=7, **FACTS)
    assert (found["task"], found["max_detections"], found["masks"]) == ("instances", 7, "raw")
    assert found["score_threshold"] == pytest.approx(0.6)
    assert found["classes"] == ["0", "1", "2"] and found["stuff_classes"] is None
    assert found["outputs"] == ["boxes", "scores", "classes", "count", "masks"]
    own = describe(build_graph(mask_rcnn), mask_rcnn, preprocessing={}, masks="raw", **FACTS)
    assert own["max_detections"] == 100


def test_reading(tmp_path):
    with pytest.raises(FileNotFoundError, match="not what 'detectron2 export' writes"):
        read_description(tmp_path)
    file = tmp_path / "model.json"
    for text, message in (("{", "damaged"), ("{}", "no number of its layout"), ('{"layout": 99}', "up to 1")):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_description(file)
    names = ("format", "artifact", "inputs", "outputs", "task", "preprocessing", "dynamic", "size", "stuff_classes")
    content = {"layout": 1, **dict.fromkeys(names), "artifact": "model.onnx", "inputs": [], "outputs": []}
    content |= {"preprocessing": {}, "format": "onnx", "task": "instances"}
    file.write_text(json.dumps(content))
    assert read_description(tmp_path / "model.onnx") == content
    file.write_text(json.dumps({**content, "artifact": 3, "task": None, "size": [0, 5]}))
    with pytest.raises(
        ValueError, match=r"artifact is 3, not a name; task is None, not one of instances.*; size is \[0"
    ):
        read_description(tmp_path)
    del content["task"], content["size"]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"damaged: it lacks task, size\. Copy it again, or export anew"):
        read_description(tmp_path)


def test_tensors_become_lists(segmenter):
    segmenter.pixel_mean = torch.tensor([1.0, 2, 3]).view(3, 1, 1)
    assert preprocessing_of(segmenter, None)["pixel_mean"] == [1.0, 2.0, 3.0]
