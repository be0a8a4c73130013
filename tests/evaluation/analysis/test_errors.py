"""Types of errors and confusion: against a slow version, written from the paper's definitions."""

import contextlib
import copy
import io
import math

import hotcoco
import numpy as np
import pytest

from detectron2.evaluation.analysis import analyze_detections

TYPES = ("classification", "localization", "both", "duplicate", "background", "missed")
RECALLS = np.linspace(0, 1, 101)


def overlap(a, b, is_crowd=False):
    """IoU of boxes (x, y, width, height); with a crowd the covered share of the first."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    common = max(w, 0) * max(h, 0)
    return common / (a[2] * a[3] if is_crowd else a[2] * a[3] + b[2] * b[3] - common)


def random_case(seed, crowds=0.1, images=5, classes=3):
    rng = np.random.default_rng(seed)
    objects, rows = [], []
    for image in range(images):
        for _ in range(int(rng.integers(0, 7))):
            wh = rng.uniform(10, 60, 2)
            xy = rng.uniform(0, 140, 2)
            label = int(rng.integers(classes))
            crowd = int(rng.random() < crowds)
            objects.append({"image_id": image, "category_id": label, "bbox": [*xy, *wh], "iscrowd": crowd})
            for _ in range(int(rng.integers(0, 4))):
                box = np.array([*xy, *wh]) + rng.normal(0, 0.15, 4) * np.array([*wh, *wh])
                guess = label if rng.random() < 0.7 else int(rng.integers(classes))
                box[2:] = np.maximum(box[2:], 2)
                rows.append({"image_id": image, "category_id": guess, "bbox": box.tolist(), "score": rng.random()})
    for number, a in enumerate(objects, 1):
        a["bbox"] = [float(v) for v in a["bbox"]]
        a |= {"id": number, "area": a["bbox"][2] * a["bbox"][3]}
    dataset = {
        "images": [{"id": i, "height": 200, "width": 200} for i in range(images)],
        "categories": [{"id": c, "name": f"c{c}"} for c in range(classes)],
        "annotations": objects,
    }
    return dataset, rows


def slow_matches(objects, rows):
    """Return for each row the object it has found (None), or "crowd"; COCO's matching at 0.5."""
    outcome, taken = {}, set()
    for r in sorted(range(len(rows)), key=lambda r: -rows[r]["score"]):
        best, what = 0.5, None
        for g, a in enumerate(objects):
            if (a["image_id"], a["category_id"]) != (rows[r]["image_id"], rows[r]["category_id"]) or a["iscrowd"]:
                continue
            value = overlap(rows[r]["bbox"], a["bbox"])
            if g not in taken and value >= best:
                best, what = value, g
        if what is None and any(
            a["iscrowd"]
            and (a["image_id"], a["category_id"]) == (rows[r]["image_id"], rows[r]["category_id"])
            and overlap(rows[r]["bbox"], a["bbox"], True) >= 0.5
            for a in objects
        ):
            what = "crowd"
        elif what is not None:
            taken.add(what)
        outcome[r] = what
    return outcome


def slow_ap(detections, count):
    """AP of (score, is right) with a number of objects; None if there is nothing of the class."""
    if count == 0:
        return 0.0 if detections else None
    right, curve = 0, []
    for n, (_, is_right) in enumerate(sorted(detections, key=lambda d: -d[0]), 1):
        right += is_right
        curve.append((right / count, right / n))
    return sum(max((p for r, p in curve if r >= recall), default=0) for recall in RECALLS) / 101


