import os
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    CityscapesEvaluator,
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    DatasetEvaluator,
)
from detectron2.evaluation import cityscapes_evaluation as module
from detectron2.layers import encode_masks
from detectron2.structures import ROIMasks

THINGS = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
SEMANTIC = {
    "averageScoreClasses": 0.5, "averageScoreInstClasses": 0.25, "averageScoreCategories": 0.75,
    "averageScoreInstCategories": 0.125,
}  # fmt: skip


def _writes_a_file(content, path):
    raise AssertionError(f"the package wrote {path}")


@pytest.fixture
def package(monkeypatch):
    """A stand-in for cityscapesscripts that reads what it is given and keeps it."""
    seen = {}

    def instance_level(predictions, truth, args):
        print("a lot")
        # The package calls this function, which new versions of NumPy lack.
        in1d = getattr(np, "in1d")  # noqa: B009
        assert in1d(np.array([[1, 2], [3, 4]]), [2, 3]).tolist() == [False, True, True, False]
        modules["cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling"].writeDict2JSON({}, "matches.json")
        seen.update(args=args, truth=truth, lines={}, masks={})
        for path in predictions:
            assert path.startswith(args.predictionPath)
            with open(path) as f:
                lines = [line.split(" ") for line in f.read().splitlines()]
            seen["lines"][os.path.basename(path)] = [(int(label), float(score)) for _, label, score in lines]
            masks = [np.array(Image.open(os.path.join(os.path.dirname(path), line[0]))) for line in lines]
            seen["masks"][os.path.basename(path)] = masks
        return {"averages": {"allAp": 0.25, "allAp50%": 0.5}}

    def pixel_level(predictions, truth, args):
        seen.update(args=args, truth=truth, maps=[np.array(Image.open(path)) for path in predictions])
        return SEMANTIC

    root, evaluation = types.ModuleType("cityscapesscripts"), types.ModuleType("cityscapesscripts.evaluation")
    modules = {"cityscapesscripts": root, "cityscapesscripts.evaluation": evaluation}
    for name, function in (
        ("evalInstanceLevelSemanticLabeling", instance_level), ("evalPixelLevelSemanticLabeling", pixel_level),
    ):  # fmt: skip
        full = f"cityscapesscripts.evaluation.{name}"
        modules[full] = types.ModuleType(full)
        modules[full].args = types.SimpleNamespace(predictionPath="untouched", quiet=False)
        modules[full].evaluateImgLists = function
        modules[full].writeDict2JSON = _writes_a_file
    for name, fake in modules.items():
        monkeypatch.setitem(sys.modules, name, fake)
    seen["modules"] = modules
    return seen


@pytest.fixture
def cityscapes(names, tmp_path):
    """Register a split with empty ground truth for some frames -> name."""

    def register(frames=("ulm_000000_000019", "ulm_000001_000019"), things=THINGS):
        folder = tmp_path / "gtFine" / "ulm"
        folder.mkdir(parents=True, exist_ok=True)
        for frame in frames:
            for suffix in ("instanceIds", "labelIds"):
                (folder / f"{frame}_gtFine_{suffix}.png").write_bytes(b"")
        name = names()
        MetadataCatalog.get(name).set(gt_dir=str(tmp_path / "gtFine"), thing_classes=things)
        return name

    return register


def image(frame):
    return {"file_name": f"somewhere/{frame}_leftImg8bit.png"}


