"""Registered data sets in shards: the same training, checks and evaluation as from single files."""

import itertools
import json

import pytest
import torch

from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data.datasets import load_sharded_dataset, register_coco_instances, register_sharded_dataset
from detectron2.data.datasets.synthetic import SHAPE_CLASSES, generate_shapes_dataset
from detectron2.data.formats.tar_shards import write_shards
from detectron2.data.samplers import ShardedTrainingSampler
from detectron2.evaluation import COCOEvaluator, build_evaluator
from tests.e2e.conftest import _tiny_config


@pytest.fixture
def both(tmp_path):
    """The names of a data set in single files, and of the same in shards."""
    file = generate_shapes_dataset(tmp_path, 8, size_hw=(32, 48), max_objects=3, seed=2)
    register_coco_instances("single", {}, file, tmp_path / "images")
    records = DatasetCatalog.get("single")
    write_shards(records, MetadataCatalog.get("single").as_dict(), tmp_path / "tars", shard_size=3, seed=None)
    register_sharded_dataset("sharded", tmp_path / "tars")
    yield "single", "sharded"
    for name in ("single", "sharded"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_nothing_is_there(tmp_path):
    register_sharded_dataset("none", tmp_path / "none")
    try:
        with pytest.raises(FileNotFoundError, match=r"none/index.json"):
            DatasetCatalog.get("none")
        assert MetadataCatalog.get("none").get("thing_classes") is None
        with pytest.raises(AttributeError, match=r"cannot be read from the data set's file: There is no"):
            _ = MetadataCatalog.get("none").thing_classes
    finally:
        DatasetCatalog.remove("none")
        MetadataCatalog.remove("none")
    with pytest.raises(TypeError, match=r"is a string"):
        register_sharded_dataset(3, tmp_path)


def test_metadata_are_known_before_loading(both):
    known = MetadataCatalog.get("sharded")
    assert known.thing_classes == list(SHAPE_CLASSES) and known.evaluator_type == "coco"
    assert known.thing_dataset_id_to_contiguous_id == MetadataCatalog.get("single").thing_dataset_id_to_contiguous_id
    assert known.get("json_file") is None


def test_given_metadata_hold(both, tmp_path):
    register_sharded_dataset("given", str(tmp_path / "tars"), {"thing_classes": list("abcdef")})
    try:
        DatasetCatalog.get("given")
        assert MetadataCatalog.get("given").thing_classes == list("abcdef")
    finally:
        DatasetCatalog.remove("given")
        MetadataCatalog.remove("given")
    assert len(load_sharded_dataset(tmp_path / "tars")) == 8


def config(name):
    cfg = _tiny_config()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 6
    cfg.DATASETS.TRAIN, cfg.SEED = (name,), 5
    cfg.INPUT.MIN_SIZE_TRAIN = (32, 48)
    return cfg


def plain(batch):
    return [
        (
            s["image_id"],
            s["image"].tolist(),
            s["instances"].gt_boxes.tensor.tolist(),
            s["instances"].gt_classes.tolist(),
        )
        for s in batch
    ]


def test_same_batches(both):
    loaders = [build_detection_train_loader(config(name), seed=5) for name in both]
    for loader in loaders:
        loader.dataset.dataset.sampler._seed = 5
    single, sharded = ([plain(b) for b in itertools.islice(loader, 6)] for loader in loaders)
    assert single == sharded


@pytest.mark.parametrize("grouping", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_stream_is_continued(both, workers, grouping):
    cfg = config("sharded")
    cfg.DATALOADER.SAMPLER_TRAIN = "ShardedTrainingSampler"
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping
    cfg.merge_from_list(["DATALOADER.SHARD_WINDOW", 2])
    cfg.DATALOADER.NUM_WORKERS = workers
    first = build_detection_train_loader(cfg)
    stream = iter(first)
    before = [plain(next(stream)) for _ in range(5)]
    state = json.loads(json.dumps(first.state_dict()))
    after = [plain(next(stream)) for _ in range(5)]
    cfg.DATALOADER.NUM_WORKERS = 0
    other = build_detection_train_loader(cfg)
    other.load_state_dict(state)
    assert [plain(b) for b in itertools.islice(other, 5)] == after
    batch = len(before[0])
    images = [s[0] for b in before + after for s in b]
    assert sorted(images[:8]) == list(range(1, 9)) and 8 % batch == 0


def test_filtered_images_leave_their_shard_shorter(both):
    cfg = config("sharded")
    cfg.DATALOADER.SAMPLER_TRAIN = "ShardedTrainingSampler"
    records = DatasetCatalog.get("sharded")
    for i in (1, 3, 4, 5):
        records[i]["annotations"] = []
    DatasetCatalog.remove("sharded")
    DatasetCatalog.register("sharded", lambda: records)
    loader = build_detection_train_loader(cfg)
    sampler = loader.dataset.dataset.sampler
    assert isinstance(sampler, ShardedTrainingSampler) and sampler._sizes.tolist() == [2, 2]


def test_two_data_sets_are_their_shards_together(both, tmp_path):
    register_sharded_dataset("again", str(tmp_path / "tars"))
    try:
        cfg = config("sharded")
        cfg.DATASETS.TRAIN = ("sharded", "again")
        cfg.DATALOADER.SAMPLER_TRAIN = "ShardedTrainingSampler"
        sampler = build_detection_train_loader(cfg).dataset.dataset.sampler
        assert sampler._sizes.tolist() == [3, 3, 2, 3, 3, 2]
        cfg.DATASETS.TRAIN = ("sharded", "single")
        with pytest.raises(ValueError, match=r"is a file by itself"):
            build_detection_train_loader(cfg)
    finally:
        DatasetCatalog.remove("again")
        MetadataCatalog.remove("again")


def test_same_evaluation(both):
    results = []
    for name in both:
        evaluator = build_evaluator(name, distributed=False)
        assert type(evaluator) is COCOEvaluator
        evaluator.reset()
        loader = build_detection_test_loader(
            DatasetCatalog.get(name), mapper=DatasetMapper(True, augmentations=[], image_format="RGB")
        )
        for inputs in loader:
            found = inputs[0]["instances"]
            keep = torch.arange(len(found)) % 3 != 1
            found = found[keep]
            found.pred_boxes, found.pred_classes = found.gt_boxes, found.gt_classes
            found.pred_boxes.tensor[:, 2] += inputs[0]["image_id"] % 3
            found.scores = torch.linspace(0.9, 0.5, len(found))
            found.remove("gt_boxes")
            found.remove("gt_classes")
            evaluator.process(inputs, [{"instances": found}])
        results.append(evaluator.evaluate())
    assert repr(results[0]) == repr(results[1])  # some are not a number
    assert 10 < results[0]["bbox"]["AP"] < 90