def slow_tide(dataset, rows):
    """Return counts by (type, class), AP gains by type, and by (type, class)."""
    objects = dataset["annotations"]
    outcome = slow_matches(objects, rows)
    kind, target = {}, {}
    for r, row in enumerate(rows):
        if outcome[r] is not None:
            continue
        here = [g for g, a in enumerate(objects) if a["image_id"] == row["image_id"] and not a["iscrowd"]]
        value = {g: overlap(row["bbox"], objects[g]["bbox"]) for g in here}
        same = max((g for g in here if objects[g]["category_id"] == row["category_id"]), key=value.get, default=None)
        other = max((g for g in here if objects[g]["category_id"] != row["category_id"]), key=value.get, default=None)
        if same is not None and 0.1 <= value[same] < 0.5:
            kind[r], target[r] = "localization", same
        elif other is not None and value[other] >= 0.5:
            kind[r], target[r] = "classification", other
        elif same is not None and value[same] >= 0.5:
            kind[r] = "duplicate"
        elif max(value.values(), default=0) < 0.1:
            kind[r] = "background"
        else:
            kind[r] = "both"
    found = {g for g in outcome.values() if isinstance(g, int)}
    real = [g for g, a in enumerate(objects) if not a["iscrowd"]]
    missed = [g for g in real if g not in found and g not in target.values()]
    counts = {(t, c["id"]): 0 for t in TYPES for c in dataset["categories"]}
    for r, t in kind.items():
        counts[t, rows[r]["category_id"]] += 1
    for g in missed:
        counts["missed", objects[g]["category_id"]] += 1
    meant = {}  # of all that were meant for one object that nothing has found, the best
    for r in sorted(target, key=lambda r: -rows[r]["score"]):
        if target[r] not in found:
            meant.setdefault(target[r], r)

    def scores(correct):
        detections = {c["id"]: [] for c in dataset["categories"]}
        number = {c["id"]: sum(objects[g]["category_id"] == c["id"] for g in real) for c in dataset["categories"]}
        for r, row in enumerate(rows):
            if outcome[r] == "crowd":
                continue
            label, right = row["category_id"], outcome[r] is not None
            if kind.get(r) == correct or (correct == "false positives" and not right):
                if meant.get(target.get(r)) != r or correct == "false positives":
                    continue
                label, right = objects[target[r]]["category_id"], True
            detections[label].append((row["score"], right))
        gone = missed if correct == "missed" else set(real) - found if correct == "false negatives" else []
        with_objects = [c for c, n in number.items() if n]
        for g in gone:
            number[objects[g]["category_id"]] -= 1
        averages = {c: slow_ap(detections[c], number[c]) for c in with_objects}
        return {c: ap for c, ap in averages.items() if ap is not None}

    base, gains, of_classes = scores("nothing"), {}, {}
    for t in (*TYPES, "false positives", "false negatives"):
        changed = scores(t)
        gains[t] = np.mean(list(changed.values())) - np.mean(list(base.values())) if changed else math.nan
        of_classes |= {(t, c): changed[c] - base[c] for c in changed}
    return counts, gains, of_classes


def test_nothing_at_all():
    dataset = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "a"}], "annotations": []}
    result = analyze_detections(dataset, [])
    assert all(e.count == 0 and math.isnan(e.delta_ap) for e in result.errors.values())
    assert all(math.isnan(gain) for gain in result.gains.values())


@pytest.mark.parametrize("seed", range(12))
def test_against_the_slow_version(seed):
    dataset, rows = random_case(seed)
    result = analyze_detections(dataset, rows)
    counts, gains, of_classes = slow_tide(dataset, rows)
    assert tuple(result.errors) == TYPES
    for name in TYPES:
        assert result.errors[name].count == sum(n for (t, _), n in counts.items() if t == name)
        assert result.errors[name].delta_ap == pytest.approx(gains[name], abs=1e-12, nan_ok=True)
        for c, errors in enumerate(result.class_errors):
            assert errors[name].count == counts[name, c]
            expected = of_classes.get((name, c), math.nan)
            assert errors[name].delta_ap == pytest.approx(expected, abs=1e-12, nan_ok=True)
    for name in ("false positives", "false negatives"):
        assert result.gains[name] == pytest.approx(gains[name], abs=1e-12, nan_ok=True)


