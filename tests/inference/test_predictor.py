"""`Predictor`: the same results as the other ways to predict, in order, however images come and are grouped."""

import dataclasses
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import detectron2
from detectron2.data import DatasetMapper, Metadata, build_detection_test_loader
from detectron2.engine import DefaultPredictor
from detectron2.export.api import export_model
from detectron2.inference import Frame, Predictor, Result, read_frames
from detectron2.inference.loading import load
from detectron2.modeling import ProposalNetwork
from detectron2.structures import Boxes, Instances
from tests.export.conftest import mapper as _mapper
from tests.export.conftest import segmenter as _segmenter

mapper, segmenter = _mapper, _segmenter


class Recorder(nn.Module):
    """A model whose one object has the number in the first pixel as its class; it notes the sizes in each batch."""

    def __init__(self, divisor: int = 32, fields=("instances",)):
        super().__init__()
        self.register_buffer("pixel_mean", torch.full((3, 1, 1), 100.0))
        self.backbone = nn.Identity()
        self.backbone.size_divisibility = divisor
        self.fields, self.batches, self.modes = fields, [], []

    def forward(self, inputs):
        self.batches.append([tuple(x["image"].shape[1:]) for x in inputs])
        self.modes.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        results = []
        for x in inputs:
            found = Instances((x["height"], x["width"]), pred_boxes=Boxes(torch.zeros(1, 4)))
            found.scores, found.pred_classes = torch.tensor([0.5]), x["image"][0, 0, :1].long()
            results.append(dict.fromkeys(self.fields, found))
        return results


def recorder(batch_size: int = 4, size: int = 0, **options) -> Predictor:
    """A Predictor with that model, which leaves images as they are."""
    mapper = DatasetMapper(False, augmentations=[], image_format="BGR")
    return Predictor(Recorder().eval(), batch_size=batch_size, mapper=mapper, optimize=False, **options)


def numbered(sizes_hw, start: int = 0):
    """Images of these sizes with their number as the value of all pixels."""
    return [np.full((*size, 3), i, np.uint8) for i, size in enumerate(sizes_hw, start)]


def classes(results) -> list[int]:
    return [int(result.instances.pred_classes) for result in results]


def assert_same(result: Result, expected: Instances, atol: float = 0.0) -> None:
    found = result.instances
    assert found.image_size == expected.image_size and len(found) == len(expected)
    assert torch.equal(found.pred_classes, expected.pred_classes)
    for name in ("pred_boxes", "scores"):
        a, b = (x.get(name).tensor if name == "pred_boxes" else x.get(name) for x in (found, expected))
        torch.testing.assert_close(a, b, rtol=0, atol=atol)
    if atol == 0:
        assert torch.equal(found.pred_masks, expected.pred_masks)


def test_no_images():
    assert list(recorder()([])) == []
    assert recorder().predict_batch([]) == []


def test_it_is_found_in_the_package():
    assert detectron2.Predictor is Predictor and "Predictor" in dir(detectron2)


class TestSameAsOthers:
    def test_default_predictor(self, tiny_cfg, tiny_images):
        default = DefaultPredictor(tiny_cfg)
        expected = [default(image)["instances"] for image in tiny_images]
        one_by_one = Predictor(tiny_cfg, device="cpu", batch_size=1)
        for result, instances in zip(one_by_one(tiny_images), expected, strict=True):
            assert_same(result, instances)
        for optimize in (False, True):
            in_batches = Predictor(tiny_cfg, device="cpu", batch_size=3, optimize=optimize)
            for result, instances in zip(in_batches(tiny_images), expected, strict=True):
                assert_same(result, instances, atol=1e-3)

    def test_test_loader(self, tiny_cfg, tiny_files):
        predictor = Predictor(tiny_cfg, device="cpu", batch_size=1, optimize=False)
        records = [{"file_name": str(file)} for file in tiny_files]
        loader = build_detection_test_loader(records, mapper=DatasetMapper(tiny_cfg, is_train=False))
        with torch.no_grad():
            expected = [predictor.model(inputs)[0]["instances"] for inputs in loader]
        for result, instances in zip(predictor(tiny_files), expected, strict=True):
            assert_same(result, instances)

    def test_checkpoint_config_beside_it_and_names(self, tiny_cfg, tiny_files):
        predictor = Predictor(tiny_cfg.MODEL.WEIGHTS, device="cpu")
        result = predictor(tiny_files[0])
        assert predictor.cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3 and set(result.names) <= {"ant", "bee", "cat"}
        assert (result.path, result.size_hw) == (str(tiny_files[0]), (60, 80))
        assert result.seconds > 0


