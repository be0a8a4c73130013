"""The analysis of semantic and panoptic segmentation from saved predictions, by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator, SemSegEvaluator
from detectron2.evaluation.analysis import analyze_panoptic, analyze_sem_seg
from detectron2.evaluation.panoptic_evaluation import id_map_to_rgb

TRUE = [np.array([[0, 0, 1, 1], [0, 0, 255, 255]]), np.array([[1, 1, 1, 1], [1, 1, 1, 1]])]
PREDICTED = [np.array([[0, 1, 1, 1], [0, 0, 0, 2]]), np.array([[1, 1, 1, 1], [1, 1, 0, 0]])]
# true class, predicted class -> pixels: (0, 0) 3, (0, 1) 1, (1, 1) 2 + 6, (1, 0) 2


@pytest.fixture
def sem_seg(names, tmp_path):
    """Register the label maps -> the name of the data set."""

    def register(maps, **metadata):
        entries = []
        for k, labels in enumerate(maps):
            Image.fromarray(labels.astype(np.uint8)).save(tmp_path / f"{k}.png")
            entries.append({"file_name": f"images/{k}.jpg", "sem_seg_file_name": str(tmp_path / f"{k}.png")})
        name = names()
        DatasetCatalog.register(name, lambda: entries)
        MetadataCatalog.get(name).set(stuff_classes=["a", "b", "c"], ignore_label=255, **metadata)
        return name

    return register


@pytest.fixture
def predictions(tmp_path):
    """Write label maps as ``SemSegEvaluator`` does -> the file."""

    def write(name, maps):
        evaluator = SemSegEvaluator(name, distributed=False, output_dir=str(tmp_path / "out"))
        for record, labels in zip(DatasetCatalog.get(name), maps, strict=False):
            scores = torch.nn.functional.one_hot(torch.from_numpy(labels), 3).permute(2, 0, 1).float()
            evaluator.process([{"file_name": record["file_name"]}], [{"sem_seg": scores}])
        return evaluator.evaluate()["sem_seg"], str(tmp_path / "out" / "sem_seg_predictions.json")

    return write


def test_no_label_maps(sem_seg, tmp_path):
    (tmp_path / "none.json").write_text("[]")
    result = analyze_sem_seg(sem_seg(TRUE), str(tmp_path / "none.json"))
    assert math.isnan(result.metrics["mIoU"]) and result.per_image == [] and result.confusion.sum() == 0
    assert "2 of 2 images have no predictions" in result.notes[0]
    json.dumps(result.to_dict(), allow_nan=False)


@pytest.mark.parametrize("ids", [{}, {"stuff_dataset_id_to_contiguous_id": {7: 0, 3: 1, 5: 2}}])
def test_labels_by_hand(sem_seg, predictions, ids):
    name = sem_seg(TRUE, **ids)
    expected, file = predictions(name, PREDICTED)
    result = analyze_sem_seg(name, file)
    assert result.confusion.tolist() == [[3, 1, 0], [2, 8, 0], [0, 0, 0]]
    assert result.confused() == [("b", "b", 8), ("a", "a", 3), ("b", "a", 2), ("a", "b", 1)]
    first, second, third = (s.values for s in result.per_class)
    assert first == pytest.approx({"pixels": 4, "IoU": 3 / 6, "accuracy": 3 / 4, "precision": 3 / 5, "F1": 6 / 9})
    assert second["IoU"] == pytest.approx(8 / 11) and third["pixels"] == 0 and math.isnan(third["IoU"])
    assert {k: 100 * v for k, v in result.metrics.items()} == pytest.approx({k: expected[k] for k in result.metrics})
    assert [(s.name, s.values["wrong pixels"]) for s in result.per_image] == [("images/1.jpg", 2), ("images/0.jpg", 1)]
    assert result.per_image[0].values["share"] == 0.25
    assert result.to_dict()["confusion"][2] == {"true": "b", "predicted": "a", "pixels": 2}


def test_images_that_have_moved(sem_seg, predictions, tmp_path):
    name = sem_seg(TRUE)
    _, file = predictions(name, PREDICTED)
    entries = [{**e, "file_name": "/elsewhere/" + e["file_name"]} for e in json.loads(Path(file).read_text())]
    (tmp_path / "moved.json").write_text(json.dumps(entries))
    moved = analyze_sem_seg(name, str(tmp_path / "moved.json"))
    assert moved.confusion.tolist() == analyze_sem_seg(name, file).confusion.tolist()


def test_wrong_label_files(sem_seg, predictions, tmp_path):
    name = sem_seg(TRUE)
    _, file = predictions(name, PREDICTED)
    entries = json.loads(Path(file).read_text())
    for content, message in (
        ([{"file_name": "x"}], "not a list with"),
        ({}, "not a list with"),
        ([{**entries[0], "file_name": "9.jpg"}], "labels of 9.jpg, which is not an image of"),
        ([{**entries[0], "category_id": 3}], "category 3, which"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            analyze_sem_seg(name, str(tmp_path / "bad.json"))
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        analyze_sem_seg(name, str(tmp_path / "none.json"))


@pytest.fixture
def panoptic(names, tmp_path):
    """A data set of two images, and a file with predictions that have found some of it -> (name, file)."""
    categories = [{"id": 3, "name": "cat", "isthing": 1}, {"id": 90, "name": "sky", "isthing": 0}]
    truth = np.zeros((4, 8), np.int64)
    truth[:, :4], truth[:, 4:6] = 1, 2
    annotations = []
    for i in (1, 2):
        Image.fromarray(id_map_to_rgb(truth)).save(tmp_path / f"{i}.png")
        segments = [{"id": 1, "category_id": 3}, {"id": 2, "category_id": 90}]
        annotations.append({"image_id": i, "file_name": f"{i}.png", "segments_info": segments})
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 4, "width": 8} for i in (1, 2)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    name = names()
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(
        panoptic_json=str(tmp_path / "truth.json"),
        panoptic_root=str(tmp_path),
        thing_dataset_id_to_contiguous_id={3: 0},
        stuff_dataset_id_to_contiguous_id={90: 0},
    )
    evaluator = COCOPanopticEvaluator(name, str(tmp_path / "out"))
    found = torch.zeros(4, 8, dtype=torch.int64)
    found[:, :3], found[:, 5:] = 1, 2  # 12 of 16 pixels of the cat; a sky that is mostly beside the true one
    segments = [{"id": 1, "category_id": 0, "isthing": True}, {"id": 2, "category_id": 0, "isthing": False}]
    evaluator.process([{"image_id": 1, "file_name": "1.jpg"}], [{"panoptic_seg": (found, segments)}])
    return name, str(tmp_path / "out" / "predictions.json"), evaluator.evaluate()["panoptic_seg"]


def test_segments_by_hand(panoptic):
    name, file, expected = panoptic
    result = analyze_panoptic(name, file)
    assert {k: 100 * v for k, v in result.metrics.items()} == pytest.approx(expected)
    cat, sky = (s.values for s in result.per_class)
    # of two cats one is found, with an IoU of 3 / 4; the predicted sky lies in what nobody labelled
    assert cat == pytest.approx(
        {"is thing": True, "PQ": 0.75 / 1.5, "SQ": 0.75, "RQ": 2 / 3, "right": 1, "wrong": 0, "missed": 1}
    )
    assert (sky["is thing"], sky["right"], sky["wrong"], sky["missed"], sky["PQ"]) == (False, 0, 0, 2, 0.0)
    assert [(s.name, s.values) for s in result.per_image] == [("1", {"wrong": 0, "missed": 1})]
    assert result.confusion is None and result.confused() == []
    assert "1 of 2 images have no prediction" in result.notes[0]
    json.dumps(result.to_dict(), allow_nan=False)


def test_wrong_panoptic_files(panoptic, tmp_path):
    name, file, _ = panoptic
    content = json.loads(Path(file).read_text())
    annotation = content["annotations"][0]
    cases = [
        ([], ValueError, "no 'annotations'"),
        ({"annotations": []}, ValueError, "no predictions"),
        ({"annotations": [{"image_id": 1}]}, ValueError, "no 'segments_info'"),
        ({"annotations": [{**annotation, "file_name": "9.png"}]}, FileNotFoundError, r"out/9\.png"),
        ({"annotations": [annotation]}, ValueError, "category 4, which"),
    ]
    for case, kind, message in cases:
        path = tmp_path / "out.json"
        text = json.dumps(case).replace('"category_id": 3', '"category_id": 4')
        (tmp_path / "out" / "1.png").write_bytes((tmp_path / "out" / "predictions" / "1.png").read_bytes())
        path.write_text(text)
        with pytest.raises(kind, match=message):
            analyze_panoptic(name, str(path))