def test_error_of_each_detection():
    dataset, rows = random_case(3)
    result = analyze_detections(dataset, rows)
    wrong = result.is_counted & ~result.is_right
    assert ((result.error >= 0) == wrong).all() and wrong.sum() > 5
    for place, name in enumerate(list(result.errors)[:-1]):
        assert (result.error == place).sum() == result.errors[name].count


@pytest.mark.parametrize("seed", range(6))
def test_counts_of_another_program(seed):
    """hotcoco counts the same types, if nothing is a crowd."""
    dataset, rows = random_case(100 + seed, crowds=0)
    for entry in (*dataset["annotations"], *rows, *dataset["categories"]):
        key = "category_id" if "category_id" in entry else "id"
        entry[key] += 1
    truth = hotcoco.COCO(dataset)
    engine = hotcoco.COCOeval(truth, truth.load_res(copy.deepcopy(rows)), "bbox")
    with contextlib.redirect_stdout(io.StringIO()):
        engine.evaluate()
    expected = engine.tide_errors(pos_thr=0.5, bg_thr=0.1)
    result = analyze_detections(dataset, rows)
    names = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")
    assert [e.count for e in result.errors.values()] == [expected["counts"][n] for n in names]
    gains = [e.delta_ap for e in list(result.errors.values())[:5]]
    assert gains == pytest.approx([expected["delta_ap"][n] for n in names[:5]], abs=1e-9)


def test_of_two_for_one_object_the_better_is_corrected():
    box = [0.0, 0.0, 10.0, 10.0]
    dataset = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": box, "area": 100.0}],
    }
    rows = [
        {"image_id": 1, "category_id": 2, "bbox": box, "score": 0.9},  # the wrong class
        {"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 30], "score": 0.8},  # the wrong place
    ]
    errors = analyze_detections(dataset, rows).errors
    assert errors["classification"].delta_ap == pytest.approx(1.0)
    assert errors["localization"].delta_ap == 0.0  # the other one is meant for the object too, and is better
    assert (errors["missed"].count, errors["duplicate"].count) == (0, 0)


def slow_confusion(dataset, rows, result, iou, threshold):
    """Right detections as they are, the others one to one by falling overlap, whatever the class."""
    objects, size = dataset["annotations"], len(dataset["categories"])
    matrix = np.zeros((size + 1, size + 1), int)
    shown = [r for r, row in enumerate(rows) if row["score"] >= threshold]
    for r in shown:
        matrix[(rows[r]["category_id"],) * 2] += bool(result.is_right[r])
    wrong = {r for r in shown if result.is_counted[r] and not result.is_right[r]}
    missed = {g for g, a in enumerate(objects) if not a["iscrowd"] and not result.is_found[g]}
    pairs = []
    for r in wrong:
        for g in missed:
            value = overlap(rows[r]["bbox"], objects[g]["bbox"], 0)
            if rows[r]["image_id"] == objects[g]["image_id"] and value >= iou:
                pairs.append((-value, r, g))
    for _, r, g in sorted(pairs):
        if r in wrong and g in missed:
            wrong.remove(r)
            missed.remove(g)
            matrix[objects[g]["category_id"], rows[r]["category_id"]] += 1
    for g in missed:
        matrix[objects[g]["category_id"], size] += 1
    for r in wrong:
        matrix[size, rows[r]["category_id"]] += 1
    return matrix


@pytest.mark.parametrize(("seed", "iou", "threshold"), [(0, 0.5, 0.5), (1, 0.3, 0.0), (2, 0.7, 0.2), (3, 0.15, 0.9)])
def test_confusion_against_the_slow_version(seed, iou, threshold):
    dataset, rows = random_case(seed, images=8)
    result = analyze_detections(dataset, rows, iou_threshold=iou, score_threshold=threshold)
    expected = slow_confusion(dataset, rows, result, iou, threshold)
    assert result.confusion.tolist() == expected.tolist()
    assert sum(n for _, _, n in result.confused()) == expected.sum() > 0
    names = ["c0", "c1", "c2", "background"]
    assert all(expected[names.index(t), names.index(p)] == n for t, p, n in result.confused())
