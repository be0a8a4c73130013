"""From names to batches: loading, filtering, sampling, grouping, and what goes wrong early."""

import itertools
import json
import pickle
import re

import numpy as np
import pytest
import torch
import torch.utils.data as torchdata
from PIL import Image

from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, DatasetError, DatasetMapper, MetadataCatalog
from detectron2.data.build import (
    _distribution_table,
    _train_loader_from_config,
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
    expected_by_model,
    filter_images_with_few_keypoints,
    filter_images_with_only_crowd_annotations,
    get_detection_dataset_dicts,
    load_proposals_into_dataset,
    print_instances_class_histogram,
    trivial_batch_collator,
    worker_init_reset_seed,
)
from detectron2.data.datasets import register_coco_instances
from detectron2.data.samplers import RandomSubsetTrainingSampler, RepeatFactorTrainingSampler, TrainingSampler
from detectron2.structures import BoxMode
from detectron2.utils import comm


def annotation(category_id=0, **more):
    return {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": category_id, "iscrowd": 0, **more}


def record(image_id, *annotations, width=30, height=20, **more):
    return {
        "image_id": image_id,
        "file_name": f"{image_id}.jpg",
        "width": width,
        "height": height,
        "annotations": list(annotations),
        **more,
    }


@pytest.fixture
def register():
    """Register data sets that are forgotten after the test."""
    names = []

    def register(dicts, name="test_build", **metadata):
        names.append(name)
        DatasetCatalog.register(name, lambda: dicts)
        MetadataCatalog.get(name).set(**metadata)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def files(tmp_path, register):
    """Register a data set of real files with landscape and portrait images, and make a small config for it."""

    def make(count=6, **changes):
        dicts = []
        for i in range(count):
            width, height = (30, 20) if i % 2 else (20, 30)
            Image.new("RGB", (width, height), (i, i, i)).save(tmp_path / f"{i}.png")
            one = record(i, annotation(), width=width, height=height, file_name=str(tmp_path / f"{i}.png"))
            dicts.append(one)
        if dicts:
            dicts[0].update(changes)
        name = register(dicts, thing_classes=["a", "b"])
        cfg = get_cfg()
        cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
        cfg.DATALOADER.NUM_WORKERS = 0
        cfg.SOLVER.IMS_PER_BATCH = 2
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (24,), 24
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
        return cfg

    return make


class TestFilters:
    def test_empty(self):
        assert filter_images_with_only_crowd_annotations([]) == []
        assert filter_images_with_few_keypoints([], 1) == []

    def test_crowd(self):
        dicts = [record(1), record(2, annotation(iscrowd=1)), record(3, annotation(iscrowd=1), annotation())]
        del dicts[2]["annotations"][1]["iscrowd"]
        assert [d["image_id"] for d in filter_images_with_only_crowd_annotations(dicts)] == [3]

    def test_keypoints(self):
        two, one = annotation(keypoints=[1, 1, 2, 2, 2, 1]), annotation(keypoints=[1, 1, 2, 9, 9, 0])
        dicts = [record(1), record(2, annotation()), record(3, two), record(4, one), record(5, one, two)]
        assert [d["image_id"] for d in filter_images_with_few_keypoints(dicts, 2)] == [3, 5]


class TestHistogram:
    def test_empty(self, caplog):
        caplog.set_level("INFO")
        print_instances_class_histogram([], [])
        print_instances_class_histogram([], ["a"])
        assert len(caplog.records) == 2

    def test_counts(self, caplog):
        caplog.set_level("INFO")
        dicts = [record(1, annotation(1), annotation(1)), record(2, annotation(0), annotation(2, iscrowd=1))]
        print_instances_class_histogram(dicts, ["cat", "dog", "a_very_long_name", "cow"])
        cells = [c.strip() for c in caplog.text.replace("\n", "|").split("|")]
        pairs = dict(itertools.pairwise(cells))
        assert pairs["cat"] == "1" and pairs["dog"] == "2" and pairs["a_very_long.."] == "-" and pairs["total"] == "3"

    @pytest.mark.parametrize("label", [-1, 2])
    def test_label_out_of_range(self, label):
        with pytest.raises(ValueError, match="expected 0 to 1"):
            print_instances_class_histogram([record(1, annotation(label))], ["a", "b"])


class TestProposals:
    @pytest.fixture
    def write(self, tmp_path):
        def write(content):
            (tmp_path / "p.pkl").write_bytes(pickle.dumps(content))
            return str(tmp_path / "p.pkl")

        return write

    def test_no_images(self, write):
        assert load_proposals_into_dataset([], write({"ids": [], "boxes": [], "objectness_logits": []})) == []

    @pytest.mark.parametrize(("ids", "logits"), [("ids", "objectness_logits"), ("indexes", "scores")])
    def test_best_first(self, write, ids, logits):
        boxes = np.arange(12.0).reshape(3, 4)
        content = {ids: ["x", 5], "boxes": [boxes[:0], boxes], logits: [np.zeros(0), np.array([0.1, 0.9, 0.5])]}
        (one,) = load_proposals_into_dataset([record(5)], write(content))
        np.testing.assert_array_equal(one["proposal_boxes"], boxes[[1, 2, 0]])
        np.testing.assert_array_equal(one["proposal_objectness_logits"], [0.9, 0.5, 0.1])
        assert one["proposal_bbox_mode"] is BoxMode.XYXY_ABS

    def test_box_mode(self, write):
        content = {"ids": [5], "boxes": [np.zeros((0, 4))], "objectness_logits": [np.zeros(0)]}
        for mode in (BoxMode.XYWH_ABS, 1):
            (one,) = load_proposals_into_dataset([record(5)], write({**content, "bbox_mode": mode}))
            assert one["proposal_bbox_mode"] is BoxMode.XYWH_ABS

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ([1], "it is list"),
            ({"ids": []}, r"it is \['ids'\]"),
            ({"ids": [4], "boxes": [0], "objectness_logits": [0]}, "no proposals for image id 5"),
            ({"ids": print}, "builtins.print"),
        ],
    )
    def test_malformed(self, write, content, message):
        with pytest.raises(ValueError, match=message):
            load_proposals_into_dataset([record(5)], write(content))


