import json
import math

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from detectron2.evaluation.sem_seg_evaluation import _label_boundary, load_image_into_numpy_array


@pytest.fixture
def sem_seg(names, tmp_path):
    """Register label maps -> (name, names of the images)."""

    def register(maps, classes=3, **metadata):
        entries = []
        for k, labels in enumerate(maps):
            Image.fromarray(labels.astype(np.uint8)).save(tmp_path / f"{k}.png")
            entries.append({"file_name": f"{k}.jpg", "sem_seg_file_name": str(tmp_path / f"{k}.png")})
        name = names()
        DatasetCatalog.register(name, lambda: entries)
        MetadataCatalog.get(name).set(
            stuff_classes=[f"c{k}" for k in range(classes)], ignore_label=255, evaluator_type="sem_seg", **metadata
        )
        return name, [entry["file_name"] for entry in entries]

    return register


def one_hot(labels, classes=3):
    return torch.nn.functional.one_hot(torch.from_numpy(labels.astype(np.int64)), classes).permute(2, 0, 1).float()


def run(evaluator, files, scores):
    evaluator.reset()
    for file_name, score in zip(files, scores, strict=True):
        evaluator.process([{"file_name": file_name}], [{"sem_seg": score}])
    return evaluator.evaluate()


def test_by_hand(sem_seg):
    truth = np.array([[0, 0, 1, 1], [0, 0, 255, 255]])
    predicted = np.array([[0, 1, 1, 1], [0, 0, 0, 2]])
    name, files = sem_seg([truth])
    result = run(SemSegEvaluator(name, distributed=False), files, [one_hot(predicted)])["sem_seg"]
    assert result["IoU-c0"] == pytest.approx(75)
    assert result["IoU-c1"] == pytest.approx(100 * 2 / 3)
    assert math.isnan(result["IoU-c2"])
    assert result["mIoU"] == pytest.approx((75 + 200 / 3) / 2)
    assert result["fwIoU"] == pytest.approx((75 * 4 + 200 / 3 * 2) / 6)
    assert result["ACC-c0"] == pytest.approx(75)
    assert result["mACC"] == pytest.approx(87.5)
    assert result["pACC"] == pytest.approx(100 * 5 / 6)


def test_perfect_maps(sem_seg):
    rng = np.random.default_rng(0)
    maps = [rng.integers(0, 3, (5, 6)).repeat(8, 0).repeat(8, 1) for _ in range(2)]
    name, files = sem_seg(maps)
    result = run(SemSegEvaluator(name, False), files, [one_hot(m) for m in maps])["sem_seg"]
    assert {round(value, 9) for value in result.values()} == {100.0}
    assert {"BoundaryIoU-c1", "min(IoU, B-Iou)-c1"} <= set(result)


def test_no_images_and_no_labels(sem_seg):
    name, files = sem_seg([np.full((4, 4), 255)])
    for images, scores in (([], []), (files, [one_hot(np.zeros((4, 4)))])):
        result = run(SemSegEvaluator(name, False), images, scores)["sem_seg"]
        assert math.isnan(result["mIoU"])
        assert math.isnan(result["pACC"])


def test_a_class_predicted_where_there_is_none_lowers_the_mean(sem_seg):
    name, files = sem_seg([np.zeros((2, 2))])
    predicted = np.array([[0, 0], [0, 1]])
    result = run(SemSegEvaluator(name, False), files, [one_hot(predicted)])["sem_seg"]
    assert result["mIoU"] == pytest.approx(75 / 2)


def naive_erosion(labels, reach):
    padded = np.zeros((labels.shape[0] + 2, labels.shape[1] + 2), dtype=labels.dtype)
    padded[1:-1, 1:-1] = labels
    out = np.empty_like(labels)
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            top, left = max(0, y + 1 - reach), max(0, x + 1 - reach)
            out[y, x] = padded[top : y + 2 + reach, left : x + 2 + reach].min()
    return out


