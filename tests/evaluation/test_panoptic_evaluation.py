import json
import math

import hotcoco.panoptic
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.evaluation import panoptic_evaluation as module
from detectron2.evaluation.panoptic_evaluation import (
    COUNTS,
    id_map_to_rgb,
    match_segments,
    quality,
    rgb_to_id_map,
    unmatched_truth,
)

CATEGORIES = [
    {"id": 3, "name": "cat", "isthing": 1},
    {"id": 5, "name": "dog", "isthing": 1},
    {"id": 90, "name": "sky", "isthing": 0},
    {"id": 91, "name": "sea", "isthing": 0},
]
ROWS = {c["id"]: i for i, c in enumerate(CATEGORIES)}
IDS = ("PQ", "SQ", "RQ", "PQ_th", "SQ_th", "RQ_th", "PQ_st", "SQ_st", "RQ_st")


# --- a slow reference, pixel by pixel ---------------------------------------------------------------------------------


def slow_counts(truth_ids, truth_segments, predicted_ids, predicted_segments):
    """Return {category: [IoU sum, TP, FP, FN]}, by sets of pixels."""

    def pixels(ids, wanted):
        return {(y, x) for y in range(ids.shape[0]) for x in range(ids.shape[1]) if ids[y, x] == wanted}

    counts = {c["id"]: [0.0, 0, 0, 0] for c in CATEGORIES}
    void = pixels(truth_ids, 0)
    truth = [(s, pixels(truth_ids, s["id"])) for s in truth_segments]
    predicted = [(s, pixels(predicted_ids, s["id"])) for s in predicted_segments if s["id"]]
    found = []
    for segment, region in predicted:
        if not region:
            continue
        hit = None
        for other, other_region in truth:
            if other["category_id"] != segment["category_id"] or other.get("iscrowd"):
                continue
            shared = len(region & other_region)
            union = len((region - void) | other_region)
            if union and shared / union > 0.5:
                hit = other
                counts[segment["category_id"]][0] += shared / union
        if hit is not None:
            found.append(hit["id"])
            counts[segment["category_id"]][1] += 1
            continue
        crowd = [r for s, r in truth if s.get("iscrowd") and s["category_id"] == segment["category_id"]]
        if len(region & void.union(*crowd)) / len(region) <= 0.5:
            counts[segment["category_id"]][2] += 1
    for segment, _ in truth:
        if not segment.get("iscrowd") and segment["id"] not in found:
            counts[segment["category_id"]][3] += 1
    return counts


def random_map(rng, size_hw, segments, first_id):
    """A map of rectangles over each other -> (ids, segments that are visible)."""
    ids = np.zeros(size_hw, dtype=np.int64)
    infos = []
    for number in range(segments):
        (y1, y2), (x1, x2) = np.sort(rng.integers(0, size_hw[0] + 1, 2)), np.sort(rng.integers(0, size_hw[1] + 1, 2))
        ids[y1:y2, x1:x2] = first_id + 301 * number
        infos.append({"id": first_id + 301 * number, "category_id": int(rng.choice(list(ROWS)))})
    return ids, [s for s in infos if (ids == s["id"]).any()]


def similar_map(rng, ids, infos):
    """A prediction that resembles a map: shifted, some categories changed."""
    shifted = np.roll(ids, int(rng.integers(-1, 2)), axis=1)
    segments = []
    for s in infos:
        category = s["category_id"] if rng.random() < 0.8 else int(rng.choice(list(ROWS)))
        segments.append({"id": s["id"], "category_id": category})
    shifted[rng.random(shifted.shape) < 0.1] = 0
    return shifted, [s for s in segments if (shifted == s["id"]).any()]


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10**6), segments=st.integers(0, 6), alike=st.booleans())
def test_counts_against_sets_of_pixels(seed, segments, alike):
    rng = np.random.default_rng(seed)
    truth_ids, truth = random_map(rng, (7, 9), segments, 256 * 3 + 1)
    predicted_ids, predicted = similar_map(rng, truth_ids, truth) if alike else random_map(rng, (7, 9), segments, 1)
    for s in truth:
        s["iscrowd"] = int(rng.random() < 0.3)
    counts = match_segments(truth_ids, truth, predicted_ids, predicted, ROWS)
    expected = slow_counts(truth_ids, truth, predicted_ids, predicted)
    np.testing.assert_allclose(counts, [expected[c["id"]] for c in CATEGORIES])


