"""Evaluators are tried before training; predictions that nobody made."""

import glob
import json
import logging
import random
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from fvcore.common.param_scheduler import ConstantParamScheduler
from torch import nn

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer, hooks, lazy_train
from detectron2.engine import evaluator_trial as module
from detectron2.engine.evaluator_trial import made_up_instances, made_up_panoptic, number_of_classes, try_lazy_evaluator
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators, SemSegEvaluator
from detectron2.structures import BitMasks, Boxes, Instances, ROIMasks, RotatedBoxes
from detectron2.utils.events import get_event_storage, put_scalar

pytestmark = pytest.mark.usefixtures("restore_logging")
HW = (40, 60)


# --- predictions that nobody made -----------------------------------------------------------------------------------


def nothing(**fields):
    """What a model gives that finds nothing."""
    return Instances(
        HW,
        pred_boxes=Boxes(torch.zeros(0, 4)),
        scores=torch.zeros(0),
        pred_classes=torch.zeros(0, dtype=torch.int64),
        **fields,
    )


def test_objects_of_every_class():
    made = made_up_instances(nothing(pred_keypoints=torch.zeros(0, 17, 3)), [0, 3, 7])
    assert made.image_size == HW
    assert made.pred_classes.tolist() == [0, 3, 7]
    assert made.pred_boxes.tensor.tolist() == [[15, 10, 45, 30]] * 3
    assert ((made.scores > 0) & (made.scores <= 1)).all() and made.scores.is_floating_point()
    assert made.pred_keypoints.shape == (3, 17, 3)


def test_no_classes():
    made = made_up_instances(nothing(pred_masks=torch.zeros(0, *HW, dtype=torch.bool)), [])
    assert len(made) == 0 and made.pred_masks.shape == (0, *HW)


def expected_mask():
    mask = np.zeros(HW, dtype=bool)
    mask[10:30, 15:45] = True
    return mask


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("pred_masks", torch.zeros(0, *HW, dtype=torch.bool), lambda m: m[1].numpy()),
        ("pred_masks", BitMasks(torch.zeros(0, *HW, dtype=torch.bool)), lambda m: m.tensor[1].numpy()),
        ("pred_masks_rle", [], lambda m: mask_util.decode(m[1]).astype(bool)),
    ],
)
def test_masks_of_images(name, value, read):
    made = made_up_instances(nothing(**{name: value}), [0, 1]).get(name)
    assert type(made) is type(value)
    np.testing.assert_array_equal(read(made), expected_mask())


def test_masks_of_boxes():
    for empty in (torch.zeros(0, 1, 28, 28), ROIMasks(torch.zeros(0, 28, 28))):
        made = made_up_instances(nothing(pred_masks=empty), [0, 1]).pred_masks
        assert type(made) is type(empty) and len(made) == 2
        assert (made if isinstance(made, torch.Tensor) else made.tensor).min() == 1


def test_rotated_boxes_and_unknown_fields():
    template = Instances(HW, pred_boxes=RotatedBoxes(torch.zeros(0, 5)))
    assert made_up_instances(template, [0]).pred_boxes.tensor.tolist() == [[30, 20, 30, 20, 0]]
    own = type("Meshes", (), {"tensor": torch.zeros(0, 3), "__len__": lambda self: 0})()
    for unknown in ([], own):
        template.set("unknown", unknown)
        assert made_up_instances(template, [0]) is None
        template.remove("unknown")


@pytest.mark.parametrize(("size_hw", "most"), [((10, 10), 100), ((5000, 5000), 2), ((9000, 9000), 1)])
def test_of_very_many_classes_some(size_hw, most):
    template = nothing()
    template._image_size = size_hw
    made = made_up_instances(template, range(1203)).pred_classes.tolist()
    assert len(made) == most and made == sorted(set(made)) and made[0] == 0
    assert most == 1 or made[-1] == 1202


def test_panoptic_columns():
    ids, segments = made_up_panoptic(torch.full((2, 9), 7, dtype=torch.int32), [0, 4], [0, 53])
    assert ids.dtype == torch.int32 and ids.tolist() == [[1, 1, 1, 2, 2, 2, 3, 3, 3]] * 2
    assert [(s["id"], s["isthing"], s["category_id"], s["area"]) for s in segments] == [
        (1, True, 0, 6), (2, True, 4, 6), (3, False, 53, 6),
    ]  # fmt: skip
    assert made_up_panoptic(torch.zeros(2, 3), [], [])[1] == []