@pytest.mark.parametrize("kind", ["full", "rle", "roi"])
def test_instances(package, cityscapes, tools, capsys, kind):
    evaluator = CityscapesInstanceEvaluator(cityscapes())
    assert isinstance(evaluator, CityscapesEvaluator) and isinstance(evaluator, DatasetEvaluator)
    masks = torch.zeros(2, 120, 160, dtype=torch.bool)
    masks[0, :3, :5], masks[1, 7:, 9:] = True, True
    found = tools.predicted([[0, 0, 5, 3], [9, 7, 160, 120]], [0.5, 0.25], [2, 7], pred_masks=masks)
    if kind == "roi":
        found.pred_masks = ROIMasks(torch.ones(2, 64, 64))
    elif kind == "rle":
        found.remove("pred_masks")
        found.pred_masks_rle = encode_masks(masks)
    evaluator.reset()
    folder = evaluator._temp_dir
    evaluator.process([image("ulm_000001_000019")], [{"instances": found}])
    evaluator.process([image("ulm_000000_000019")], [{}])
    has_in1d = hasattr(np, "in1d")
    assert evaluator.evaluate() == {"segm": {"AP": 25.0, "AP50": 50.0}}
    assert hasattr(np, "in1d") == has_in1d
    own = package["modules"]["cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling"]
    assert own.writeDict2JSON is _writes_a_file
    name = "ulm_000001_000019_leftImg8bit_pred.txt"
    assert package["lines"] == {"ulm_000000_000019_leftImg8bit_pred.txt": [], name: [(26, 0.5), (33, 0.25)]}
    np.testing.assert_array_equal(np.stack(package["masks"][name]) != 0, masks.numpy())
    assert [os.path.basename(path)[:17] for path in package["truth"]] == ["ulm_000000_000019", "ulm_000001_000019"]
    assert not os.path.exists(folder)
    assert capsys.readouterr().out == ""
    own = package["modules"]["cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling"].args
    assert own.predictionPath == "untouched" and package["args"].predictionPath == folder


def test_labels(package, cityscapes):
    evaluator = CityscapesSemSegEvaluator(cityscapes())
    scores = torch.zeros(19, 2, 3)
    for label, (y, x) in ((0, (0, 0)), (18, (0, 1)), (11, (0, 2)), (13, (1, 0)), (1, (1, 1)), (16, (1, 2))):
        scores[label, y, x] = 1
    evaluator.reset()
    for frame in ("ulm_000000_000019", "ulm_000001_000019"):
        evaluator.process([image(frame)], [{"sem_seg": scores}])
    assert evaluator.evaluate() == {"sem_seg": {"IoU": 50.0, "iIoU": 25.0, "IoU_sup": 75.0, "iIoU_sup": 12.5}}
    assert [m.tolist() for m in package["maps"]] == [[[7, 33, 24], [26, 8, 31]]] * 2
    # labels instead of scores
    evaluator.reset()
    for frame in ("ulm_000000_000019", "ulm_000001_000019"):
        evaluator.process([image(frame)], [{"sem_seg": torch.tensor([[0, 18]])}])
    evaluator.evaluate()
    assert package["maps"][0].tolist() == [[7, 33]]
    with pytest.raises(ValueError, match=r"predicts labels from 19 to 19, but .* has the 19 stuff_classes 0 to 18"):
        evaluator.process([image("ulm_000000_000019")], [{"sem_seg": torch.eye(20)[19].view(20, 1, 1)}])


def test_every_round_begins_anew(package, cityscapes):
    evaluator = CityscapesSemSegEvaluator(cityscapes())
    evaluator.reset()
    first = evaluator._temp_dir
    evaluator.process([image("ulm_000000_000019")], [{"sem_seg": torch.zeros(19, 2, 2)}])
    evaluator.reset()
    assert not os.path.exists(first) and os.listdir(evaluator._temp_dir) == []
    with pytest.raises(ValueError, match=r"2 of 2 images .*'ulm_000000_000019'"):
        evaluator.evaluate()
    assert not os.path.exists(evaluator._temp_dir)


def test_only_the_main_process_scores(package, cityscapes, monkeypatch, tmp_path):
    evaluator = CityscapesSemSegEvaluator(cityscapes())
    monkeypatch.setattr(module.comm, "is_main_process", lambda: False)
    monkeypatch.setattr(module.comm, "all_gather", lambda name: [str(tmp_path), name])
    evaluator.reset()
    assert evaluator._temp_dir == str(tmp_path)
    assert evaluator.evaluate() is None and tmp_path.exists()
    monkeypatch.setattr(module.comm, "all_gather", lambda name: ["/no/such/folder", name])
    with pytest.raises(RuntimeError, match="one machine"):
        evaluator.reset()