@pytest.mark.parametrize("size_hw", [(0, 0), (2, 3)])
def test_no_segments(size_hw):
    nothing = np.zeros(size_hw, dtype=np.int32)
    assert not match_segments(nothing, [], nothing, [], ROWS).any()
    assert unmatched_truth([], ROWS).shape == (4, len(COUNTS))


def test_what_has_no_segment_is_void():
    truth_ids, truth = np.full((2, 4), 7), [{"id": 7, "category_id": 3}]
    predicted = np.array([[7, 7, 7, 7], [7, -1, 9, 0]])
    counts = match_segments(
        truth_ids, truth, predicted, [{"id": 7, "category_id": 3}, {"id": 8, "category_id": 5}], ROWS
    )
    np.testing.assert_allclose(counts[0], [5 / 8, 1, 0, 0])
    assert not counts[1:].any()  # segment 8 has no pixels, -1 and 9 have no segment


def test_quality_by_hand():
    counts = np.array([[1.6, 2.0, 1.0, 1.0], [0.0, 0.0, 0.0, 3.0], [0.0] * 4])
    result = quality(counts)
    assert result["categories"] == 2
    assert result["PQ"] == pytest.approx((1.6 / 3 + 0) / 2)
    assert result["SQ"] == pytest.approx((0.8 + 0) / 2)
    assert result["RQ"] == pytest.approx((2 / 3 + 0) / 2)
    assert math.isnan(quality(np.zeros((3, 4)))["PQ"]) and math.isnan(quality(np.zeros((0, 4)))["PQ"])


def test_colors_by_hand():
    ids = np.array([[0, 255], [256, 256**2 * 3 + 256 * 2 + 1]])
    colors = id_map_to_rgb(ids)
    assert colors.tolist() == [[[0, 0, 0], [255, 0, 0]], [[0, 1, 0], [1, 2, 3]]] and colors.dtype == np.uint8
    np.testing.assert_array_equal(rgb_to_id_map(colors), ids)
    with pytest.raises(ValueError, match="16777216"):
        id_map_to_rgb(np.array([[256**3]]))
    with pytest.raises(ValueError, match="three channels"):
        rgb_to_id_map(np.zeros((2, 2)))


# --- the evaluator ----------------------------------------------------------------------------------------------------


@pytest.fixture
def panoptic(names, tmp_path):
    """Register ground truth [(ids, segments)] -> name; images are numbered from 1."""

    def register(truth, scored=True, **metadata):
        root = tmp_path / "truth"
        root.mkdir(exist_ok=True)
        annotations = []
        for number, (ids, segments) in enumerate(truth, start=1):
            Image.fromarray(id_map_to_rgb(ids)).save(root / f"{number}.png")
            for s in segments:
                s.setdefault("iscrowd", 0)
                s["area"] = int((ids == s["id"]).sum())
            annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
        content = {
            "images": [
                {"id": i, "file_name": f"{i}.jpg", "height": t[0].shape[0], "width": t[0].shape[1]}
                for i, t in enumerate(truth, start=1)
            ],
            "categories": CATEGORIES,
        }
        if scored:
            content["annotations"] = annotations
        (tmp_path / "truth.json").write_text(json.dumps(content))
        name = names()
        MetadataCatalog.get(name).set(
            panoptic_json=str(tmp_path / "truth.json"),
            panoptic_root=str(root),
            thing_dataset_id_to_contiguous_id={3: 0, 5: 1},
            stuff_dataset_id_to_contiguous_id={0: 0, 90: 1, 91: 2},
            evaluator_type="coco_panoptic_seg",
            **metadata,
        )
        return name

    return register


def as_output(ids, segments):
    """What a model gives: contiguous categories and "isthing"."""
    contiguous = {3: (True, 0), 5: (True, 1), 90: (False, 1), 91: (False, 2)}
    infos = []
    for s in segments:
        is_thing, category = contiguous[s["category_id"]]
        infos.append({"id": s["id"], "isthing": is_thing, "category_id": category})
    return {"panoptic_seg": (torch.from_numpy(ids.astype(np.int32)), infos)}


def run(evaluator, outputs):
    evaluator.reset()
    for number, output in outputs.items():
        evaluator.process([{"image_id": number, "file_name": f"somewhere/{number}.jpg"}], [output])
    return evaluator.evaluate()