def test_number_of_classes():
    assert number_of_classes(nn.Linear(1, 1)) is None
    assert number_of_classes(SimpleNamespace(num_classes=3)) == 3
    assert number_of_classes(SimpleNamespace(num_classes=3, roi_heads=SimpleNamespace(num_classes=5))) == 5


# --- the trial ------------------------------------------------------------------------------------------------------


class Detector(nn.Module):
    """Finds nothing; uses up random numbers, keeps statistics and writes down what it likes."""

    def __init__(self, num_classes=2):
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.num_classes = num_classes
        self.seen = []

    def forward(self, batch):
        x = torch.rand(4, 1) + random.random() + np.random.rand()
        y = self.norm(x)
        if self.training:
            return {"loss": (y - x).pow(2).sum()}
        put_scalar("found", 0.0)
        get_event_storage()
        self.seen.append([image["image_id"] for image in batch])
        return [{"instances": nothing()} for _ in batch]


class Recorder(DatasetEvaluator):
    """Notes what it is given."""

    def reset(self):
        self.classes = []

    def process(self, inputs, outputs):
        self.classes += [o["instances"].pred_classes.tolist() for o in outputs]

    def evaluate(self):
        return {"bbox": {"AP": 1.0}}


def coco_file(folder, images=5, ids=(11, 12)):
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": HW[0], "width": HW[1]} for i in range(images)],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": ids[i % 2], "bbox": [15, 10, 30, 20], "area": 600, "iscrowd": 0}
            for i in range(images)
        ],
        "categories": [{"id": k, "name": f"class{k}"} for k in ids],
    }
    (folder / "coco.json").write_text(json.dumps(content))
    return str(folder / "coco.json")


@pytest.fixture
def dataset(tmp_path):
    """The name of five images of two classes with a COCO file."""
    name = "trial_data"
    DatasetCatalog.register(name, lambda: [{"file_name": f"{i}.jpg", "image_id": i} for i in range(5)])
    MetadataCatalog.get(name).set(
        thing_classes=["class11", "class12"],
        thing_dataset_id_to_contiguous_id={11: 0, 12: 1},
        json_file=coco_file(tmp_path),
    )
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


class Trainer(DefaultTrainer):
    """Trains the detector that finds nothing."""

    evaluator = staticmethod(lambda cfg, name: Recorder())

    @classmethod
    def build_model(cls, cfg):
        return Detector()

    @classmethod
    def build_train_loader(cls, cfg):
        return [[{"image_id": i}] for i in range(50)]

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return [[{"image_id": i, "file_name": f"{i}.jpg", "height": HW[0], "width": HW[1]}] for i in range(5)]

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return cls.evaluator(cfg, dataset_name)

    def build_writers(self):
        return []


@pytest.fixture
def cfg(tmp_path, dataset):
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), (dataset,)
    cfg.SOLVER.MAX_ITER = 2
    cfg.SOLVER.STEPS = ()
    return cfg


def trainer_with(cfg, evaluator, **methods):
    """Return a trainer whose data sets are evaluated by what a function of config and name returns."""
    return type("Own", (Trainer,), {"evaluator": staticmethod(evaluator), **methods})(cfg)


def tried(caplog):
    return [m for m in caplog.messages if "tried on" in m]


@pytest.fixture
def info(caplog):
    """What the trial logs, also when training sets up loggers of its own."""
    caplog.set_level(logging.INFO, logger=module.logger.name)
    module.logger.addHandler(caplog.handler)
    module.logger.propagate = False
    yield caplog
    module.logger.removeHandler(caplog.handler)
    module.logger.propagate = True


def test_two_images_and_every_class(cfg, info):
    made = []
    trainer = trainer_with(cfg, lambda cfg, name: made.append(Recorder()) or made[-1])
    trainer._try_evaluators()
    # the first as the model has it, the last with an object of each class
    assert made[0].classes == [[], [0, 1]]
    assert trainer.model.seen == [[0], [1]]
    assert len(tried(info)) == 1 and "trial_data (Recorder) was tried on 2 images" in info.text