class TestBatches:
    def test_order_and_groups(self):
        """Images that are padded to one size go together, as far as four batches ahead."""
        sizes = [(64, 64), (64, 96), (60, 50), (64, 96), (64, 64)]
        predictor = recorder(batch_size=3)
        assert classes(predictor(numbered(sizes))) == [0, 1, 2, 3, 4]
        assert predictor.model.batches == [[(64, 64), (60, 50), (64, 64)], [(64, 96), (64, 96)]]

    def test_look_ahead_is_bounded(self):
        taken = itertools.count()

        def endless():
            for image in itertools.cycle(numbered([(32, 32), *[(64, 64)] * 40])):
                next(taken)
                yield image

        results = recorder(batch_size=2)(endless())
        next(results)
        assert next(taken) <= 4 * 2 + 1
        assert len(list(itertools.islice(results, 50))) == 50
        results.close()

    def test_one_size_is_not_waited_for_longer_than_for_two_batches(self):
        taken = []
        results = recorder(batch_size=2)(taken.append(i) or image for i, image in enumerate(numbered([(32, 32)] * 20)))
        next(results)
        assert len(taken) <= 4

    def test_camera_like_sources_are_not_read_ahead(self):
        taken = []
        images = (taken.append(i) or image for i, image in enumerate(numbered([(32, 32)] * 3)))
        for i, _ in enumerate(recorder(batch_size=1)(images)):
            assert taken == list(range(i + 1))

    def test_square_padding(self):
        predictor = recorder(batch_size=8)
        predictor.model.backbone.padding_constraints = {"size_divisibility": 32, "square_size": 96}
        list(predictor(numbered([(32, 64), (64, 96), (96, 33)])))
        assert len(predictor.model.batches) == 1

    def test_frames_in_memory(self):
        frames = [Frame(x, f"image {i}", None, i) for i, x in enumerate(numbered([(32, 32), (64, 64), (32, 32)]))]
        frames.insert(1, dataclasses.replace(frames[0], image=None, error=OSError("broken")))
        found = recorder().predict_batch(frames)
        assert [result.error is None for result in found] == [True, False, True, True]
        assert classes(r for r in found if r.error is None) == [0, 1, 2]

    def test_reading_is_left_to_the_caller(self, tiny_files):
        frames = read_frames(tiny_files[:2], image_format="BGR")
        assert [r.path for r in recorder().predict_frames(frames)] == [str(f) for f in tiny_files[:2]]


