"""Evaluators in two processes, each with a part of the images, give what one process gives, and send arrays."""

import copy
import json
import pickle
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    RotatedCOCOEvaluator,
    SemSegEvaluator,
    _coco_table,
)
from detectron2.structures import Boxes, Instances, RotatedBoxes
from detectron2.utils import comm

HEIGHT, WIDTH, IMAGES, CLASSES, KEYPOINTS = 40, 50, 5, 3, 4
FIRST_SHARE = 4  # images of rank 0


# --- data, the same in every process ----------------------------------------------------------------------------------


def _xywh(rng, count):
    return np.concatenate([rng.uniform(0, 25, (count, 2)), rng.uniform(4, 15, (count, 2))], 1).round(1)


def _write(folder):
    """Ground truth for all evaluators."""
    rng = np.random.default_rng(0)
    images = [
        {
            "id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH, "neg_category_ids": [],
            "not_exhaustive_category_ids": [],
        }
        for i in range(1, IMAGES + 1)
    ]  # fmt: skip
    categories = [{"id": c + 1, "name": f"c{c}", "frequency": "rcf"[c]} for c in range(CLASSES)]
    annotations = []
    for image in images:
        for x, y, w, h in _xywh(rng, 4).tolist():
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image["id"], "category_id": int(rng.integers(CLASSES)) + 1,
                    "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "num_keypoints": KEYPOINTS,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    "keypoints": [*[x, y, 2], *[x + w, y, 2], *[x + w, y + h, 2], *[x, y + h, 2]],
                }
            )  # fmt: skip
    dataset = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    (folder / "coco.json").write_text(json.dumps(dataset))
    rotated = copy.deepcopy(dataset)
    for annotation in rotated["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x + w / 2, y + h / 2, w, h, float(rng.uniform(-90, 90))]
    (folder / "rotated.json").write_text(json.dumps(rotated))
    _write_maps(folder, rng)
    _write_voc(folder, annotations)


def _write_maps(folder, rng):
    """Label maps, and the same as panoptic ground truth: a segment for each label."""
    (folder / "maps").mkdir()
    panoptic = {
        "images": [{"id": i} for i in range(1, IMAGES + 1)],
        "categories": [{"id": c, "name": f"c{c}", "isthing": int(c == 1)} for c in range(1, CLASSES + 1)],
        "annotations": [],
    }
    for i in range(1, IMAGES + 1):
        labels = rng.integers(0, CLASSES, (HEIGHT // 10, WIDTH // 10)).repeat(10, 0).repeat(10, 1).astype(np.uint8)
        Image.fromarray(labels).save(folder / "maps" / f"{i}.png")
        ids = np.stack([labels + 1, 0 * labels, 0 * labels], 2)
        Image.fromarray(ids).save(folder / "maps" / f"panoptic_{i}.png")
        segments = [
            {"id": int(v) + 1, "category_id": int(v) + 1, "area": int((labels == v).sum()), "iscrowd": 0}
            for v in np.unique(labels)
        ]
        panoptic["annotations"].append({"image_id": i, "file_name": f"panoptic_{i}.png", "segments_info": segments})
    (folder / "panoptic.json").write_text(json.dumps(panoptic))


def _write_voc(folder, annotations):
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "val.txt").write_text("".join(f"{i}\n" for i in range(1, IMAGES + 1)))
    for i in range(1, IMAGES + 1):
        body = ""
        for a in (a for a in annotations if a["image_id"] == i):
            x, y, w, h = a["bbox"]
            sides = zip(("xmin", "ymin", "xmax", "ymax"), (x + 1, y + 1, x + w, y + h), strict=True)
            box = "".join(f"<{side}>{value:.0f}</{side}>" for side, value in sides)
            body += f"<object><name>c{a['category_id'] - 1}</name><bndbox>{box}</bndbox></object>"
        (folder / "Annotations" / f"{i}.xml").write_text(f"<annotation>{body}</annotation>")


def _register(folder):
    to_contiguous = {c + 1: c for c in range(CLASSES)}
    common = {"thing_classes": [f"c{c}" for c in range(CLASSES)], "thing_dataset_id_to_contiguous_id": to_contiguous}
    MetadataCatalog.get("two_coco").set(json_file=str(folder / "coco.json"), **common)
    MetadataCatalog.get("two_rotated").set(json_file=str(folder / "rotated.json"), **common)
    MetadataCatalog.get("two_voc").set(
        dirname=str(folder), split="val", year=2012, thing_classes=common["thing_classes"]
    )
    records = [
        {"file_name": f"{i}.jpg", "sem_seg_file_name": str(folder / "maps" / f"{i}.png")} for i in range(1, IMAGES + 1)
    ]
    DatasetCatalog.register("two_maps", lambda: records)
    MetadataCatalog.get("two_maps").set(stuff_classes=common["thing_classes"], ignore_label=255)
    MetadataCatalog.get("two_panoptic").set(
        panoptic_json=str(folder / "panoptic.json"), panoptic_root=str(folder / "maps"),
        thing_dataset_id_to_contiguous_id={1: 0}, stuff_dataset_id_to_contiguous_id={2: 1, 3: 2},
    )  # fmt: skip


def _forget():
    DatasetCatalog.remove("two_maps")
    for name in ("two_coco", "two_rotated", "two_voc", "two_maps", "two_panoptic"):
        MetadataCatalog.remove(name)


def _predictions(folder):
    """For each image (input, output) with everything that a model may predict."""
    dataset = json.loads((folder / "coco.json").read_text())
    turned = json.loads((folder / "rotated.json").read_text())["annotations"]
    rng = np.random.default_rng(1)
    pairs = []
    for i in range(1, IMAGES + 1):
        rows = [k for k, a in enumerate(dataset["annotations"]) if a["image_id"] == i]
        found = np.array([dataset["annotations"][k]["bbox"] for k in rows])
        found = np.concatenate([found + rng.normal(0, 0.7, found.shape), _xywh(rng, 3)])
        xyxy = torch.tensor(np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], 1), dtype=torch.float32)
        instances = Instances((HEIGHT, WIDTH), pred_boxes=Boxes(xyxy))
        # few scores, so that there are ties, whose order must not depend on the number of processes
        instances.scores = torch.tensor(rng.integers(1, 6, len(xyxy)) / 6)
        classes = [dataset["annotations"][k]["category_id"] - 1 for k in rows] + [0, 1, 2]
        instances.pred_classes = torch.tensor(classes)
        y, x = np.mgrid[:HEIGHT, :WIDTH]
        inside = [(x >= a) & (y >= b) & (x < c) & (y < d) for a, b, c, d in xyxy.tolist()]
        instances.pred_masks = torch.from_numpy(np.stack(inside))
        corners = torch.stack([xyxy[:, [0, 1]], xyxy[:, [2, 1]], xyxy[:, [2, 3]], xyxy[:, [0, 3]]], 1)
        instances.pred_keypoints = torch.cat([corners + 0.5, torch.ones(len(xyxy), KEYPOINTS, 1)], 2)
        proposals = Instances((HEIGHT, WIDTH), proposal_boxes=Boxes(xyxy), objectness_logits=instances.scores)
        labels = np.asarray(Image.open(folder / "maps" / f"{i}.png")).copy()
        labels[: HEIGHT // 3] = rng.integers(CLASSES)
        scores = torch.nn.functional.one_hot(torch.from_numpy(labels).long(), CLASSES).permute(2, 0, 1).float()
        segments = [{"id": int(v) + 1, "category_id": int(v), "isthing": bool(v == 0)} for v in np.unique(labels)]
        boxes = np.array([turned[k]["bbox"] for k in rows], dtype=np.float32)
        rotated = Instances((HEIGHT, WIDTH), pred_boxes=RotatedBoxes(torch.from_numpy(boxes) + 1.0))
        rotated.scores, rotated.pred_classes = instances.scores[: len(rows)], instances.pred_classes[: len(rows)]
        outputs = {
            "instances": {"instances": instances}, "proposals": {"proposals": proposals},
            "rotated": {"instances": rotated}, "sem_seg": {"sem_seg": scores},
            "panoptic": {"panoptic_seg": (torch.from_numpy(labels).int() + 1, segments)},
        }  # fmt: skip
        pairs.append(({"image_id": i, "file_name": f"{i}.jpg"}, outputs))
    return pairs


def _evaluators(output):
    """Name -> (evaluator, which outputs it gets)."""
    sigmas = [0.1] * KEYPOINTS
    tasks = ("bbox", "segm", "keypoints")
    return {
        "coco": (COCOEvaluator("two_coco", tasks, output_dir=f"{output}/coco", kpt_oks_sigmas=sigmas), "instances"),
        "proposals": (COCOEvaluator("two_coco", output_dir=f"{output}/proposals"), "proposals"),
        "lvis": (LVISEvaluator("two_coco", ("bbox", "segm"), output_dir=f"{output}/lvis"), "instances"),
        "rotated": (RotatedCOCOEvaluator("two_rotated", output_dir=f"{output}/rotated"), "rotated"),
        "voc": (DatasetEvaluators([PascalVOCDetectionEvaluator("two_voc")]), "instances"),
        "sem_seg": (SemSegEvaluator("two_maps", output_dir=f"{output}/sem_seg"), "sem_seg"),
        "panoptic": (COCOPanopticEvaluator("two_panoptic", f"{output}/panoptic"), "panoptic"),
    }


def _run(folder, output, gather):
    """Evaluate this process's images -> results, and what was sent, by evaluator."""
    _register(folder)
    pairs, results, sent = _predictions(folder), {}, {}
    if comm.get_world_size() > 1:
        pairs = pairs[:FIRST_SHARE] if comm.is_main_process() else pairs[FIRST_SHARE:]
    for name, (evaluator, kind) in _evaluators(output).items():
        evaluator.reset()
        for input_, outputs in pairs:
            evaluator.process([input_], [outputs[kind]])
        gather.reset_mock()
        results[name] = evaluator.evaluate()
        sent[name] = [pickle.loads(pickle.dumps(call.args[0])) for call in gather.call_args_list]
    return results, sent


def _in_one_of_two(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    with mock.patch.object(comm, "gather", wraps=comm.gather) as gather:
        results, sent = _run(folder, folder / "two", gather)
    with open(folder / f"{rank}.pkl", "wb") as f:
        pickle.dump((results, sent), f)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return (folder, what one process found, what each of two found)."""
    folder = tmp_path_factory.mktemp("two_processes")
    _write(folder)
    try:
        with mock.patch.object(comm, "gather", wraps=comm.gather) as gather:
            one, _ = _run(folder, folder / "one", gather)
    finally:
        _forget()
    mp.spawn(_in_one_of_two, (folder,), nprocs=2)
    return folder, one, [pickle.loads((folder / f"{rank}.pkl").read_bytes()) for rank in (0, 1)]


NAMES = ["coco", "proposals", "lvis", "rotated", "voc", "sem_seg", "panoptic"]


@pytest.mark.parametrize("name", NAMES)
def test_the_results_are_the_same(runs, name):
    _, one, two = runs
    assert one[name]
    assert two[0][0][name].keys() == one[name].keys()
    for task, metrics in one[name].items():
        np.testing.assert_equal(dict(two[0][0][name][task]), dict(metrics))  # NaN equals NaN
        assert any(0 < value < 100 for value in metrics.values())
    assert not two[1][0][name]


@pytest.mark.parametrize("name", NAMES)
def test_results_are_gathered_once(runs, name):
    for _, sent in runs[2]:
        assert len(sent[name]) == 1


def _objects(value):
    """How many lists, tuples and dictionaries of Python there are in a message."""
    if isinstance(value, dict):
        return 1 + sum(map(_objects, value.values()))
    return 1 + sum(map(_objects, value)) if isinstance(value, (list, tuple)) else 0


@pytest.mark.parametrize("name", ["coco", "proposals", "lvis", "rotated", "voc"])
def test_arrays_are_sent_and_not_an_object_for_each_result(runs, name):
    (message,) = runs[2][0][1][name]
    assert _objects(message) <= 6 + FIRST_SHARE  # a tuple or so, and the sizes of images
    assert not isinstance(message, _coco_table.ResultTable)


@pytest.mark.parametrize(
    "name",
    [
        "coco/coco_instances_results.json",
        "lvis/lvis_instances_results.json",
        "rotated/coco_instances_results.json",
        "sem_seg/sem_seg_predictions.json",
        "panoptic/predictions.json",
    ],
)
def test_the_files_are_the_same(runs, name):
    one, two = (json.loads((runs[0] / count / name).read_text()) for count in ("one", "two"))
    assert one == two and one


def test_predictions_that_can_be_loaded_are_the_same(runs):
    for name in ("coco", "lvis", "rotated"):
        one, two = (
            torch.load(runs[0] / count / name / "instances_predictions.pth", weights_only=True)
            for count in ("one", "two")
        )
        assert one == two and [p["image_id"] for p in one] == [1, 2, 3, 4, 5]