@pytest.mark.parametrize(("height", "width", "reach"), [(1, 1, 1), (40, 30, 1), (90, 120, 3), (60, 300, 6)])
def test_boundary_by_plain_loops(height, width, reach):
    labels = np.random.default_rng(0).integers(0, 3, (height // 10 + 1, width // 10 + 1)).repeat(10, 0).repeat(10, 1)
    labels = labels[:height, :width]
    np.testing.assert_array_equal(_label_boundary(labels), labels - naive_erosion(labels, reach))


def test_files_are_written(sem_seg, tmp_path):
    name, files = sem_seg([np.zeros((4, 5))], stuff_dataset_id_to_contiguous_id={7: 0, 9: 1, 12: 2})
    predicted = np.array([[0, 0, 2, 2, 2]] * 4)
    out = tmp_path / "out"
    run(SemSegEvaluator(name, False, str(out)), files, [one_hot(predicted)])
    entries = json.loads((out / "sem_seg_predictions.json").read_text())
    assert [(e["file_name"], e["category_id"]) for e in entries] == [("0.jpg", 7), ("0.jpg", 12)]
    np.testing.assert_array_equal(mask_util.decode(entries[1]["segmentation"]), predicted == 2)
    assert torch.load(out / "sem_seg_evaluation.pth", weights_only=True)["pACC"] == pytest.approx(40)


def test_attributes_that_projects_read(sem_seg):
    name, files = sem_seg([np.zeros((2, 2))])
    evaluator = SemSegEvaluator(name)
    assert evaluator._num_classes == 3
    assert evaluator._ignore_label == 255
    assert list(evaluator.input_file_to_gt_file) == files


@pytest.mark.parametrize("classes", [3, 300])
def test_boundary_in_small_and_large_numbers(sem_seg, classes):
    labels = np.random.default_rng(1).integers(0, 3, (6, 8)).repeat(5, 0).repeat(5, 1)
    name, files = sem_seg([labels], classes=classes)
    shifted = np.roll(labels, 2, axis=0)
    result = run(SemSegEvaluator(name, False), files, [torch.from_numpy(shifted)])["sem_seg"]
    reach = max(1, round(0.02 * math.hypot(30, 40)))
    edges = [x - naive_erosion(x, reach) for x in (shifted, labels)]
    for k in range(3):
        both, either = ((edges[0] == k) & (edges[1] == k)).sum(), ((edges[0] == k) | (edges[1] == k)).sum()
        assert result[f"BoundaryIoU-c{k}"] == pytest.approx(100 * both / either)
        assert result[f"min(IoU, B-Iou)-c{k}"] == min(result[f"IoU-c{k}"], result[f"BoundaryIoU-c{k}"])


@pytest.mark.parametrize("seed", range(4))
def test_metrics_pixel_by_pixel(sem_seg, seed):
    """Counts in plain Python; of random maps with ignored pixels, on one of four no pixel is labelled."""
    rng = np.random.default_rng(seed)
    maps = [rng.choice([0, 1, 2, 255], (5, 7), p=[0.5, 0.2, 0.1, 0.2]) for _ in range(3)]
    maps[2][:] = 255
    predicted = [rng.integers(0, 4, (5, 7)) for _ in maps]
    name, files = sem_seg(maps, classes=4)  # class 3 is predicted and never true
    found = run(SemSegEvaluator(name, False), files, [one_hot(p, 4) for p in predicted])["sem_seg"]
    true, guess, hit = [0] * 4, [0] * 4, [0] * 4
    for truth, prediction in zip(maps, predicted, strict=True):
        for t, p in zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True):
            if t != 255:
                true[t] += 1
                guess[p] += 1
                hit[t] += t == p
    iou = [hit[k] / (true[k] + guess[k] - hit[k]) for k in range(4)]
    assert found["mIoU"] == pytest.approx(100 * sum(iou) / 4)
    assert found["fwIoU"] == pytest.approx(100 * sum(iou[k] * true[k] for k in range(4)) / sum(true))
    assert found["mACC"] == pytest.approx(100 * sum(hit[k] / true[k] for k in range(3)) / 3)
    assert found["pACC"] == pytest.approx(100 * sum(hit) / sum(true))
    for k in range(3):
        assert found[f"IoU-c{k}"] == pytest.approx(100 * iou[k])
        assert found[f"ACC-c{k}"] == pytest.approx(100 * hit[k] / true[k])
    assert math.isnan(found["ACC-c3"])


def test_wrong_use_is_explained(sem_seg, names):
    name, files = sem_seg([np.array([[0, 4]]), np.zeros((3, 3))])
    with pytest.raises(ValueError, match="num_classes=5"):
        SemSegEvaluator(name, num_classes=5)
    with pytest.raises(ValueError, match="stuff_classes"):
        SemSegEvaluator(names())
    evaluator = SemSegEvaluator(name, False)
    with pytest.raises(ValueError, match=r"0\.png has labels from 0 to 4; expected 0 to 2"):
        run(evaluator, files[:1], [torch.zeros(3, 1, 2)])
    with pytest.raises(ValueError, match=r"1\.png has \(height, width\) \(3, 3\), the prediction \(2, 2\)"):
        run(evaluator, files[1:], [torch.zeros(3, 2, 2)])
    for label in (-1, 4):
        with pytest.raises(ValueError, match=rf"On 1\.jpg the model predicts labels from {label} to {label}"):
            run(evaluator, files[1:], [torch.full((3, 3), label)])
    with pytest.raises(KeyError, match=r"none\.jpg"):
        run(evaluator, ["none.jpg"], [torch.zeros(3, 2, 2)])
    with pytest.raises(ValueError, match=r"needs 'sem_seg' in the model's outputs; there is \['instances'\]"):
        evaluator.process([{"file_name": files[0]}], [{"instances": 0}])


@pytest.mark.parametrize("label", [3, 4, 254])
def test_labels_that_are_no_class_are_refused(sem_seg, label):
    """The number of classes is not a class, though this index counts the pixels without a label."""
    name, files = sem_seg([np.array([[0, label]])])
    with pytest.raises(ValueError, match=rf"0\.png has labels from 0 to {label}; expected 0 to 2, or 255"):
        run(SemSegEvaluator(name, False), files, [one_hot(np.array([[0, 0]]))])


def test_missing_and_coloured_label_files_are_named(sem_seg, tmp_path):
    name, files = sem_seg([np.zeros((3, 3))])
    evaluator = SemSegEvaluator(name, False)
    Image.fromarray(np.full((3, 3, 3), (0, 0, 1), dtype=np.uint8)).save(tmp_path / "0.png")
    with pytest.raises(ValueError, match=r"0\.png has shape \(3, 3, 3\): it is a coloured picture"):
        run(evaluator, files, [torch.zeros(3, 3, 3)])
    (tmp_path / "0.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"The labels of 0\.jpg \(sem_seg_file_name .*\) are missing: .*0\.png"):
        run(evaluator, files, [torch.zeros(3, 3, 3)])


def test_entries_without_labels_are_named(names):
    name = names()
    entries = [{"file_name": "a.jpg", "sem_seg_file_name": "a.png"}, {"file_name": "b.jpg"}]
    DatasetCatalog.register(name, lambda: entries)
    MetadataCatalog.get(name).stuff_classes = ["x"]
    with pytest.raises(ValueError, match=r"`sem_seg_file_name`.*1 of 2 lack it, such as that of b\.jpg"):
        SemSegEvaluator(name)


def test_a_class_without_category_is_named(sem_seg, tmp_path):
    name, files = sem_seg([np.zeros((2, 2))], stuff_dataset_id_to_contiguous_id={7: 0, 9: 1})
    with pytest.raises(ValueError, match=r"Class 2 is predicted on 0\.jpg.*maps to \[0, 1\]"):
        run(SemSegEvaluator(name, False, str(tmp_path / "out")), files, [one_hot(np.full((2, 2), 2))])


def test_numbers_that_mean_little_are_explained(sem_seg, caplog):
    name, files = sem_seg([np.array([[0, 1]]), np.full((1, 2), 255)])
    evaluator = SemSegEvaluator(name, False)
    for images, scores, text in (
        ([], [], "received no pixels"),
        (files[1:], [one_hot(np.array([[0, 1]]))], "all are 255 (metadata: ignore_label)"),
        (files[:1], [one_hot(np.array([[2, 2]]))], "Every pixel of every image is predicted as 'c2'"),
        (files[:1], [one_hot(np.array([[2, 1]]))], "1 of 3 classes never occur ('c2')"),
    ):
        caplog.clear()
        run(evaluator, images, scores)
        (first, *others) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        assert text in first and all("have no prediction" in w for w in others)


def test_label_files_are_read_as_they_are(tmp_path):
    labels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    Image.fromarray(labels).save(tmp_path / "x.png")
    loaded = load_image_into_numpy_array(str(tmp_path / "x.png"), copy=True, dtype=int)
    np.testing.assert_array_equal(loaded, labels)
    assert loaded.dtype == int
    loaded[0, 0] = 1


@pytest.mark.parametrize("form", ["RGB", "RGBA", "LA", "npy", "npz", "npy with one channel"])
def test_label_maps_that_training_reads_are_evaluated(sem_seg, tmp_path, form):
    labels = np.array([[0, 1, 2], [2, 255, 0]], np.uint8)
    name, files = sem_seg([labels])
    (entry,) = DatasetCatalog.get(name)
    if form.startswith("np"):
        entry["sem_seg_file_name"] = str(tmp_path / f"labels.{form[:3]}")
        save = np.savez if form == "npz" else np.save
        save(entry["sem_seg_file_name"], labels[..., None] if "channel" in form else labels.astype(np.int64))
    else:
        Image.fromarray(labels).convert(form).save(entry["sem_seg_file_name"])
    scores = one_hot(np.where(labels == 255, 0, labels))
    assert run(SemSegEvaluator(name, False), files, [scores])["sem_seg"]["mIoU"] == pytest.approx(100)


def test_label_maps_of_fractions_are_refused(sem_seg, tmp_path):
    name, files = sem_seg([np.zeros((2, 2))])
    DatasetCatalog.get(name)[0]["sem_seg_file_name"] = str(tmp_path / "half.npy")
    np.save(tmp_path / "half.npy", np.full((2, 2), 0.5))
    with pytest.raises(ValueError, match=r"half.npy has fractions, such as 0.5"):
        run(SemSegEvaluator(name, False), files, [one_hot(np.zeros((2, 2)))])


def test_images_without_a_prediction_are_named(sem_seg, caplog):
    name, files = sem_seg([np.zeros((2, 2))] * 3)
    run(SemSegEvaluator(name, False), files[:1], [one_hot(np.zeros((2, 2)))])
    assert "2 of 3 images" in caplog.text and "for example '1.jpg'" in caplog.text


def test_odd_batches_are_named(sem_seg, caplog):
    name, files = sem_seg([np.zeros((2, 2))])
    evaluator = SemSegEvaluator(name, False)
    evaluator.process([], [])
    with pytest.raises(ValueError, match="SemSegEvaluator got 0 outputs of the model for 1 inputs"):
        evaluator.process([{"file_name": files[0]}], [])
    with pytest.raises(KeyError, match=r"needs 'file_name'; it has .'image_id'."):
        evaluator.process([{"image_id": 1}], [{}])
    run(evaluator, files, [one_hot(np.zeros((2, 2)))])
    assert "more than once" not in caplog.text
    evaluator.process([{"file_name": files[0]}], [{"sem_seg": one_hot(np.zeros((2, 2)))}])
    assert evaluator.evaluate()["sem_seg"]["pACC"] == 100
    assert f"1 images were given to SemSegEvaluator more than once, such as file_name '{files[0]}'" in caplog.text