class TestErrors:
    @pytest.mark.parametrize("batch_size", [1, 3])
    def test_bad_image_in_its_place(self, tiny_files, tmp_path, batch_size):
        (tmp_path / "bad.png").write_bytes(b"no image")
        predictor = recorder(batch_size=batch_size)
        sources = [*tiny_files[:2], tmp_path / "bad.png", *tiny_files[2:]]
        results = predictor(sources)
        assert [next(results).error, next(results).error] == [None, None]
        with pytest.raises(OSError, match=r"bad\.png"):
            next(results)
        kept = list(predictor(sources, on_error="keep"))
        assert [i for i, r in enumerate(kept) if r.error is not None] == [2]
        assert [r.path for r in kept] == [str(s) for s in sources]

    def test_one_bad_image(self, tmp_path):
        (tmp_path / "bad.png").write_bytes(b"no image")
        with pytest.raises(OSError, match=r"bad\.png"):
            recorder()(tmp_path / "bad.png")
        assert isinstance(recorder()(tmp_path / "bad.png", on_error="keep").error, OSError)

    def test_errors_of_the_model_are_never_kept(self):
        predictor = recorder()
        predictor.model.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(predictor(numbered([(32, 32)]), on_error="keep"))

    @pytest.mark.parametrize(
        ("image", "error", "cure"),
        [
            (np.full((8, 8, 3), 0.5, np.float32), ValueError, "give scale=255"),
            (np.full((8, 8, 3), 65535, np.uint16), ValueError, "give scale=1/257"),
            (np.full((8, 8, 3), -1.5), ValueError, "scale them as in training"),
            (np.ones((8, 8, 3), bool), TypeError, "give scale=255"),
        ],
    )
    def test_other_ranges(self, image, error, cure):
        with pytest.raises(error, match=cure):
            recorder()(image)
        with pytest.raises(error, match=f"^image 1: .*{cure}"):  # which one, of many
            list(recorder()([*numbered([(8, 8)]), image]))

    def test_scaled_images_are_those_of_8_bits(self):
        image = numbered([(8, 8)], start=51)[0]
        for other, scale in ((image / 255, 255), (image.astype(np.uint16) * 257, 1 / 257)):
            assert classes([recorder()(other, scale=scale)]) == [51]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"precision": "int8"}, "precision must be 'fp32', 'bf16' or 'fp16', got 'int8'"),
            ({"backend": "tensorrt"}, "backend must be 'torch', 'compiled', 'onnx' or 'openvino'"),
            ({"backend": "onnx"}, "detectron2 export --weights FILE --format onnx"),
            ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
            ({"workers": -1}, "workers must be a whole number of at least 0"),
            ({"score_threshold": 30}, r"score_threshold must lie in 0\.\.1, got 30"),
            ({"mask_format": "polygon"}, 'mask_format must be "full", "rle" or None'),
            ({"tile": 0}, "tile"),
            ({"device": "gpu"}, "'gpu', which is not a device"),
            ({"tta": True}, "TEST.AUG of a YAML config"),
            ({"weights": "model.pth"}, "comes with its weights loaded"),
        ],
    )
    def test_arguments(self, options, message):
        with pytest.raises(ValueError, match=message):
            recorder(**options)

    @pytest.mark.parametrize("options", [{"color": "grb"}, {"on_error": "ignore"}, {"scale": 0}, {"scale": np.nan}])
    def test_arguments_of_a_call(self, options):
        (name,) = options
        with pytest.raises(ValueError, match=name):
            recorder()(np.zeros((8, 8, 3), np.uint8), **options)

    def test_model_in_training_mode(self):
        with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
            Predictor(Recorder())

    def test_models_of_other_kinds(self):
        predictor = Predictor(Recorder(fields=("proposals",)).eval())
        with pytest.raises(TypeError, match="returns proposals"):
            predictor(np.zeros((8, 8, 3), np.uint8))
        with pytest.raises(TypeError, match=r"Expected a checkpoint, a config, .* got int"):
            Predictor(3)

    def test_random_weights(self, tiny_cfg):
        empty = ["MODEL.WEIGHTS", ""]
        with pytest.raises(ValueError, match="No weights"):
            Predictor(tiny_cfg, overrides=empty, device="cpu")
        other = ["MODEL.ROI_HEADS.NUM_CLASSES", 4]
        with pytest.raises(ValueError, match="roi_heads"):
            Predictor(tiny_cfg, overrides=other, device="cpu")
        for overrides in (empty, other):
            predictor = Predictor(tiny_cfg, overrides=overrides, device="cpu", allow_random_weights=True)
            assert predictor(np.zeros((40, 40, 3), np.uint8)).error is None


class TestSources:
    def test_one_image_in_many_forms(self, tiny_images, tiny_files):
        predictor = recorder()
        image = tiny_images[0]
        forms = [tiny_files[0], str(tiny_files[0]), tiny_files[0].read_bytes(), Image.open(tiny_files[0]), image]
        forms.append(torch.from_numpy(image.transpose(2, 0, 1).copy()))
        for form in forms:
            assert classes([predictor(form)]) == [int(image[0, 0, 0])]
        assert classes([predictor(image, color="rgb")]) == [int(image[0, 0, 2])]
        assert classes([predictor(image[:, :, 0])]) == [int(image[0, 0, 0])]

    def test_folder(self, tiny_files):
        assert [r.path for r in recorder()(tiny_files[0].parent)] == [str(f) for f in tiny_files]