class TestGetDicts:
    def test_nothing_named(self):
        with pytest.raises(ValueError, match="DATASETS"):
            get_detection_dataset_dicts([])

    def test_unknown(self):
        with pytest.raises(KeyError, match="not registered"):
            get_detection_dataset_dicts("nothing like this")

    @pytest.mark.parametrize(
        ("returned", "message"),
        [
            (None, "must return a list of dicts, not NoneType.*lack its 'return'"),
            ({"a": 1}, "not dict"),
            ("text", "not str"),
            (iter([1]), "not list_iterator"),
        ],
        ids=["None", "dict", "str", "iterator"],
    )
    def test_not_a_list(self, register, returned, message):
        register(returned)
        with pytest.raises(DatasetError, match=message):
            get_detection_dataset_dicts("test_build")

    def test_elements_of_another_kind(self, register):
        """They are for a mapper of the user's own."""
        register(["a.jpg", "b.jpg"])
        assert get_detection_dataset_dicts("test_build") == ["a.jpg", "b.jpg"]

    def test_empty(self, register):
        with pytest.raises(DatasetError, match="it is empty"):
            get_detection_dataset_dicts(register([]))

    def test_all_filtered_out(self, register):
        name = register([record(1), record(2, annotation(iscrowd=1))], thing_classes=["a"])
        with pytest.raises(DatasetError, match=r"none of its 2 images has annotations.*FILTER_EMPTY_ANNOTATIONS"):
            get_detection_dataset_dicts(name)
        assert len(get_detection_dataset_dicts(name, filter_empty=False)) == 2

    def test_all_without_keypoints(self, register):
        name = register([record(1, annotation())], thing_classes=["a"])
        with pytest.raises(DatasetError, match="MIN_KEYPOINTS_PER_IMAGE"):
            get_detection_dataset_dicts(name, min_keypoints=1)

    def test_several(self, register):
        names = [register([record(i, annotation())], f"test_build_{i}", thing_classes=["a"]) for i in range(3)]
        assert [d["image_id"] for d in get_detection_dataset_dicts(names)] == [0, 1, 2]

    def test_classes_must_agree(self, register):
        names = [register([record(i, annotation())], f"test_build_{i}", thing_classes=[str(i)]) for i in range(2)]
        with pytest.raises(ValueError):
            get_detection_dataset_dicts(names)
        assert len(get_detection_dataset_dicts(names, check_consistency=False)) == 2

    def test_without_class_names(self, register):
        assert len(get_detection_dataset_dicts(register([record(1, annotation())]))) == 1

    def test_semantic_only(self, register):
        dicts = [{"file_name": "a.jpg", "sem_seg_file_name": "a.png"}]
        assert get_detection_dataset_dicts(register(dicts, stuff_classes=["a"])) == dicts

    def test_torch_datasets(self, register):
        names = [register(torchdata.TensorDataset(torch.arange(3)), f"test_build_{i}") for i in range(2)]
        assert len(get_detection_dataset_dicts(names)) == 6
        assert len(get_detection_dataset_dicts(names[0])) == 3

    def test_proposals(self, register, tmp_path):
        content = {"ids": [1], "boxes": [np.zeros((1, 4))], "objectness_logits": [np.zeros(1)]}
        (tmp_path / "p.pkl").write_bytes(pickle.dumps(content))
        name = register([record(1, annotation())])
        (one,) = get_detection_dataset_dicts(name, proposal_files=[str(tmp_path / "p.pkl")])
        assert one["proposal_boxes"].shape == (1, 4)
        with pytest.raises(ValueError, match="2 proposal files for 1 data sets"):
            get_detection_dataset_dicts(name, proposal_files=["a", "b"])