def test_wrong_use_is_explained(package, cityscapes, names, tools, monkeypatch):
    with pytest.raises(ValueError, match="gt_dir"):
        CityscapesSemSegEvaluator(names())
    with pytest.raises(ValueError, match=r"\['dragon'\]"):
        CityscapesInstanceEvaluator(cityscapes(things=["car", "dragon"]))
    with pytest.raises(ValueError, match="there is none"):
        CityscapesInstanceEvaluator(cityscapes(things=[]))
    evaluator = CityscapesInstanceEvaluator(cityscapes())
    with pytest.raises(RuntimeError, match="reset"):
        evaluator.process([image("a_b_c")], [{}])
    evaluator.reset()
    masks = torch.zeros(1, 120, 160, dtype=torch.bool)
    with pytest.raises(ValueError, match="class 8, but the data set has 8"):
        evaluator.process(
            [image("a_b_c")], [{"instances": tools.predicted([[0, 0, 1, 1]], [0.5], [8], pred_masks=masks)}]
        )
    name = cityscapes()
    MetadataCatalog.get(name).__dict__["gt_dir"] = os.path.dirname(evaluator._temp_dir) + "/nowhere"
    evaluator = CityscapesInstanceEvaluator(name)
    evaluator.reset()
    with pytest.raises(FileNotFoundError, match=r"_gtFine_instanceIds\.png"):
        evaluator.evaluate()
    monkeypatch.setitem(sys.modules, "cityscapesscripts", None)
    with pytest.raises(ImportError, match=r"pip install 'detectron2\[cityscapes\]'"):
        CityscapesSemSegEvaluator(cityscapes())


def test_a_part_of_the_split_can_be_scored(package, cityscapes):
    """Before training only a few images are tried."""
    evaluator = CityscapesInstanceEvaluator(cityscapes())
    for evaluate in (evaluator.evaluate_part, evaluator.evaluate):
        evaluator.reset()
        evaluator.process([image("ulm_000001_000019")], [{}])
        if evaluate == evaluator.evaluate:
            with pytest.raises(ValueError, match=r"1 of 2 images in .* have no prediction"):
                evaluate()
        else:
            assert evaluate() == {"segm": {"AP": 25.0, "AP50": 50.0}}
            assert [os.path.basename(path)[:17] for path in package["truth"]] == ["ulm_000001_000019"]


def test_odd_batches_are_named(package, cityscapes, tools, caplog):
    name = cityscapes(["ulm_000000_000019"])
    for class_, key in ((CityscapesInstanceEvaluator, "instances"), (CityscapesSemSegEvaluator, "sem_seg")):
        caplog.clear()
        evaluator = class_(name)
        evaluator.reset()
        evaluator.process([], [])
        with pytest.raises(ValueError, match=f"{class_.__name__} got 2 outputs of the model for 1 inputs"):
            evaluator.process([image("ulm_000000_000019")], [{}, {}])
        with pytest.raises(KeyError, match=r"needs 'file_name'; it has .'image_id'."):
            evaluator.process([{"image_id": 1}], [{}])
        found = tools.predicted([[0, 0, 5, 3]] * 2, [0.5, float("nan")], [2, 2])
        found.pred_masks = torch.ones(2, 120, 160, dtype=torch.bool)
        output = {"instances": found, "sem_seg": torch.ones(19, 2, 3)}
        evaluator.process([image("ulm_000000_000019")], [output])
        assert "more than once" not in caplog.text
        evaluator.process([image("ulm_000000_000019")], [output])
        evaluator.evaluate()
        assert f"1 images were given to {class_.__name__} more than once, such as file_name" in caplog.text
        assert caplog.text.count("1 of 2 detections on image") == (key == "instances")
    assert len(package["lines"]["ulm_000000_000019_leftImg8bit_pred.txt"]) == 1
    with pytest.raises(ValueError, match=r"needs 'sem_seg' in the model's outputs; there is .'instances'."):
        evaluator.process([image("ulm_000000_000019")], [{"instances": found}])


def test_what_the_package_refuses_is_an_error(package, cityscapes):
    def refuse(predictions, truth, args):
        print("a lot\nERROR: Image widths are not equal.")
        sys.exit(-1)

    evaluator = CityscapesSemSegEvaluator(cityscapes(["ulm_000000_000019"]))
    package["modules"]["cityscapesscripts." + evaluator._module_name].evaluateImgLists = refuse
    evaluator.reset()
    folder = evaluator._temp_dir
    evaluator.process([image("ulm_000000_000019")], [{"sem_seg": torch.ones(19, 2, 3)}])
    with pytest.raises(ValueError, match=r"ended the evaluation: ERROR: Image widths are not equal."):
        evaluator.evaluate()
    assert not os.path.exists(folder)