def random_case(seed, images=3):
    rng = np.random.default_rng(seed)
    truth = [random_map(rng, (40, 50), 8, 100 * 256 + 5) for _ in range(images)]
    for _, segments in truth:
        crowded = set()
        for s in segments:  # at most one crowd of a category in an image, as in COCO
            s["iscrowd"] = int(rng.random() < 0.2 and s["category_id"] not in crowded)
            crowded |= {s["category_id"]} if s["iscrowd"] else set()
    return truth, [similar_map(rng, ids, segments) for ids, segments in truth]


@pytest.mark.parametrize("seed", range(4))
def test_same_numbers_as_hotcoco(panoptic, tmp_path, seed):
    truth, predicted = random_case(seed)
    evaluator = COCOPanopticEvaluator(panoptic(truth), str(tmp_path / "out"))
    outputs = {i: as_output(*p) for i, p in enumerate(predicted, start=1)}
    found = run(evaluator, outputs)["panoptic_seg"]
    judge = hotcoco.panoptic.pq_compute(
        str(tmp_path / "truth.json"), str(tmp_path / "out" / "predictions.json"), str(tmp_path / "truth"),
        str(tmp_path / "out" / "predictions"),
    )  # fmt: skip
    assert tuple(found) == IDS
    for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        for metric in ("pq", "sq", "rq"):
            assert found[metric.upper() + suffix] == pytest.approx(100 * judge[group][metric])


def test_the_truth_itself_is_perfect(shared_dir, names):
    sample = shared_dir / "data" / "coco_panoptic_sample" / "sample_data"
    if not sample.is_dir():
        pytest.skip(f"no panoptic sample at {sample}")
    content = json.loads((sample / "panoptic_examples.json").read_text())
    name = names()
    things = [c["id"] for c in content["categories"] if c["isthing"]]
    stuff = [c["id"] for c in content["categories"] if not c["isthing"]]
    MetadataCatalog.get(name).set(
        panoptic_json=str(sample / "panoptic_examples.json"),
        panoptic_root=str(sample / "panoptic_examples"),
        thing_dataset_id_to_contiguous_id={c: i for i, c in enumerate(things)},
        stuff_dataset_id_to_contiguous_id={c: i for i, c in enumerate(stuff)},
    )
    evaluator = COCOPanopticEvaluator(name)
    for annotation in content["annotations"]:
        ids = rgb_to_id_map(np.array(Image.open(sample / "panoptic_examples" / annotation["file_name"])))
        measured = {s["id"]: int((ids == s["id"]).sum()) for s in annotation["segments_info"]}
        assert measured == {s["id"]: s["area"] for s in annotation["segments_info"]}
        # categories of the data set: no "isthing"
        segments = [{"id": s["id"], "category_id": s["category_id"]} for s in annotation["segments_info"]]
        evaluator.process(
            [{"image_id": annotation["image_id"], "file_name": "x.jpg"}],
            [{"panoptic_seg": (torch.from_numpy(ids.astype(np.int64)), segments)}],
        )
    assert evaluator.evaluate()["panoptic_seg"] == dict.fromkeys(IDS, 100.0)