class TestBatches:
    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_in_order(self, num_workers):
        loader = build_batch_data_loader(
            list(range(20)), TrainingSampler(20, shuffle=False), 4, num_workers=num_workers
        )
        batches = list(itertools.islice(loader, 5))
        # With several workers each takes whole batches in turn.
        assert sorted(x for b in batches for x in b) == list(range(20)) and all(len(b) == 4 for b in batches)
        assert batches == [list(range(i, i + 4)) for i in range(0, 20, 4)]

    def test_collation(self):
        loader = build_batch_data_loader([1, 2], [0, 1], 2, collate_fn=sum)
        assert list(loader) == [3]
        assert trivial_batch_collator([1, 2]) == [1, 2]

    def test_last_batch(self):
        assert list(build_batch_data_loader([1, 2, 3], [0, 1, 2], 2)) == [[1, 2]]
        assert list(build_batch_data_loader([1, 2, 3], [0, 1, 2], 2, drop_last=False)) == [[1, 2], [3]]

    @pytest.mark.parametrize("num_workers", [0, 2])
    @pytest.mark.parametrize("collate", [None, len])
    def test_grouped(self, num_workers, collate):
        dicts = [record(i, width=20 + 5 * (i % 3), height=24) for i in range(12)]
        loader = build_batch_data_loader(
            dicts,
            TrainingSampler(12),
            2,
            aspect_ratio_grouping=True,
            num_workers=num_workers,
            collate_fn=collate,
        )
        batches = list(itertools.islice(loader, 20))
        if collate is not None:
            assert batches == [2] * 20
        else:
            assert all(len({d["width"] > d["height"] for d in b}) == 1 and len(b) == 2 for b in batches)
            assert len({d["image_id"] for b in batches for d in b}) == 12

    @pytest.mark.parametrize("total", [0, 3, -2])
    def test_indivisible(self, monkeypatch, total):
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        with pytest.raises(ValueError, match=r"number of processes \(2\), such as 2 or 4\."):
            build_batch_data_loader([1], [0], total)

    def test_share_of_a_rank(self, monkeypatch):
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        assert list(build_batch_data_loader([1, 2, 3, 4], [0, 1, 2, 3], 4)) == [[1, 2], [3, 4]]
        assert list(build_batch_data_loader([1, 2, 3, 4], [0, 1, 2, 3], 4, single_gpu_batch_size=4)) == [[1, 2, 3, 4]]

    def test_iterable_with_sampler(self):
        class Stream(torchdata.IterableDataset):
            def __iter__(self):
                return iter([1, 2])

        assert list(build_batch_data_loader(Stream(), None, 2)) == [[1, 2]]
        for make in (
            lambda: build_batch_data_loader(Stream(), [0], 1),
            lambda: build_detection_train_loader(Stream(), mapper=str, sampler=[0], total_batch_size=1),
            lambda: build_detection_test_loader(Stream(), mapper=str, sampler=[0]),
        ):
            with pytest.raises(ValueError, match="sampler must be None"):
                make()
        assert list(build_detection_test_loader(Stream(), mapper=str)) == [["1"], ["2"]]

    def test_workers_have_their_own_random_numbers(self):
        dataset = [0] * 8

        def numbers(seed):
            loader = build_batch_data_loader(_Random(dataset), range(8), 1, num_workers=2, seed=seed)
            return [b[0] for b in loader]

        first = numbers(1)
        assert len(set(first)) == 8 and numbers(1) == first and numbers(2) != first

    def test_seeds_all_generators(self):
        torch.manual_seed(5)
        worker_init_reset_seed(0)
        first = np.random.rand()  # the global generator is what is seeded
        torch.manual_seed(5)
        worker_init_reset_seed(0)
        assert np.random.rand() == first  # as above


