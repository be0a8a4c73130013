import math
from collections import Counter

import numpy as np
import pytest
import torch

from detectron2.data import MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.evaluation.pascal_voc_evaluation import parse_rec, voc_ap
from detectron2.structures import Boxes, Instances


def write_object(name, box, difficult=0):
    sides = "".join(f"<{s}>{v}</{s}>" for s, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{sides}</bndbox></object>"


@pytest.fixture
def voc(names, tmp_path):
    """Write annotations {image: [(class, box, difficult)]} -> the name of the data set."""

    def register(images, year=2012, classes=("cat", "dog")):
        (tmp_path / "Annotations").mkdir(exist_ok=True)
        (tmp_path / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("".join(f"{image}\n" for image in images))
        for image, objects in images.items():
            body = "".join(write_object(*entry) for entry in objects)
            (tmp_path / "Annotations" / f"{image}.xml").write_text(f"<annotation>{body}</annotation>")
        name = names()
        MetadataCatalog.get(name).set(dirname=str(tmp_path), split="val", year=year, thing_classes=list(classes))
        return name

    return register


def run(name, detections):
    """Evaluate {image: [(class, score, box in continuous coordinates)]}."""
    evaluator = PascalVOCDetectionEvaluator(name)
    evaluator.reset()
    for image, rows in detections.items():
        instances = Instances((100, 100))
        instances.pred_classes = torch.tensor([r[0] for r in rows], dtype=torch.int64)
        instances.scores = torch.tensor([r[1] for r in rows], dtype=torch.float64)
        instances.pred_boxes = Boxes(torch.tensor([r[2] for r in rows], dtype=torch.float32).reshape(-1, 4))
        evaluator.process([{"image_id": image}], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]


def plain_ap(detections, images, class_id, name, threshold, year):
    """The protocol, one detection at a time."""
    rows = sorted(((s, i, b) for i, d in detections.items() for c, s, b in d if c == class_id), key=lambda r: -r[0])
    taken, hits, errors, points = set(), 0, 0, []
    positives = sum(1 for objects in images.values() for o in objects if o[0] == name and not o[2])
    for _, image, box in rows:
        best, chosen = -1.0, None
        for k, (label, other, _) in enumerate(images[image]):
            if label != name:
                continue
            mine = [round(box[0] + 1, 1), round(box[1] + 1, 1), round(box[2], 1), round(box[3], 1)]
            w = min(mine[2], other[2]) - max(mine[0], other[0]) + 1
            h = min(mine[3], other[3]) - max(mine[1], other[1]) + 1
            inter = max(w, 0) * max(h, 0)
            area = (mine[2] - mine[0] + 1) * (mine[3] - mine[1] + 1)
            area += (other[2] - other[0] + 1) * (other[3] - other[1] + 1)
            if inter / (area - inter) > best:
                best, chosen = inter / (area - inter), k
        if best > threshold:
            if not images[image][chosen][2]:
                if (image, chosen) in taken:
                    errors += 1
                else:
                    hits += 1
                    taken.add((image, chosen))
        else:
            errors += 1
        if hits + errors:
            points.append((hits / positives, hits / (hits + errors)))
    if year == 2007:
        return sum(max([p for r, p in points if r >= t - 1e-12], default=0.0) for t in np.arange(0, 1.1, 0.1)) / 11
    area, last = 0.0, 0.0
    for k, (recall, _) in enumerate(points):
        area += (recall - last) * max(p for _, p in points[k:])
        last = recall
    return area


@pytest.mark.parametrize("year", [2007, 2012])
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_the_protocol_one_detection_at_a_time(voc, year, seed):
    rng = np.random.default_rng(seed)
    images, detections = {}, {}
    for k in range(6):
        corners = rng.integers(1, 50, (int(rng.integers(1, 6)), 2))
        images[f"im{k}"] = [
            (str(rng.choice(["cat", "dog"])), [x, y, x + int(rng.integers(8, 40)), y + int(rng.integers(8, 40))], d)
            for (x, y), d in zip(corners.tolist(), (rng.random(len(corners)) < 0.2).astype(int).tolist(), strict=True)
        ]
        detections[f"im{k}"] = []
        for label, box, _ in images[f"im{k}"] * 2:
            moved = (np.array(box) - [1, 1, 0, 0] + rng.normal(0, 3, 4)).round(1).tolist()
            detections[f"im{k}"].append((["cat", "dog"].index(label), 0.0, moved))
    # distinct scores, so that the order is defined
    total = sum(len(d) for d in detections.values())
    scores = iter((rng.permutation(total) / 1000).tolist())
    detections = {i: [(c, next(scores), b) for c, _, b in d] for i, d in detections.items()}
    result = run(voc(images, year), detections)
    table = np.array(
        [
            [plain_ap(detections, images, c, name, t / 100, year) for t in range(50, 100, 5)]
            for c, name in enumerate(["cat", "dog"])
        ]
    )
    mean = 100 * table.mean(axis=0)
    assert result == {
        "AP": pytest.approx(mean.mean()),
        "AP50": pytest.approx(mean[0]),
        "AP75": pytest.approx(mean[5]),
    }
    assert 0 < result["AP"] < 100


@pytest.mark.parametrize("year", [2007, 2012])
def test_perfect_detections(voc, year):
    name = voc({"a": [("cat", [1, 1, 10, 10], 0)], "b": [("dog", [5, 6, 30, 40], 0)]}, year)
    result = run(name, {"a": [(0, 0.9, [0, 0, 10, 10])], "b": [(1, 0.8, [4, 5, 30, 40])]})
    assert result == {"AP": pytest.approx(100), "AP50": pytest.approx(100), "AP75": pytest.approx(100)}


@pytest.mark.parametrize("year", [2007, 2012])
def test_no_detections(voc, year):
    name = voc({"a": [("cat", [1, 1, 10, 10], 0)]}, year)
    assert run(name, {"a": []}) == {"AP": 0, "AP50": 0, "AP75": 0}
    assert run(name, {}) == {"AP": 0, "AP50": 0, "AP75": 0}


def test_no_objects(voc, caplog):
    result = run(voc({"a": []}), {"a": [(0, 0.5, [0, 0, 9, 9])]})
    assert all(math.isnan(value) for value in result.values())
    assert "No object of class 'cat'" in caplog.text


def test_a_class_without_objects_is_left_out(voc):
    name = voc({"a": [("cat", [1, 1, 10, 10], 0)]})
    assert run(name, {"a": [(0, 0.9, [0, 0, 10, 10]), (1, 0.9, [0, 0, 10, 10])]})["AP"] == pytest.approx(100)


def test_only_difficult_objects_count_neither_way(voc):
    name = voc({"a": [("cat", [1, 1, 10, 10], 1), ("cat", [31, 31, 60, 60], 0)]})
    result = run(name, {"a": [(0, 0.9, [0, 0, 10, 10]), (0, 0.8, [30, 30, 60, 60])]})
    assert result["AP"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("recall", "precision", "eleven", "area"),
    [
        ([], [], 0.0, 0.0),
        ([1.0], [1.0], 1.0, 1.0),
        ([0.5], [1.0], 6 / 11, 0.5),
        ([0.0, 0.5], [0.0, 0.5], 3 / 11, 0.25),
        # recalls 0 … 0.5 at 1, 0.6 … 1 at 2/3
        ([0.5, 0.5, 1.0], [1.0, 0.5, 2 / 3], (6 + 5 * 2 / 3) / 11, 0.5 + 0.5 * 2 / 3),
    ],
)
def test_average_precision_of_a_curve(recall, precision, eleven, area):
    assert voc_ap(np.array(recall), np.array(precision), use_07_metric=True) == pytest.approx(eleven)
    assert voc_ap(np.array(recall), np.array(precision)) == pytest.approx(area)


def test_annotation_files_are_read(tmp_path):
    path = tmp_path / "x.xml"
    path.write_text("<annotation><size/></annotation>")
    assert parse_rec(str(path)) == []
    path.write_text(f"<annotation>{write_object('cat', [1, 2, 3.7, '4.0'], 1)}</annotation>")
    assert parse_rec(str(path)) == [
        {"name": "cat", "pose": "Unspecified", "truncated": 0, "difficult": 1, "bbox": [1, 2, 3.7, 4]}
    ]
    path.write_text(f"<annotation xmlns='urn:voc'>{write_object(' cat ', [1, 2, 3, 4], 'Unspecified')}</annotation>")
    assert [(r["name"], r["difficult"]) for r in parse_rec(str(path))] == [("cat", 0)]
    path.write_text("<annotation><object><name>cat</name></object></annotation>")
    with pytest.raises(ValueError, match="object 1: there is no <bndbox>"):
        parse_rec(str(path))
    path.write_text("<annotation><object><name>cat</name><bndbox><xmin>a</xmin></bndbox></object></annotation>")
    with pytest.raises(ValueError, match="<xmin> in <bndbox> must be a number of pixels, not 'a'"):
        parse_rec(str(path))


def test_objects_that_are_not_called_difficult_or_easy_are_told(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("detectron2.utils.logger._TIMES_SEEN", Counter())  # it is told once in a process
    path = tmp_path / "x.xml"
    path.write_text(f"<annotation>{write_object('cat', [1, 2, 3, 4])}</annotation>".replace("difficult", "hard"))
    assert parse_rec(str(path))[0]["difficult"] == 0
    assert "'cat' has no <difficult>" in caplog.text


def test_wrong_metadata_is_named(names, voc):
    name = names()
    MetadataCatalog.get(name).set(thing_classes=["cat"])
    with pytest.raises(ValueError, match=r"\['dirname', 'split', 'year'\]"):
        PascalVOCDetectionEvaluator(name)
    with pytest.raises(ValueError, match="2010"):
        PascalVOCDetectionEvaluator(voc({}, year=2010))


def test_wrong_predictions_are_named(voc):
    name = voc({"a": [("cat", [1, 1, 10, 10], 0)]})
    assert PascalVOCDetectionEvaluator(name)._class_names == ["cat", "dog"]
    with pytest.raises(ValueError, match="image 'b'"):
        run(name, {"b": [(0, 0.9, [0, 0, 10, 10])]})
    with pytest.raises(ValueError, match=r"class 2, but .* 2 classes"):
        run(name, {"a": [(2, 0.9, [0, 0, 10, 10])]})


@pytest.mark.parametrize("listed", ["a\nb c\n", "\ufeffa\r\nb c\r\n\r\n", "a 1\nb c -1\n", "a\na\nb c\na\n"])
def test_a_list_is_read_as_for_training(voc, tmp_path, listed):
    name = voc({"a": [("cat", [1, 1, 10, 10], 0)], "b c": [("cat", [5, 6, 30, 40], 0)]})
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_bytes(listed.encode())
    result = run(name, {"a": [(0, 0.9, [0, 0, 10, 10])], "b c": [(0, 0.8, [4, 5, 30, 40])]})
    assert result == {"AP": pytest.approx(100), "AP50": pytest.approx(100), "AP75": pytest.approx(100)}


def test_fractions_of_pixels_count(voc):
    name = voc({"a": [("cat", [3.9, 3.9, 8.9, 8.9], 0)]})
    assert run(name, {"a": [(0, 0.9, [2.9, 2.9, 8.9, 8.9])]})["AP"] == pytest.approx(100)


def test_odd_batches_are_named(voc, caplog):
    evaluator = PascalVOCDetectionEvaluator(voc({"a": [("cat", [1, 1, 10, 10], 0)]}))
    evaluator.process([], [])
    with pytest.raises(ValueError, match="PascalVOCDetectionEvaluator got 0 outputs of the model for 1 inputs"):
        evaluator.process([{"image_id": "a"}], [])
    with pytest.raises(KeyError, match=r"needs 'image_id'; it has .'file_name'."):
        evaluator.process([{"file_name": "a"}], [{}])
    with pytest.raises(ValueError, match=r"needs 'instances' in the model's outputs; there is .'sem_seg'."):
        evaluator.process([{"image_id": "a"}], [{"sem_seg": 1}])
    assert evaluator.evaluate()["bbox"]["AP"] == 0 and "more than once" not in caplog.text
    found = Instances((100, 100), pred_boxes=Boxes(torch.tensor([[0.0, 0, 10, 10], [math.nan, 0, 10, 10]])))
    found.scores, found.pred_classes = torch.tensor([0.5, 0.9]), torch.tensor([0, 0])
    evaluator.process([{"image_id": "a"}], [{"instances": found}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)
    assert "1 of 2 detections on image 'a' are NaN or infinite" in caplog.text
    evaluator.process([{"image_id": "a"}], [{"instances": found}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)  # the best comes first
    assert "1 images were given to PascalVOCDetectionEvaluator more than once, such as image_id 'a'" in caplog.text
