"""A label means the same class in the weights and in every data set that they meet."""

import json
import logging

import numpy as np
import pytest
import torch

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.validation import DatasetError
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.engine.class_names import match_classes
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, build_model


@pytest.fixture
def weights(cfg, tmp_path):
    """Weights that say which classes they know, those of the generated data."""
    cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD = 1, 0
    cfg.DATASETS.TEST = ()
    trainer = DefaultTrainer(cfg)
    trainer.train()
    logging.getLogger("detectron2").propagate = True  # the trainer has set up logging; caplog listens at the root
    return str(tmp_path / "output" / "model_final.pth")


@pytest.fixture
def other(shapes_dir, tmp_path):
    """Register the same data with a changed list of category names, by id, and return the name."""
    names = []

    def register(change, name="other_shapes", reverse=False):
        content = json.loads((shapes_dir / "annotations.json").read_text())
        count = len(content["categories"])
        if reverse:
            for c in content["categories"]:
                c["id"] = count + 1 - c["id"]
            for a in content["annotations"]:
                a["category_id"] = count + 1 - a["category_id"]
        for c in content["categories"]:
            c["name"] = change(c["name"])
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        register_coco_instances(name, {}, str(tmp_path / f"{name}.json"), str(shapes_dir / "images"))
        names.append(name)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def loaded(cfg, weights):
    model = build_model(cfg)
    DetectionCheckpointer(model).load_for_inference(weights)
    return model.eval()


def test_other_order_gives_the_same_numbers(cfg, weights, other, shapes, caplog):
    cfg.DATASETS.TEST = (shapes,)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    expected = DefaultTrainer.test(cfg, loaded(cfg, weights))
    name = other(str, reverse=True)
    cfg.DATASETS.TEST = (name,)
    with caplog.at_level(logging.WARNING):
        found = DefaultTrainer.test(cfg, loaded(cfg, weights))
        again = DefaultTrainer.test(cfg, loaded(cfg, weights))
    assert found.keys() == expected.keys()
    for task, numbers in expected.items():
        for metric, value in numbers.items():
            assert found[task][metric] == pytest.approx(value, nan_ok=True), metric
            assert again[task][metric] == pytest.approx(value, nan_ok=True), metric
    assert sum("the same in another order" in r.getMessage() for r in caplog.records) == 1


def test_truth_has_the_labels_of_the_weights(cfg, weights, other, shapes):
    name = other(str, reverse=True)
    assert match_classes(loaded(cfg, weights), [name])
    there, here = DatasetCatalog.get(name), DatasetCatalog.get(shapes)
    assert MetadataCatalog.get(name).thing_classes == MetadataCatalog.get(shapes).thing_classes
    for a, b in zip(there, here, strict=True):
        assert [o["category_id"] for o in a["annotations"]] == [o["category_id"] for o in b["annotations"]]


def test_records_of_a_function(cfg, weights, shapes):
    """A data set without a file, and colours that go with the names."""
    DatasetCatalog.get(shapes)
    names = list(MetadataCatalog.get(shapes).thing_classes)
    DatasetCatalog.register("own", lambda: [{"image_id": 1, "annotations": [{"category_id": i} for i in range(6)]}])
    colors = [(i, i, i) for i in range(6)]
    MetadataCatalog.get("own").set(thing_classes=[*names[1:], names[0]], thing_colors=colors)
    try:
        for _ in range(2):
            match_classes(loaded(cfg, weights), ["own"])
            found = [a["category_id"] for a in DatasetCatalog.get("own")[0]["annotations"]]
            assert found == [1, 2, 3, 4, 5, 0]
            assert MetadataCatalog.get("own").thing_colors == [colors[5], *colors[:5]]
    finally:
        DatasetCatalog.remove("own")
        MetadataCatalog.remove("own")


def test_other_names_are_an_error_with_both_lists(cfg, weights, other, shapes):
    name = other(lambda c: "nut" if c == MetadataCatalog.get(shapes).thing_classes[2] else c)
    cfg.DATASETS.TEST = (name,)
    with pytest.raises(DatasetError) as e:
        DefaultTrainer.test(cfg, loaded(cfg, weights))
    for listed in (MetadataCatalog.get(shapes).thing_classes, MetadataCatalog.get(name).thing_classes):
        assert str(listed) in str(e.value)