class _Random(torchdata.Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return float(np.random.rand())  # the global generator is what is seeded


class TestTrainLoader:
    def test_explicit(self):
        loader = build_detection_train_loader(
            [record(1)], mapper=lambda d: d["image_id"], total_batch_size=3, aspect_ratio_grouping=False
        )
        assert next(iter(loader)) == [1, 1, 1]

    def test_own_dataset_and_sampler(self):
        loader = build_detection_train_loader(
            (record(1), record(2)), mapper=dict, sampler=TrainingSampler(2, shuffle=False), total_batch_size=2
        )
        assert [d["image_id"] for d in next(iter(loader))] == [1, 2]
        with pytest.raises(TypeError, match="Sampler"):
            build_detection_train_loader([record(1)], mapper=dict, sampler=3, total_batch_size=2)

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_from_config(self, files, num_workers):
        cfg = files()
        cfg.DATALOADER.NUM_WORKERS = num_workers
        loader = build_detection_train_loader(cfg)
        for batch in itertools.islice(loader, 4):
            assert len(batch) == 2 and len({d["width"] > d["height"] for d in batch}) == 1
            for sample in batch:
                assert min(sample["image"].shape[1:]) == 24 and len(sample["instances"]) == 1

    def test_arguments_overwrite(self, files):
        loader = build_detection_train_loader(files(), total_batch_size=3, mapper=dict)
        assert len(next(iter(loader))) == 3

    def test_samplers(self, files, caplog):
        cfg = files()
        assert type(_train_loader_from_config(cfg)["sampler"]) is TrainingSampler
        cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
        assert type(_train_loader_from_config(cfg)["sampler"]) is RepeatFactorTrainingSampler
        cfg.DATALOADER.SAMPLER_TRAIN = "RandomSubsetTrainingSampler"
        # The key has no default.
        assert _train_loader_from_config(cfg)["sampler"]._size_subset == 6 and "RANDOM_SUBSET_RATIO" in caplog.text
        cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.5
        sampler = _train_loader_from_config(cfg)["sampler"]
        assert type(sampler) is RandomSubsetTrainingSampler and sampler._size_subset == 3
        cfg.DATALOADER.SAMPLER_TRAIN = "Other"
        with pytest.raises(ValueError, match="'Other'; known are"):
            _train_loader_from_config(cfg)

    def test_repeated_classes_are_shown(self, files, caplog):
        caplog.set_level("INFO")
        cfg = files(annotations=[annotation(1)])
        cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.REPEAT_THRESHOLD = "RepeatFactorTrainingSampler", 1.0
        _train_loader_from_config(cfg)
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in caplog.text.splitlines()]
        # Class b is in one image of six: sqrt(1 / (1/6)) = 2.45; class a in five: sqrt(6/5) = 1.095.
        assert ["dataset test_build", "6", "100.0%", "8", "100.0%", "1.32"] in rows
        assert ["class a", "5", "83.3%", "5", "69.1%", "1.10"] in rows
        assert ["class b", "1", "16.7%", "2", "30.9%", "2.45"] in rows
        assert ["all", "6", "100.0%", "8", "100.0%", "1.32"] in rows

    def test_keys_from_config(self, files):
        cfg = files()
        arguments = _train_loader_from_config(cfg, sampler="mine")
        assert sorted(arguments) == sorted(
            [
                *("dataset", "sampler", "mapper", "total_batch_size", "aspect_ratio_grouping", "num_workers"),
                "on_bad_image",
            ]
        )
        assert arguments["sampler"] == "mine" and type(arguments["mapper"]) is DatasetMapper
        assert arguments["mapper"].is_train and arguments["total_batch_size"] == 2

    def test_keypoints_filter(self, files):
        cfg = files(annotations=[annotation(keypoints=[1.0, 1.0, 2] * 17)])
        cfg.MODEL.KEYPOINT_ON = True
        dataset = _train_loader_from_config(cfg, mapper=dict)["dataset"]
        assert [d["image_id"] for d in dataset] == [0]

    def test_bad_image(self, files):
        cfg = files()
        path = DatasetCatalog.get("test_build")[1]["file_name"]
        noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
        Image.fromarray(noise).save(path)
        with open(path, "rb+") as f:
            f.seek(900)  # header and end, which are checked before training, are left as they are
            f.write(bytes(100))
        with pytest.raises(OSError, match=re.escape(path)):
            list(itertools.islice(build_detection_train_loader(cfg), 12))
        cfg.DATALOADER.ON_BAD_IMAGE = "skip"
        batches = list(itertools.islice(build_detection_train_loader(cfg), 12))
        assert {d["image_id"] for b in batches for d in b} == {0, 2, 3, 4, 5}
        # An evaluation must not leave out images.
        with pytest.raises(OSError, match=re.escape(path)):
            list(build_detection_test_loader(cfg, "test_build"))
        cfg.DATALOADER.ON_BAD_IMAGE = "ignore"
        with pytest.raises(ValueError, match=r"DATALOADER\.ON_BAD_IMAGE.* 'ignore'"):
            build_detection_train_loader(cfg)
        cfg.DATALOADER.ON_BAD_IMAGE = "skip"
        with open(path, "rb+") as f:
            f.truncate(1000)
        batches = list(itertools.islice(build_detection_train_loader(cfg), 12))
        assert {d["image_id"] for b in batches for d in b} == {0, 2, 3, 4, 5}
        with pytest.raises(DatasetError, match=r"1 of 6 checked image files cannot be read.*truncated"):
            build_detection_test_loader(cfg, "test_build")
        cfg.DATALOADER.ON_BAD_IMAGE = "stop"
        with pytest.raises(DatasetError, match=r"1 of 6 checked image files cannot be read.*truncated"):
            build_detection_train_loader(cfg)