def test_no_trace_is_left(cfg, tmp_path):
    trainer = trainer_with(cfg, lambda cfg, name: COCOEvaluator(name, output_dir=f"{cfg.OUTPUT_DIR}/inference"))
    trainer.model.norm.eval()  # in another mode than the model

    def state():
        return (
            {k: v.tolist() for k, v in trainer.model.state_dict().items()},
            [m.training for m in trainer.model.modules()],
            torch.get_rng_state().tolist(),
            random.getstate(),
            np.random.get_state()[1].tolist(),
            logging.root.manager.disable,
            MetadataCatalog.get("trial_data").as_dict(),
            sorted(p.name for p in tmp_path.iterdir()),
            glob.glob(f"{tempfile.gettempdir()}/evaluator_trial_*"),
        )

    before = state()
    trainer._try_evaluators()
    assert trainer.model.seen == [[0], [1]]
    assert state() == before


def test_training_is_the_same_with_and_without(cfg):
    weights = []
    for is_tried in (True, False):
        cfg.TEST.TRY_EVALUATOR = is_tried
        torch.manual_seed(1), random.seed(1), np.random.seed(1)
        trainer = Trainer(cfg)
        trainer.train()
        assert len(trainer.model.seen) == 5 + 2 * is_tried
        weights.append({k: v.tolist() for k, v in trainer.model.state_dict().items()})
    assert weights[0] == weights[1]


def test_a_data_set_that_is_converted_keeps_its_metadata(cfg):
    metadata = MetadataCatalog.get("trial_data")
    del metadata.json_file
    DatasetCatalog.remove("trial_data")
    records = [
        {"file_name": f"{i}.jpg", "image_id": i, "height": HW[0], "width": HW[1], "annotations": []} for i in range(5)
    ]
    DatasetCatalog.register("trial_data", lambda: records)
    trainer = trainer_with(cfg, lambda cfg, name: COCOEvaluator(name, output_dir=f"{cfg.OUTPUT_DIR}/inference"))
    trainer._try_evaluators()
    assert metadata.get("json_file") is None and not Path(cfg.OUTPUT_DIR).exists()


def test_a_broken_id_map_ends_training(cfg):
    # no detection of the untrained model would have shown it
    MetadataCatalog.get("trial_data").thing_dataset_id_to_contiguous_id[12] = 5
    trainer = trainer_with(cfg, lambda cfg, name: COCOEvaluator(name))
    with pytest.raises(ValueError, match=r"COCOEvaluator of .* fails\. ValueError: thing_dataset_id_"):
        trainer.train()
    assert trainer.iter == 0
    cfg.TEST.TRY_EVALUATOR = False
    trainer_with(cfg, lambda cfg, name: Recorder()).train()


def test_labels_without_files_end_training(cfg):
    MetadataCatalog.get("trial_data").stuff_classes = ["a", "b"]
    trainer = trainer_with(cfg, lambda cfg, name: SemSegEvaluator(name))
    with pytest.raises(ValueError, match=r"cannot be built. ValueError: SemSegEvaluator needs `sem_seg_file_name`"):
        trainer.train()


def broken(error, method="evaluate"):
    def fail(*args):
        raise error

    return type("Broken", (Recorder,), {method: fail})()


@pytest.mark.parametrize(
    ("evaluator", "message"),
    [
        (lambda cfg, name: Path("/no/such/file").read_text(), "the evaluator of .* cannot be built. FileNotFoundError"),
        (lambda cfg, name: broken(KeyError("sem_seg"), "process"), "Broken of .* fails. KeyError: sem_seg"),
        (lambda cfg, name: broken(ZeroDivisionError("0"), "reset"), "Broken of .* fails. ZeroDivisionError: 0"),
        (lambda cfg, name: broken(ImportError("pip install it")), "Broken of .* fails. ImportError: pip install it"),
        (lambda cfg, name: DatasetEvaluators([Recorder(), broken(OSError("full"), "process")]), "Recorder, Broken of"),
    ],
)
def test_what_would_fail_ends_training(cfg, evaluator, message):
    with pytest.raises(ValueError, match=f"(?s)would fail: {message}.*TEST.TRY_EVALUATOR False; .*DATASETS.TEST '"):
        trainer_with(cfg, evaluator).train()