def test_other_spelling_is_the_same_name(cfg, weights, other):
    name = other(lambda c: f" {c.upper()}")
    assert not match_classes(loaded(cfg, weights), [name])


def test_model_that_was_trained_since_is_not_compared(cfg, weights, other):
    model, name = loaded(cfg, weights), other(lambda c: c + "s")
    torch.optim.SGD(model.parameters(), 0.1).step()  # without gradients nothing is written
    with pytest.raises(DatasetError):
        match_classes(model, [name])
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    torch.optim.SGD(model.parameters(), 0.1).step()
    assert not match_classes(model, [name])


class NamedAtTest(GeneralizedRCNN):
    """Stands for a model of an open vocabulary: it is told the classes of each data set."""


def test_models_of_an_open_vocabulary_meet_other_classes(cfg, weights, other, shapes, caplog):
    """They train on some classes and are evaluated on others, which no order binds to a label."""
    name = other(lambda c: {"disc": "square", "square": "disc"}.get(c, f"{c}s"))
    META_ARCH_REGISTRY.register(NamedAtTest)
    try:
        cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.WEIGHTS = "NamedAtTest", weights
        cfg.DATASETS.TEST, cfg.TEST.EVAL_PERIOD, cfg.SOLVER.MAX_ITER = (name,), 1, 1
        with caplog.at_level(logging.WARNING):
            assert DefaultTrainer.test(cfg, loaded(cfg, weights))["bbox"]
        assert "the model's labels do not mean these classes" in caplog.text
        assert DefaultTrainer(cfg).train()["bbox"]
    finally:
        META_ARCH_REGISTRY._obj_map.pop("NamedAtTest")
    cfg.MODEL.META_ARCHITECTURE, cfg.OUTPUT_DIR = "GeneralizedRCNN", cfg.OUTPUT_DIR + "_2"
    with pytest.raises(DatasetError, match="square"):
        DefaultTrainer(cfg).train()


@pytest.mark.parametrize("fused", [False, True])
def test_fine_tuning_on_other_classes_is_evaluated(cfg, weights, other, fused):
    """An update in one kernel writes to parameters without PyTorch's count of writes."""
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (other(lambda c: c + "s"),)
    cfg.MODEL.WEIGHTS, cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD = weights, 2, 1
    cfg.SOLVER.FUSED = fused
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=False)
    assert trainer.train()["bbox"]


@pytest.mark.parametrize("resume", [False, True])
def test_training_goes_on_with_the_labels_of_the_weights(cfg, weights, other, shapes, resume):
    cfg.DATASETS.TRAIN = (other(str, reverse=True),)
    cfg.DATASETS.TEST = (other(str, "other_test", reverse=True),)
    cfg.MODEL.WEIGHTS, cfg.SOLVER.MAX_ITER = weights, 3
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    for data in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        assert MetadataCatalog.get(data).thing_classes == MetadataCatalog.get(shapes).thing_classes
    truth = {r["image_id"]: sorted(a["category_id"] for a in r["annotations"]) for r in DatasetCatalog.get(shapes)}
    seen = 0
    for batch, _ in zip(trainer._trainer._data_loader_iter, range(3), strict=False):
        for sample in batch:
            counts = [np.bincount(x, minlength=6) for x in (sample["instances"].gt_classes, truth[sample["image_id"]])]
            assert (counts[0] <= counts[1]).all() and counts[0].sum()  # what a crop left
            seen += 1
    assert seen


def test_resuming_with_other_names_is_an_error_and_beginning_is_not(cfg, weights, other, caplog):
    cfg.DATASETS.TRAIN = (other(lambda c: c + "s"),)
    cfg.MODEL.WEIGHTS, cfg.SOLVER.MAX_ITER = weights, 3
    with pytest.raises(DatasetError, match="a label means another class"):
        DefaultTrainer(cfg).resume_or_load(resume=True)
    with caplog.at_level(logging.WARNING):
        DefaultTrainer(cfg).resume_or_load(resume=False)
    assert "until it is trained on this data set" in caplog.text


def test_predictor_shows_the_names_of_the_weights(cfg, weights, other, shapes):
    name = other(str, reverse=True)
    DatasetCatalog.get(name)
    cfg.DATASETS.TEST, cfg.MODEL.WEIGHTS = (name,), weights
    assert DefaultPredictor(cfg).metadata.thing_classes == MetadataCatalog.get(shapes).thing_classes