@pytest.mark.parametrize("exif", ["apply", "ignore"])
def test_sizes_that_a_file_lacks_are_those_of_the_images_as_they_are_read(tmp_path, files, exif):
    """For training and evaluation, from a config and where the parts are made one by one."""
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.png", exif=turned)
    width, height = (30, 20) if exif == "ignore" else (20, 30)
    mask = {"size": [height, width], "counts": [0, 60, 540]}
    one = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [width - 6, height - 6, 5, 5], "segmentation": mask}
    images, categories = [{"id": 1, "file_name": "turned.png"}], [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    (tmp_path / "a.json").write_text(json.dumps({"images": images, "annotations": [one], "categories": categories}))
    register_coco_instances("test_build_exif", {}, str(tmp_path / "a.json"), str(tmp_path))
    try:
        cfg = files()
        cfg.INPUT.EXIF, cfg.INPUT.MASK_FORMAT, cfg.MODEL.MASK_ON = exif, "bitmask", True
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.SOLVER.IMS_PER_BATCH = ("test_build_exif",), ("test_build_exif",), 1
        for loader in (build_detection_train_loader(cfg), build_detection_test_loader(cfg, "test_build_exif")):
            (sample,) = next(iter(loader))
            assert (sample["width"], sample["height"]) == (width, height)
        (record,) = get_detection_dataset_dicts("test_build_exif", exif=exif)
        mapper = DatasetMapper(True, augmentations=[], image_format="BGR", use_instance_mask=True, exif=exif)
        assert mapper(record)["image"].shape == (3, height, width)
    finally:
        for catalog in (DatasetCatalog, MetadataCatalog):
            catalog.remove("test_build_exif")


class TestWeightedDataSets:
    @pytest.fixture
    def cfg(self, register, monkeypatch):
        # Two sets: two images of class a; eight of class b, and one without objects, which is left out.
        large = [record(i, annotation(1)) for i in range(8)] + [record(8)]
        names = (
            register([record(i, annotation(0)) for i in range(2)], "test_small", thing_classes=["a", "b"]),
            register(large, "test_large", thing_classes=["a", "b"]),
        )
        cfg = get_cfg()
        cfg.DATASETS.TRAIN = names
        cfg.DATALOADER.SAMPLER_TRAIN = "WeightedTrainingSampler"
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
        return cfg

    def sampler(self, cfg):
        # A mapper of one's own: files that are not there are only warned of.
        return _train_loader_from_config(cfg, mapper=dict)["sampler"]

    def test_weights(self, cfg, caplog):
        caplog.set_level("INFO")
        cfg.DATALOADER.DATASET_WEIGHTS = (3, 1)
        assert self.sampler(cfg).repeat_factors.tolist() == pytest.approx([3.75] * 2 + [0.3125] * 8)
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in caplog.text.splitlines()]
        assert ["dataset test_small", "2", "20.0%", "8", "75.0%", "3.75"] in rows
        assert ["dataset test_large", "8", "80.0%", "2", "25.0%", "0.31"] in rows
        assert ["class b", "8", "80.0%", "2", "25.0%", "0.31"] in rows

    def test_repeat_factors(self, cfg):
        cfg.DATASETS.TRAIN_REPEAT_FACTOR = [["test_small", 2.5]]
        assert self.sampler(cfg).repeat_factors.tolist() == [2.5] * 2 + [1.0] * 8

    def test_with_rare_classes(self, cfg):
        cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.REPEAT_THRESHOLD = "WeightedCategoryTrainingSampler", 0.8
        cfg.DATASETS.TRAIN_REPEAT_FACTOR = [["test_large", 0.5]]
        # Class a is in a fifth of the images: sqrt(0.8 / 0.2) = 2.
        assert self.sampler(cfg).repeat_factors.tolist() == pytest.approx([2.0] * 2 + [0.5] * 8)

    @pytest.mark.parametrize(
        ("weights", "repeats", "message"),
        [
            (None, None, "none is set"),
            ((1, 1), [["test_small", 2.0]], "both are set"),
            ((1,), None, "1 weights .*DATASET_WEIGHTS.* for 2 data sets"),
            (None, [["other", 2.0]], r"names \['other'\]"),
        ],
    )
    def test_errors(self, cfg, weights, repeats, message):
        if weights is not None:
            cfg.DATALOADER.DATASET_WEIGHTS = weights
        if repeats is not None:
            cfg.DATASETS.TRAIN_REPEAT_FACTOR = repeats
        with pytest.raises(ValueError, match=message):
            self.sampler(cfg)

    def test_own_data(self, cfg):
        cfg.DATALOADER.DATASET_WEIGHTS = (1, 1)
        with pytest.raises(ValueError, match="which image is of which data set"):
            _train_loader_from_config(cfg, mapper=dict, dataset=[record(1)])

    def test_many_classes(self):
        names = [f"c{i}" for i in range(300)]
        dicts = [record(i, annotation(i)) for i in range(250)]
        lines = _distribution_table(dicts, torch.ones(250), ["d"], [250], names).splitlines()
        assert sum("class c" in line for line in lines) == 100 and any("200 classes between" in line for line in lines)

    def test_without_classes(self):
        table = _distribution_table([{}], torch.tensor([2.0]), ["d", "e"], [1, 0], None)
        assert "class" not in table and "dataset e" in table