def test_fields_of_a_model_of_ones_own_stay(cfg, info):
    """Meshes, texts and the like cannot be made up; an evaluator may read them."""

    class Reader(Detector):
        def forward(self, batch):
            outputs = super().forward(batch)
            return outputs if self.training else [{"instances": nothing(texts=[])} for _ in batch]

    class Texts(Recorder):
        def process(self, inputs, outputs):
            self.classes += [o["instances"].texts for o in outputs]

    made = []
    build = {"build_model": classmethod(lambda cls, cfg: Reader())}
    trainer_with(cfg, lambda *_: made.append(Texts()) or made[-1], **build)._try_evaluators()
    assert made[0].classes == [[], []] and tried(info)


def test_what_fails_with_made_up_objects_alone_is_a_warning(cfg, info):
    class Meant(Recorder):
        def process(self, inputs, outputs):
            if any(len(o["instances"]) for o in outputs):
                raise ValueError("no contour")

    trainer_with(cfg, lambda *_: Meant())._try_evaluators()
    assert "Evaluation may fail: Meant of the data set trial_data fails. ValueError: no contour" in info.text


def test_model_and_data_that_fail(cfg):
    class Deaf(Detector):
        def forward(self, batch):
            raise RuntimeError("no memory")

    with pytest.raises(ValueError, match=r"the model fails\. RuntimeError: no memory"):
        trainer_with(cfg, lambda *_: Recorder(), build_model=classmethod(lambda cls, cfg: Deaf()))._try_evaluators()
    with pytest.raises(ValueError, match=r"has no data\. ValueError: The loader of the test data gives no image"):
        trainer_with(cfg, lambda *_: Recorder(), build_test_loader=classmethod(lambda *_: []))._try_evaluators()


def test_what_may_need_all_images_is_a_warning(cfg, info):
    class Whole(Recorder):
        def evaluate(self):
            if len(self.classes) < 5:
                raise ValueError("images are missing")
            return {"bbox": {"AP": 1.0}}

    assert trainer_with(cfg, lambda cfg, name: Whole()).train() == {"bbox": {"AP": 1.0}}
    assert "Evaluation may fail: Whole of the data set trial_data fails. ValueError: images are missing" in info.text


def test_no_evaluator_is_a_warning(cfg, info):
    def missing(cfg, name):
        raise NotImplementedError

    trainer_with(cfg, missing)._try_evaluators()
    assert "No evaluator for trial_data (not implemented); it will not be evaluated." in info.text


def test_own_evaluation_is_left_alone(cfg, info):
    test = classmethod(lambda cls, cfg, model: {"own": {"AP": 2.0}})
    plain = type("Plain", (Trainer,), {"test": test})
    del_evaluator = {"build_evaluator": classmethod(lambda cls, cfg, name: 1 / 0)}
    # whether its own evaluation uses this evaluator cannot be known
    type("Own", (plain,), del_evaluator)(cfg)._try_evaluators()
    assert "Evaluation may fail" in info.text and "ZeroDivisionError" in info.text
    info.clear()
    trainer = trainer_with(cfg, lambda *_: 1 / 0)
    trainer._hooks = [h for h in trainer._hooks if not isinstance(h, hooks.EvalHook)]
    trainer.register_hooks([hooks.EvalHook(1, lambda: {"own": 1.0})])
    trainer._try_evaluators()
    assert not info.messages


def test_more_classes_than_the_data_set_has(cfg, info):
    class Liberal(Detector):
        def forward(self, batch):
            outputs = super().forward(batch)
            if self.training:
                return outputs
            found = Instances(
                HW, pred_boxes=Boxes(torch.ones(2, 4)), scores=torch.ones(2), pred_classes=torch.tensor([70, 1])
            )
            return [{"instances": found} for _ in batch]

    made = []
    trainer = trainer_with(
        cfg,
        lambda cfg, name: made.append(Recorder()) or made[-1],
        build_model=classmethod(lambda cls, cfg: Liberal(80)),
    )
    trainer._try_evaluators()
    assert made[0].classes == [[1], [0, 1]]
    assert "The model has 80 classes and trial_data 2" in info.text


def test_failure_of_another_process_ends_this_one_as_well(cfg, monkeypatch):
    failure = ("OSError: disk full", True)
    monkeypatch.setattr(
        module.comm, "all_gather", lambda x, *_: [x, failure if x is None else "" if isinstance(x, str) else x]
    )
    with pytest.raises(ValueError, match=r"cannot be built\. OSError: disk full"):
        trainer_with(cfg, lambda cfg, name: Recorder())._try_evaluators()