def test_numbers_of_the_sample_by_sets_of_pixels(shared_dir, names, caplog):
    """COCO's sample against a map that is shifted, with a category changed and a segment left out."""
    sample = shared_dir / "data" / "coco_panoptic_sample" / "sample_data"
    if not sample.is_dir():
        pytest.skip(f"no panoptic sample at {sample}")
    content = json.loads((sample / "panoptic_examples.json").read_text())
    name = names()
    MetadataCatalog.get(name).set(
        panoptic_json=str(sample / "panoptic_examples.json"),
        panoptic_root=str(sample / "panoptic_examples"),
        thing_dataset_id_to_contiguous_id={c["id"]: i for i, c in enumerate(content["categories"]) if c["isthing"]},
        stuff_dataset_id_to_contiguous_id={c["id"]: i for i, c in enumerate(content["categories"]) if not c["isthing"]},
    )
    evaluator = COCOPanopticEvaluator(name)
    expected = {c["id"]: [0.0, 0, 0, 0] for c in content["categories"]}
    for annotation in content["annotations"]:
        ids = rgb_to_id_map(np.array(Image.open(sample / "panoptic_examples" / annotation["file_name"]))).astype(int)
        moved = np.roll(ids, 9, axis=1)
        truth = annotation["segments_info"]
        segments = [{"id": s["id"], "category_id": s["category_id"]} for s in truth]
        segments[0]["category_id"] = 1  # a person
        missing = segments.pop()["id"]
        moved[moved == missing] = 0
        inputs = [{"image_id": annotation["image_id"], "file_name": "x.jpg"}]
        evaluator.process(inputs, [{"panoptic_seg": (torch.tensor(moved), segments)}])
        for s in truth:  # by the definition of section 4.1; no pair of segments is tried twice
            region = ids == s["id"]
            mine = moved == s["id"]
            paired = s["id"] not in (missing, truth[0]["id"]) and not s["iscrowd"]
            iou = (region & mine).sum() / ((region | mine) & ~(mine & (ids == 0))).sum()
            if paired and iou > 0.5:
                expected[s["category_id"]][0] += iou
                expected[s["category_id"]][1] += 1
                continue
            expected[s["category_id"]][3] += not s["iscrowd"]
            if s["id"] != missing:
                category = next(x["category_id"] for x in segments if x["id"] == s["id"])
                crowds = [ids == x["id"] for x in truth if x["iscrowd"] and x["category_id"] == category]
                free = np.logical_or.reduce([ids == 0, *crowds])
                expected[category][2] += bool(mine.any() and (mine & free).sum() / mine.sum() <= 0.5)
    found = evaluator.evaluate()["panoptic_seg"]
    for suffix, wanted in (("", (0, 1)), ("_th", (1,)), ("_st", (0,))):
        rows = [expected[c["id"]] for c in content["categories"] if c["isthing"] in wanted and any(expected[c["id"]])]
        pq = [iou / (tp + fp / 2 + fn / 2) for iou, tp, fp, fn in rows]
        sq = [iou / tp if tp else 0.0 for iou, tp, fp, fn in rows]
        rq = [tp / (tp + fp / 2 + fn / 2) for iou, tp, fp, fn in rows]
        for key, values in (("PQ", pq), ("SQ", sq), ("RQ", rq)):
            assert found[key + suffix] == pytest.approx(100 * sum(values) / len(values)), key + suffix
    assert 0 < found["PQ"] < 90


def test_categories_are_logged(panoptic, caplog):
    ids = np.array([[1, 1, 2, 2]])
    truth = [(ids, [{"id": 1, "category_id": 3}, {"id": 2, "category_id": 91}])]
    with caplog.at_level("INFO"):
        run(COCOPanopticEvaluator(panoptic(truth)), {1: as_output(ids, [{"id": 1, "category_id": 3}])})
    (table,) = [m for m in caplog.messages if "of each category" in m]
    cells = [cell.strip() for cell in table.splitlines()[-1].strip("|").split("|")]
    assert cells == ["cat", "100.000", "sea", "0.000"]


def test_why_nothing_counts(panoptic, caplog):
    ids = np.ones((2, 4), dtype=int)
    name = panoptic([(ids, [{"id": 1, "category_id": 3}])])
    half = np.array([[0, 0, 0, 0], [0, 0, 0, 1]])
    for output, text in (
        (as_output(ids, [{"id": 1, "category_id": 91}]), "predicted are the categories [91], annotated [3]"),
        (as_output(half, [{"id": 1, "category_id": 3}]), "classes agree"),
        (as_output(ids, []), "No predicted segment counts"),
    ):
        caplog.clear()
        run(COCOPanopticEvaluator(name), {1: output})
        assert text in caplog.text
    caplog.clear()
    run(COCOPanopticEvaluator(name), {1: as_output(ids, [{"id": 1, "category_id": 3}])})
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_a_missing_or_wrong_picture_is_named(panoptic, tmp_path):
    ids = np.ones((2, 2), dtype=int)
    evaluator = COCOPanopticEvaluator(panoptic([(ids, [{"id": 1, "category_id": 3}])]))
    output = as_output(ids, [{"id": 1, "category_id": 3}])
    Image.fromarray(ids.astype(np.uint8)).save(tmp_path / "truth" / "1.png")
    with pytest.raises(ValueError, match=r"1\.png: a panoptic PNG has three channels"):
        run(evaluator, {1: output})
    (tmp_path / "truth" / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"picture of image 1 is missing: .*1\.png\. .*panoptic_root"):
        run(evaluator, {1: output})