class TestOptions:
    def test_score_threshold(self, tiny_cfg, tiny_images):
        """Below and above that of the model."""
        found = Predictor(tiny_cfg, device="cpu")(tiny_images[0]).instances.scores
        middle = float(found.median())
        above = Predictor(tiny_cfg, device="cpu", score_threshold=middle)(tiny_images[0]).instances
        assert above.scores.tolist() == found[found >= middle].tolist() and len(above) < len(found)
        high = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.99]
        assert len(Predictor(tiny_cfg, device="cpu", overrides=high)(tiny_images[0]).instances) == 0
        low = Predictor(tiny_cfg, device="cpu", overrides=high, score_threshold=0.0)
        torch.testing.assert_close(low(tiny_images[0]).instances.scores, found)

    def test_masks_as_run_lengths(self, tiny_cfg, tiny_images):
        whole = Predictor(tiny_cfg, device="cpu")(tiny_images[0])
        result = Predictor(tiny_cfg, device="cpu", mask_format="rle")(tiny_images[0])
        assert not result.instances.has("pred_masks")
        assert result.to_coco(image_id=1) == whole.to_coco(image_id=1)

    def test_precision(self, tiny_cfg, tiny_images):
        if torch.ops.mkldnn._is_mkldnn_fp16_supported():
            Predictor(tiny_cfg, device="cpu", precision="fp16")
        predictor = Predictor(Recorder().eval(), precision="bf16")
        predictor(tiny_images[0])
        assert predictor.model.modes == [(False, True)]
        found = Predictor(tiny_cfg, device="cpu", precision="bf16")(tiny_images[0]).instances
        assert {found.scores.dtype, found.pred_boxes.tensor.dtype} == {torch.float32}

    def test_precision_that_the_processor_lacks(self, monkeypatch):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)
        with pytest.raises(ValueError, match=r"'fp16' needs a CPU with AVX512-FP16 .* Take 'fp32', or 'bf16'"):
            Predictor(Recorder().eval(), precision="fp16")

    def test_augmented(self, tiny_cfg, tiny_images):
        sizes = ["TEST.AUG.MIN_SIZES", (64, 96), "TEST.AUG.ENABLED", True]
        with_config = Predictor(tiny_cfg, device="cpu", overrides=sizes)(tiny_images[0])
        cfg = tiny_cfg.clone()
        cfg.defrost()
        cfg.merge_from_list(sizes)
        assert_same(with_config, DefaultPredictor(cfg)(tiny_images[0])["instances"])
        off = Predictor(cfg, device="cpu", tta=False)(tiny_images[0])
        assert_same(off, DefaultPredictor(tiny_cfg)(tiny_images[0])["instances"])

    def test_augmented_keypoints(self, tiny_cfg, tiny_images):
        """Which ones change places says the metadata of the checkpoint; the data sets of the training are not known."""
        options = ["TEST.AUG.MIN_SIZES", (64,), "MODEL.KEYPOINT_ON", True, "DATASETS.TRAIN", ("_not_here",)]
        options += ["MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 2, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", (4,)]
        metadata = Metadata().set(keypoint_names=["left", "right"], keypoint_flip_map=[["left", "right"]])
        arguments = {"device": "cpu", "overrides": options, "tta": True, "allow_random_weights": True}
        predictor = Predictor(tiny_cfg, metadata=metadata, **arguments)
        assert predictor(tiny_images[0]).instances.pred_keypoints.shape[1:] == (2, 3)
        with pytest.raises(ValueError, match=r"TEST\.AUG\.FLIP to False"):
            Predictor(tiny_cfg, **arguments)

    def test_tiles(self):
        """Each has the objects of its part; all have the size of a tile."""
        predictor = recorder(tile=(32, 48), overlap=0)
        image = np.zeros((64, 96, 3), np.uint8)
        result = predictor(image)
        assert predictor.model.batches == [[(32, 48)] * 4]
        assert result.size_hw == (64, 96) and result.instances.image_size == (64, 96)
        assert len(list(predictor([image] * 2))) == 2

    def test_compiled(self, monkeypatch, tiny_cfg, tiny_images):
        """On a copy of a model that was given."""
        monkeypatch.setattr(torch, "compile", lambda function, **kwargs: function)  # whose import takes seconds
        model = Recorder().eval()
        predictor = Predictor(model, backend="compiled")
        assert classes([predictor(numbered([(8, 8)], start=7)[0])]) == [7]
        assert model.backbone._compiled_call_impl is None and predictor.backend == "compiled"

    def test_settings_leave_a_given_model_as_it_was(self, tiny_cfg, tiny_images):
        model = load(tiny_cfg, device="cpu").model
        predictor = Predictor(model, optimize=False, mask_format="rle", score_threshold=0.0)
        assert predictor(tiny_images[0]).instances.has("pred_masks_rle")
        assert model.mask_format == "full"

    def test_names_of_a_module(self):
        names = Metadata().set(name="own", thing_classes=["zero", "one"])
        predictor = Predictor(Recorder().eval(), metadata=names)
        assert predictor.metadata is names and predictor.cfg is None and predictor.device == torch.device("cpu")
        assert predictor(numbered([(8, 8)], start=1)[0]).names == ["one"]


class OwnMapper(DatasetMapper):
    """Makes images black."""

    def __call__(self, dataset_dict):
        return {"image": super().__call__(dataset_dict)["image"] * 0}


def test_mappers_of_ones_own(tiny_files, tiny_images):
    own = OwnMapper(False, augmentations=[], image_format="BGR")
    predictor = Predictor(Recorder().eval(), mapper=own)
    assert classes([predictor(tiny_files[0])]) == [0]
    with pytest.raises(ValueError, match=r"OwnMapper.* reads files itself"):
        predictor(tiny_images[0])
    with pytest.raises(ValueError, match="without augmentations and image_format"):
        Predictor(Recorder().eval(), mapper=lambda x: x)