class TestValidationBeforeTraining:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"annotations": [annotation(2)]}, "Set MODEL.ROI_HEADS.NUM_CLASSES to 3"),
            ({"annotations": [annotation(bbox=[1, 1, 0, 0])]}, "without area"),
            ({"width": 99}, "another size"),
            ({"file_name": "/nowhere/at all.jpg"}, "cannot be found"),
        ],
    )
    def test_errors(self, files, caplog, changes, message):
        cfg = files(**changes)
        with pytest.raises(DatasetError, match=message):
            build_detection_train_loader(cfg)
        # With a mapper of one's own, only that mapper knows what is wrong.
        caplog.set_level("WARNING")
        if "annotations" not in changes or changes["annotations"][0]["category_id"] < 2:
            build_detection_train_loader(cfg, mapper=lambda d: d)
            assert message in caplog.text

    def test_retinanet(self, files):
        cfg = files(annotations=[annotation(1)])
        cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.RETINANET.NUM_CLASSES = "RetinaNet", 1
        with pytest.raises(DatasetError, match=r"Set MODEL\.RETINANET\.NUM_CLASSES to 2"):
            build_detection_train_loader(cfg)

    def test_other_models_have_other_keys(self, files):
        cfg = files()
        cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NUM_CLASSES = "MyOwn", 0
        build_detection_train_loader(cfg)

    def test_masks(self, files):
        cfg = files()
        cfg.MODEL.MASK_ON = True
        with pytest.raises(DatasetError, match="no 'segmentation'"):
            build_detection_train_loader(cfg)

    def test_empty_test_set(self, files):
        with pytest.raises(DatasetError, match="it is empty"):
            build_detection_test_loader(files(0), "test_build")

    def test_missing_test_image(self, files):
        with pytest.raises(DatasetError, match="cannot be found"):
            build_detection_test_loader(files(file_name="/nowhere/at all.jpg"), "test_build")

    def test_test_annotations_are_left_alone(self, files):
        build_detection_test_loader(files(annotations=[annotation(1, bbox=[0, 0, 0, 0])]), "test_build")

    def test_coco_file(self, tmp_path, register):
        """From a file on disk to the message a user reads."""
        Image.new("RGB", (30, 20)).save(tmp_path / "1.jpg")
        content = {
            "images": [{"id": 1, "file_name": "1.jpg", "width": 30, "height": 20}],
            "annotations": [{"id": 8, "image_id": 1, "category_id": 2, "bbox": [1, 1, 5, 5], "iscrowd": 0}],
            "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        }
        (tmp_path / "a.json").write_text(json.dumps(content))
        try:
            register_coco_instances("test_build_coco", {}, str(tmp_path / "a.json"), str(tmp_path))
            cfg = get_cfg()
            cfg.DATASETS.TRAIN = ("test_build_coco",)
            cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
            with pytest.raises(DatasetError, match=r"category_id 1 in annotation 0 of '.*1\.jpg' \(image_id 1\)"):
                build_detection_train_loader(cfg)
        finally:
            DatasetCatalog.remove("test_build_coco")
            MetadataCatalog.remove("test_build_coco")


class TestTestLoader:
    @pytest.mark.parametrize("num_workers", [0, 2])
    @pytest.mark.parametrize(("batch_size", "lengths"), [(1, [1] * 5), (2, [2, 2, 1])])
    def test_explicit(self, num_workers, batch_size, lengths):
        dicts = [record(i) for i in range(5)]
        loader = build_detection_test_loader(
            dicts, mapper=lambda d: d["image_id"], batch_size=batch_size, num_workers=num_workers
        )
        batches = list(loader)
        assert [len(b) for b in batches] == lengths and [i for b in batches for i in b] == list(range(5))

    def test_empty(self):
        assert list(build_detection_test_loader([], mapper=str)) == []

    def test_collation(self):
        assert list(build_detection_test_loader([1, 2], mapper=int, batch_size=2, collate_fn=sum)) == [3]

    def test_from_config(self, files):
        cfg = files()
        loader = build_detection_test_loader(cfg, "test_build")
        batches = list(loader)
        assert [b[0]["image_id"] for b in batches] == list(range(6)) and all(len(b) == 1 for b in batches)
        assert all("instances" not in b[0] for b in batches)
        assert len(list(build_detection_test_loader(cfg, ["test_build"], batch_size=4))) == 2

    def test_own_mapper(self, files):
        loader = build_detection_test_loader(files(), "test_build", mapper=lambda d: d["image_id"])
        assert list(loader) == [[i] for i in range(6)]

    def test_proposals(self, files, tmp_path):
        cfg = files(1)
        boxes = np.array([[1.0, 1, 20, 20]])
        content = {"ids": [0], "boxes": [boxes], "objectness_logits": [np.zeros(1)]}
        (tmp_path / "p.pkl").write_bytes(pickle.dumps(content))
        cfg.MODEL.LOAD_PROPOSALS = True
        cfg.DATASETS.PROPOSAL_FILES_TEST = (str(tmp_path / "p.pkl"),)
        (batch,) = build_detection_test_loader(cfg, "test_build")
        assert len(batch[0]["proposals"]) == 1


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("dataset", "mapper", "match"),
    [
        (None, None, "dataset must be a list of dicts.* not NoneType"),
        ("coco_2017_val", None, "dataset must be .* not str"),
        ({"images": []}, None, "dataset must be .* not dict"),
        (iter([{}]), None, r"dataset must be .* not list_iterator\. Make a list of it"),
        ([{}], "mapper", "mapper must be a function .*not 'mapper'"),
    ],
)
def test_what_no_loader_can_be_made_of(train, dataset, mapper, match):
    with pytest.raises(TypeError, match=match):
        if train:
            build_detection_train_loader(dataset, mapper=mapper, total_batch_size=1)
        else:
            build_detection_test_loader(dataset, mapper=mapper)


@pytest.mark.parametrize("name", ["DINO", "DeformableDETR", "MaskFormer", "HFDetector"])
def test_a_model_of_a_project_may_have_the_name_of_one_of_ours(name):
    """It has its own keys, so the number of its classes is not known."""
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = name
    assert expected_by_model(cfg)["num_classes"] is None
    cfg.MODEL.DEFORMABLE_DETR = CfgNode({"NUM_OBJECT_QUERIES": 3})
    assert expected_by_model(cfg)["num_classes"] is None