def test_files_are_written(panoptic, tmp_path):
    truth, predicted = random_case(1, images=1)
    ids, segments = predicted[0]
    ids = ids.copy()
    ids[0, 0] = 12345  # of no segment
    output = as_output(ids, [*segments, {"id": 77, "category_id": 90}])  # and a segment of no pixel
    run(COCOPanopticEvaluator(panoptic(truth), str(tmp_path / "out")), {1: output})
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert set(content) == {"images", "categories", "annotations"}
    annotation = content["annotations"][0]
    assert annotation["image_id"] == 1 and annotation["file_name"] == "1.png"
    assert annotation["segments_info"] == segments
    written = rgb_to_id_map(np.array(Image.open(tmp_path / "out" / "predictions" / "1.png")))
    ids[0, 0] = 0
    np.testing.assert_array_equal(written, ids)


def test_labels_instead_of_segments(panoptic):
    ids = np.array([[1, 1, 2, 2], [1, 1, 0, 2]])
    truth = [(ids, [{"id": 1, "category_id": 5}, {"id": 2, "category_id": 90}])]
    name = panoptic(truth, label_divisor=1000)
    MetadataCatalog.get(name).stuff_dataset_id_to_contiguous_id.clear()
    MetadataCatalog.get(name).stuff_dataset_id_to_contiguous_id.update({90: 2, 91: 3})
    labels = torch.tensor([[1002, 1002, 2000, 2000], [1002, 1002, -1, 2000]])  # dog number 2; sky
    found = run(COCOPanopticEvaluator(name), {1: {"panoptic_seg": (labels, None)}})["panoptic_seg"]
    assert found == dict.fromkeys(IDS, 100.0)


def test_missing_images_count_as_missed(panoptic, caplog):
    ids = np.full((2, 2), 1)
    truth = [(ids, [{"id": 1, "category_id": 3}]), (ids, [{"id": 1, "category_id": 3}])]
    evaluator = COCOPanopticEvaluator(panoptic(truth))
    found = run(evaluator, {1: as_output(*truth[0])})["panoptic_seg"]
    assert found["PQ"] == pytest.approx(100 * 1 / 1.5) and found["SQ"] == 100 and math.isnan(found["PQ_st"])
    assert "1 of 2 images" in caplog.text
    caplog.clear()
    assert run(evaluator, {}) == {} and "no predictions" in caplog.text


def test_counts_of_all_processes_are_added(panoptic, monkeypatch):
    truth, predicted = random_case(0)
    name = panoptic(truth)
    expected = run(COCOPanopticEvaluator(name), {i: as_output(*p) for i, p in enumerate(predicted, start=1)})
    first, second = COCOPanopticEvaluator(name), COCOPanopticEvaluator(name)
    run(second, {3: as_output(*predicted[2])})
    monkeypatch.setattr(
        module.comm, "gather", lambda data, dst: [data, (second._counts, second._predictions, second._seen)]
    )
    assert run(first, {i: as_output(*predicted[i - 1]) for i in (1, 2)}) == expected
    monkeypatch.setattr(module.comm, "is_main_process", lambda: False)
    assert first.evaluate() == {}


def test_predictions_may_be_arrays_and_numbers_of_any_kind(panoptic):
    ids = np.array([[1, 1, 2, 2]] * 2)
    name = panoptic([(ids, [{"id": 1, "category_id": 3}, {"id": 2, "category_id": 90}])])
    segments = [
        {"id": torch.tensor(1), "category_id": torch.tensor(0), "isthing": True},
        {"id": np.int64(2), "category_id": np.int32(1), "isthing": np.bool_(False)},
    ]
    evaluator = COCOPanopticEvaluator(name)
    evaluator.reset()
    evaluator.process([{"image_id": 1, "file_name": "1.jpg"}], [{"panoptic_seg": (ids, segments)}])
    assert evaluator.evaluate()["panoptic_seg"]["PQ"] == pytest.approx(100)
    with pytest.raises(ValueError, match=r"A predicted segment has no id; it has \['category_id', 'isthing'\]"):
        evaluator.process([{"image_id": 1}], [{"panoptic_seg": (ids, [{"category_id": 0, "isthing": True}])}])