def test_precomputed_proposals():
    mapper = DatasetMapper(False, augmentations=[], image_format="BGR", precomputed_proposal_topk=10)
    with pytest.raises(ValueError, match="LOAD_PROPOSALS"):
        Predictor(Recorder().eval(), mapper=mapper)


def test_several_threads(tiny_cfg, tiny_images):
    """Options of one call do not reach another, and every result is that of its own image."""
    predictor = Predictor(tiny_cfg, device="cpu", batch_size=2, score_threshold=0.0, mask_format="rle")
    expected = [[x.to_coco(image_id=0) for x in predictor([image])] for image in tiny_images]
    start = threading.Barrier(4)

    def work(number: int):
        start.wait()
        order = [(number + i) % len(tiny_images) for i in range(len(tiny_images))]
        return order, [x.to_coco(image_id=0) for x in predictor([tiny_images[i] for i in order])]

    with ThreadPoolExecutor(4) as pool:
        for order, found in pool.map(work, range(4)):
            for i, records in zip(order, found, strict=True):
                (alone,) = expected[i]
                assert [r["category_id"] for r in records] == [r["category_id"] for r in alone]
                np.testing.assert_allclose([r["bbox"] for r in records], [r["bbox"] for r in alone], atol=1e-3)


class TestExportedModel:
    @pytest.fixture
    def folder(self, segmenter, mapper, tmp_path):
        names = Metadata().set(name="own", stuff_classes=["sky", "sea", "sand", "sun"])
        export_model(segmenter, tmp_path / "out", "pt2", mapper=mapper, metadata=names, size=(48, 96), verify=False)
        return tmp_path / "out"

    def test_labels(self, folder, segmenter, mapper):
        image = np.random.default_rng(0).integers(0, 256, (48, 96, 3), dtype=np.uint8)
        predictor = Predictor(folder)
        assert (predictor.backend, predictor.image_format, predictor.cfg) == ("pt2", "RGB", None)
        assert predictor.metadata.stuff_classes == ["sky", "sea", "sand", "sun"]
        expected = Predictor(segmenter, mapper=mapper)(image).sem_seg.argmax(dim=0)
        assert torch.equal(predictor(image).sem_seg.argmax(dim=0), expected)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"backend": "onnx"}, "it was exported as pt2"),
            ({"precision": "bf16"}, "was exported in fp32"),
            ({"device": "meta"}, "exported ones run on the CPU here"),
            ({"weights": "a.pth"}, "has its weights and its config built in"),
            ({"tta": True}, "An exported model has no test-time augmentation"),
        ],
    )
    def test_what_it_cannot_do(self, folder, options, message):
        with pytest.raises(ValueError, match=message):
            Predictor(folder, **options)


def test_proposals_are_refused(tiny_cfg):
    predictor = Predictor(
        tiny_cfg,
        device="cpu",
        overrides=["MODEL.META_ARCHITECTURE", "ProposalNetwork", "MODEL.WEIGHTS", ""],
        allow_random_weights=True,
    )
    assert isinstance(predictor.model, ProposalNetwork)
    with pytest.raises(TypeError, match=r"ProposalNetwork.* returns proposals\. Call predictor\.model"):
        predictor(np.zeros((40, 40, 3), np.uint8))


def test_the_model_may_change(tiny_cfg):
    image = np.full((64, 80, 3), 90, np.uint8)
    predictor = Predictor(tiny_cfg, device="cpu")
    before = predictor(image).instances
    plain = Predictor(tiny_cfg, device="cpu", optimize=False)
    with torch.no_grad():
        for model in (predictor.model, plain.model):
            model.backbone.bottom_up.stem.conv1.weight.mul_(-3.0)
    after = predictor(image).instances
    assert after.pred_boxes.tensor.shape != before.pred_boxes.tensor.shape or not torch.equal(
        after.pred_boxes.tensor, before.pred_boxes.tensor
    )
    torch.testing.assert_close(after.pred_boxes.tensor, plain(image).instances.pred_boxes.tensor, atol=1e-3, rtol=1e-4)
    seen = []
    predictor.model.backbone.register_forward_hook(lambda *_: seen.append(1))
    predictor(image)
    assert seen == [1]
    predictor.model.train()
    with pytest.raises(ValueError, match=r"call predictor\.model\.eval\(\)"):
        predictor(image)