def test_outputs_in_another_form_are_passed_on(cfg):
    seen = []

    class Words(Recorder):
        def process(self, inputs, outputs):
            seen.append(outputs)

    class Speaker(Detector):
        def forward(self, batch):
            return "words"

    trainer_with(cfg, lambda *_: Words(), build_model=classmethod(lambda cls, cfg: Speaker()))._try_evaluators()
    assert seen == ["words"] * 2


def test_panoptic_outputs(cfg):
    class Panoptic(Detector):
        def forward(self, batch):
            return [{"panoptic_seg": (torch.zeros(HW, dtype=torch.int32), [])} for _ in batch]

    seen = []
    recorder = type("R", (Recorder,), {"process": lambda self, inputs, outputs: seen.extend(outputs)})
    MetadataCatalog.get("trial_data").stuff_dataset_id_to_contiguous_id = {0: 0, 20: 1}
    trainer_with(cfg, lambda *_: recorder(), build_model=classmethod(lambda cls, cfg: Panoptic()))._try_evaluators()
    assert seen[0]["panoptic_seg"][1] == []
    assert [s["category_id"] for s in seen[1]["panoptic_seg"][1]] == [0, 1, 1]


# --- lazy configs ---------------------------------------------------------------------------------------------------


def train_batches():
    return [[{"image_id": i}] for i in range(50)]


class LazyEvaluator(Recorder):
    made: list = []

    def __init__(self, output_dir=None, tasks=()):
        self.output_dir = output_dir
        LazyEvaluator.made.append(self)


def loader(num_workers):
    assert num_workers == 0
    return [[{"image_id": i}] for i in range(5)]


@pytest.fixture
def lazy_cfg(tmp_path):
    LazyEvaluator.made = []
    cfg = LazyConfig.load(model_zoo.get_config_file("common/train.py"))
    cfg.model = L(Detector)()
    cfg.optimizer = model_zoo.get_config("common/optim.py").SGD
    cfg.lr_multiplier = L(ConstantParamScheduler)(value=1.0)
    cfg.dataloader = {
        "train": L(train_batches)(),
        "test": L(loader)(num_workers=4),
        "evaluator": [L(LazyEvaluator)(output_dir=str(tmp_path / "results"), tasks=["bbox"])],
    }
    cfg.train.output_dir = str(tmp_path / "output")
    cfg.train.device = "cpu"
    cfg.train.max_iter = 1
    return cfg


def test_lazy_evaluator(lazy_cfg, info, tmp_path):
    model = Detector()
    before = lazy_cfg.copy()
    try_lazy_evaluator(lazy_cfg, model, [])
    assert lazy_cfg == before
    (made,) = LazyEvaluator.made
    assert made.output_dir != str(tmp_path / "results") and not Path(made.output_dir).exists()
    assert made.classes == [[], [0, 1]]  # of the model, as nothing is known of the data set
    assert "dataloader.test (LazyEvaluator) was tried on 2 images" in info.text


def test_lazy_training(lazy_cfg):
    lazy_cfg.dataloader.evaluator = L(broken)(error=L(ImportError)())
    lazy_cfg.dataloader.test.num_workers = 0
    with pytest.raises(ValueError, match=r"To train without trying: train\.try_evaluator=False"):
        lazy_train(lazy_cfg)
    lazy_cfg.train.try_evaluator = False
    with pytest.raises(ImportError):
        lazy_train(lazy_cfg)


def test_lazy_config_without_evaluator(lazy_cfg):
    del lazy_cfg.dataloader.evaluator
    try_lazy_evaluator(lazy_cfg, Detector(), [])
    assert not LazyEvaluator.made


def test_compiled_models_stay_eager(monkeypatch):
    stances = []
    monkeypatch.setattr(
        torch.compiler, "set_stance", lambda stance: module.contextlib.nullcontext(stances.append(stance))
    )
    for is_loaded, expected in ((False, []), (True, ["force_eager"])):
        monkeypatch.setitem(sys.modules, "torch._dynamo", object())
        if not is_loaded:
            monkeypatch.delitem(sys.modules, "torch._dynamo")
        with module._eager():
            assert stances == expected