def test_an_image_seen_twice_counts_once(panoptic, tmp_path, caplog):
    truth, predicted = random_case(2, images=1)
    evaluator = COCOPanopticEvaluator(panoptic(truth), str(tmp_path / "out"))
    once = run(evaluator, {1: as_output(*predicted[0])})
    assert "more than once" not in caplog.text
    evaluator.process([{"image_id": 1, "file_name": "1.jpg"}], [as_output(*predicted[0])])
    assert evaluator.evaluate() == once
    assert "1 images were given to COCOPanopticEvaluator more than once, such as image_id 1: the last" in caplog.text
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())["annotations"]) == 1


def test_odd_batches_are_named(panoptic):
    evaluator = COCOPanopticEvaluator(panoptic([]))
    evaluator.process([], [])
    with pytest.raises(ValueError, match="COCOPanopticEvaluator got 2 outputs of the model for 1 inputs"):
        evaluator.process([{"image_id": 1}], [{}, {}])
    with pytest.raises(KeyError, match=r"needs 'image_id'; it has .'file_name'."):
        evaluator.process([{"file_name": "1.jpg"}], [{}])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("categories"), "expected the key 'categories'"),
        (lambda c: c["categories"].pop(0), "segment 1 of image id 1 has category_id 3, which is not among the file's"),
        (lambda c: c["annotations"][0].pop("file_name"), "needs 'image_id', 'file_name' and 'segments_info'"),
        (lambda c: c["annotations"][0]["segments_info"][0].pop("id"), "needs 'id' and 'category_id'"),
        (lambda c: c.update(annotations={}), "annotations: expected a list"),
    ],
)
def test_files_that_loading_would_not_take_are_refused_before_an_evaluation(panoptic, change, message):
    name = panoptic([(np.ones((2, 3), dtype=np.int64), [{"id": 1, "category_id": 3}])])
    path = MetadataCatalog.get(name).panoptic_json
    with open(path, encoding="utf-8") as f:
        content = json.load(f)
    with open(path, "w", encoding="utf-8-sig") as f:  # the mark at the beginning is no mistake
        json.dump(content, f)
    COCOPanopticEvaluator(name)
    change(content)
    with open(path, "w", encoding="utf-8") as f:
        json.dump(content, f)
    with pytest.raises(ValueError, match=message):
        COCOPanopticEvaluator(name)


def test_without_annotations_results_are_only_written(panoptic, tmp_path):
    truth, predicted = random_case(3, images=1)
    evaluator = COCOPanopticEvaluator(panoptic(truth, scored=False), str(tmp_path / "out"))
    assert run(evaluator, {1: as_output(*predicted[0])}) == {}
    assert (tmp_path / "out" / "predictions" / "1.png").exists()


def test_wrong_use_is_explained(panoptic, names, tmp_path):
    with pytest.raises(ValueError, match=r"\['panoptic_json', 'panoptic_root'"):
        COCOPanopticEvaluator(names())
    ids = np.ones((2, 3), dtype=np.int64)
    name = panoptic([(ids, [{"id": 1, "category_id": 3}])])
    evaluator = COCOPanopticEvaluator(name)
    segment = {"id": 1, "isthing": True, "category_id": 0}
    for image_id, output, message in (
        (1, {"sem_seg": 0}, "'panoptic_seg'"),
        (1, {"panoptic_seg": (torch.ones(3, 3, dtype=torch.int32), [segment])}, r"\(2, 3\), the prediction \(3, 3\)"),
        (9, {"panoptic_seg": (torch.from_numpy(ids), [segment])}, "Image id 9"),
        (1, {"panoptic_seg": (torch.from_numpy(ids), [{**segment, "category_id": 2}])}, "thing category 2"),
        (1, {"panoptic_seg": (torch.from_numpy(ids), [{**segment, "isthing": False}])}, "stuff category 0"),
        (1, {"panoptic_seg": (torch.from_numpy(ids), [{"id": 1, "category_id": 4}])}, "has the category 4"),
        (1, {"panoptic_seg": (torch.from_numpy(ids), None)}, "label_divisor"),
    ):
        with pytest.raises(ValueError, match=message):
            run(evaluator, {image_id: output})
    (tmp_path / "truth.json").write_text('{"categories": [{"id": 1}]}')
    with pytest.raises(ValueError, match="isthing"):
        COCOPanopticEvaluator(name)
