import copy
import json
import types

import numpy as np
import pytest
import torch

from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch import HFSegmenter
from detectron2.structures import BitMasks, Instances, PolygonMasks
from tests.e2e.conftest import shapes, shapes_dir
from tests.modeling.meta_arch.hf_configs import DETECTORS, SEGMENTERS

__all__ = ["shapes", "shapes_dir"]

transformers = pytest.importorskip("transformers")


def segmenter(kind="mask2former", task="instance", **options):
    torch.manual_seed(0)
    arguments = {"pixel_mean": [0.0] * 3, "pixel_std": [255.0] * 3, "num_things": 2, "max_detections_per_image": 1000}
    return HFSegmenter(config=SEGMENTERS[kind], task=task, **{**arguments, **options})


def batch():
    """Three images: with two things, with one, and with stuff only."""
    random = torch.Generator().manual_seed(0)
    inputs = []
    for (height, width), count in (((60, 90), 2), ((64, 70), 1), ((50, 64), 0)):
        target = Instances((height, width))
        target.gt_classes = torch.arange(count)
        boxes = [(0, 0, width, height), (3, 4, 20, 30)][:count]
        target.gt_masks = PolygonMasks([[np.array([a, b, c, b, c, d, a, d], dtype=float)] for a, b, c, d in boxes])
        labels = torch.zeros(height, width, dtype=torch.int64)
        labels[:20], labels[30:, :9], labels[40:] = 1, 2, 255
        image = torch.randint(0, 256, (3, height, width), generator=random, dtype=torch.uint8)
        inputs.append(
            {"image": image, "instances": target, "sem_seg": labels, "height": 2 * height, "width": 3 * width}
        )
    return inputs


def wanted_targets(inputs, task, size_hw):
    """Masks and labels as they are meant, written out."""
    height, width = size_hw
    masks, classes = [], []
    for i, item in enumerate(inputs):
        h, w = item["image"].shape[1:]
        of_image = torch.zeros(0, height, width)
        labels = []
        for j in range((2, 1, 0)[i] if task != "semantic" else 0):
            mask = torch.zeros(1, height, width)
            mask[0, :h, :w] = 1.0 if j == 0 else 0.0
            if j == 1:
                mask[0, 4:30, 3:20] = 1.0
            of_image, labels = torch.cat([of_image, mask]), [*labels, j]
        for value in {"instance": (), "semantic": (0, 1, 2), "panoptic": (1, 2)}[task]:
            mask = torch.zeros(1, height, width)
            mask[0, :h, :w] = item["sem_seg"] == value
            of_image = torch.cat([of_image, mask])
            labels.append(value if task == "semantic" else 2 + value - 1)
        masks.append(of_image)
        classes.append(torch.tensor(labels, dtype=torch.int64))
    return masks, classes


def wanted_texts(task):
    """What OneFormer reads of the batch, written out: the task, and objects by their class, 5 texts for 7 queries."""
    ids = SEGMENTERS["oneformer"]["text_ids"]
    empty = {"instance": "an instance photo", "semantic": "a semantic photo", "panoptic": "an panoptic photo"}[task]
    objects = {"instance": ("01", "0", ""), "semantic": ("012",) * 3, "panoptic": ("0123", "023", "23")}[task]
    texts = [[*(f"a photo with a label {i}" for i in labels), *[empty] * (5 - len(labels))] for labels in objects]

    def tokens(text):
        return ids[text] + [0] * (12 - len(ids[text]))

    return {
        "task_inputs": torch.tensor([tokens(f"the task is {task}")] * 3),
        "text_inputs": torch.tensor([[tokens(text) for text in of_image] for of_image in texts]),
    }


class TestLosses:
    @pytest.mark.parametrize("kind", SEGMENTERS)
    def test_no_objects_at_all(self, kind):
        losses = segmenter(kind)(batch()[2:])
        assert all(torch.isfinite(loss) for loss in losses.values())
        assert float(losses["loss_mask"].detach()) == 0.0

    @pytest.mark.parametrize("task", ["instance", "semantic", "panoptic"])
    @pytest.mark.parametrize("kind", SEGMENTERS)
    def test_they_are_those_of_the_library(self, kind, task):
        model, inputs = segmenter(kind, task), batch()
        side = (96, 96) if kind == "eomt" else (64, 96)
        pixels, mask = torch.zeros(3, 3, *side), torch.zeros(3, *side, dtype=torch.int64)
        for i, item in enumerate(inputs):
            h, w = item["image"].shape[1:]
            pixels[i, :, :h, :w], mask[i, :h, :w] = item["image"] / 255.0, 1
        masks, classes = wanted_targets(inputs, task, side)
        other = copy.deepcopy(model.network)
        options = {} if kind == "eomt" else {"pixel_mask": mask, "output_hidden_states": True}
        if kind == "oneformer":
            options |= wanted_texts(task)
        torch.manual_seed(1)
        wanted = other(pixel_values=pixels, mask_labels=masks, class_labels=classes, **options).loss
        torch.manual_seed(1)
        losses = model(inputs)
        total = sum(losses.values())
        assert torch.allclose(total, wanted, rtol=1e-5)
        assert {"loss_mask", "loss_dice", "loss_cross_entropy", "loss_mask_0"} <= set(losses)
        total.backward()
        wanted.sum().backward()
        for (name, a), b in zip(model.network.named_parameters(), other.parameters(), strict=True):
            assert a.grad is None or torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-5), name
        assert not model.network.criterion._forward_hooks

    def test_bit_masks_and_polygons_are_the_same(self):
        model, inputs = segmenter(), batch()
        torch.manual_seed(1)
        wanted = model(inputs)
        for item in inputs:
            target, size = item["instances"], item["image"].shape[1:]
            target.gt_masks = BitMasks.from_polygon_masks(target.gt_masks, *size)
        torch.manual_seed(1)
        assert all(torch.equal(loss, wanted[name]) for name, loss in model(inputs).items())

    def test_what_is_missing(self):
        inputs = batch()
        inputs[0]["instances"].remove("gt_masks")
        with pytest.raises(ValueError, match=r"have no gt_masks.* set MODEL\.MASK_ON"):
            segmenter()(inputs)
        with pytest.raises(KeyError, match="has no 'sem_seg'"):
            segmenter(task="semantic")([{"image": inputs[0]["image"]}])


SIZES = {"mask2former": (384, 384), "eomt": (64, 96)}  # where the library's way and ours are the same


@pytest.fixture(scope="module", params=SIZES)
def predicted(request):
    """A model, the outputs of its network for one image, the image processor of the library, and its options."""
    kind = request.param
    height, width = SIZES[kind]
    options: dict = {}
    if kind == "eomt":
        processor, options["size"] = transformers.EomtImageProcessor(), {"shortest_edge": 96, "longest_edge": 96}
    else:
        processor = transformers.Mask2FormerImageProcessor()
    model = segmenter(kind, "panoptic", object_mask_thresh=0.25, overlap_thresh=0.3).eval()
    with torch.no_grad():  # scores and masks that differ from query to query
        model.network.class_predictor.weight.mul_(100)
        image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0)) * 255
        inputs = [{"image": image}]
        outputs = {}
        handle = model.network.register_forward_hook(lambda module, args, out: outputs.update(out=out))
        found = model(inputs)[0]
        handle.remove()
    return kind, model, found, outputs["out"], processor, options


class TestResults:
    def test_instances(self, predicted):
        kind, model, _, outputs, processor, options = predicted
        size = SIZES[kind]
        outputs = copy.copy(outputs)
        if kind == "mask2former":  # things alone are instances
            options = {**options, "return_binary_maps": True}
        # Without stuff in the scores the library sees what the things are given.
        model = copy.deepcopy(model)
        model.num_things, model.task = 4, "instance"
        ours = model._result(
            outputs.class_queries_logits[0].softmax(-1), _at(outputs.masks_queries_logits[0], size, kind)
        )["instances"]
        wanted = processor.post_process_instance_segmentation(outputs, target_sizes=[size], threshold=0.0, **options)[0]
        assert len(ours) == len(wanted["segments_info"]) > 3
        scores = torch.tensor([s["score"] for s in wanted["segments_info"]])
        order = scores.argsort(descending=True, stable=True)
        assert torch.allclose(ours.scores, scores[order], atol=1e-4)
        labels = torch.tensor([s["label_id"] for s in wanted["segments_info"]])
        assert torch.equal(ours.pred_classes, labels[order])
        if kind == "mask2former":
            assert torch.equal(ours.pred_masks, wanted["segmentation"][order].bool())
        assert ours.pred_masks.shape[1:] == size
        boxes = BitMasks(ours.pred_masks).get_bounding_boxes()
        assert torch.equal(ours.pred_boxes.tensor, boxes.tensor)

    def test_semantic(self, predicted):
        kind, _, found, outputs, processor, _ = predicted
        if kind == "eomt":
            pytest.skip("the library cuts images into patches there")
        wanted = processor.post_process_semantic_segmentation(outputs, [SIZES[kind]], return_segmentation_scores=True)
        scores = wanted[0]["segmentation_scores"]
        things = scores[:2].amax(0, keepdim=True)
        assert torch.allclose(found["sem_seg"], torch.cat([things, scores[2:]]), atol=1e-5)

    def test_panoptic(self, predicted):
        kind, _, found, outputs, processor, options = predicted
        arguments = {"label_ids_to_fuse": {2, 3}} if kind == "mask2former" else {"stuff_classes": [2, 3]}
        wanted = processor.post_process_panoptic_segmentation(
            outputs, target_sizes=[SIZES[kind]], threshold=0.25, overlap_mask_area_threshold=0.3, **arguments, **options
        )[0]
        panoptic, segments = found["panoptic_seg"]
        assert segments
        assert sorted(panoptic.unique().tolist()) in ([s["id"] for s in segments], [0] + [s["id"] for s in segments])
        of_segment = {s["id"]: s["category_id"] + (0 if s["isthing"] else 1) for s in segments}
        categories = torch.full(SIZES[kind], -1)
        for number, category in of_segment.items():
            categories[panoptic == number] = category
        wanted_categories = torch.full(SIZES[kind], -1)
        for segment in wanted["segments_info"]:
            wanted_categories[wanted["segmentation"] == segment["id"]] = segment["label_id"]
        assert torch.equal(categories, wanted_categories)

    def test_one_former(self):
        """Semantic and panoptic results at the size that the network gives; the library resizes probabilities."""
        processor = transformers.models.oneformer.OneFormerImageProcessor
        model = segmenter("oneformer", "panoptic", object_mask_thresh=0.25, overlap_thresh=0.3).eval()
        with torch.no_grad():
            random = torch.Generator().manual_seed(0)
            coarse = torch.randn(1, 7, 4, 6, generator=random) * 6
            outputs = types.SimpleNamespace(
                class_queries_logits=torch.randn(1, 7, 5, generator=random) * 3,
                masks_queries_logits=torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bilinear"),
            )
            found = model._result(outputs.class_queries_logits[0].softmax(-1), outputs.masks_queries_logits[0])
        scores = processor.post_process_semantic_segmentation(None, outputs, None, True)[0]["segmentation_scores"]
        assert torch.allclose(found["sem_seg"], torch.cat([scores[:2].amax(0, keepdim=True), scores[2:]]), atol=1e-5)
        wanted = processor.post_process_panoptic_segmentation(None, outputs, 0.25, 0.5, 0.3, {2, 3})[0]
        panoptic, segments = found["panoptic_seg"]
        assert len({s["id"] for s in segments}) == len({s["id"] for s in wanted["segments_info"]}) > 1
        labels = [s["category_id"] + (0 if s["isthing"] else 1) for s in segments]
        assert {*labels} == {s["label_id"] for s in wanted["segments_info"]}
        assert torch.equal(panoptic, wanted["segmentation"])

    @pytest.mark.parametrize("kind", SEGMENTERS)
    def test_dropout_is_off(self, kind):
        config = {**SEGMENTERS[kind], **({"dropout": 0.5} if kind in ("mask2former", "oneformer") else {})}
        model = HFSegmenter(config=config, pixel_mean=[0.0] * 3, pixel_std=[255.0] * 3).eval()
        with torch.no_grad():
            first, second = model(batch()), model(batch())
        assert torch.equal(first[0]["instances"].scores, second[0]["instances"].scores)

    def test_size_of_the_photo(self):
        model = segmenter("maskformer", "panoptic").eval()
        with torch.no_grad():
            results = model(batch())
        for item, result in zip(batch(), results, strict=True):
            size = (item["height"], item["width"])
            assert result["instances"].image_size == size == tuple(result["panoptic_seg"][0].shape)
            assert result["sem_seg"].shape == (3, *size)

    def test_large_image_for_a_network_of_one_size(self):
        with pytest.raises(ValueError, match=r"a side of 97 pixels, .* squares of 96: set INPUT\.MAX_SIZE_TRAIN"):
            segmenter("eomt").eval()([{"image": torch.zeros(3, 20, 97)}])


def _at(masks, size_hw, kind):
    """Mask logits at the size of the image."""
    padded = (96, 96) if kind == "eomt" else size_hw
    masks = torch.nn.functional.interpolate(masks[None], size=padded, mode="bilinear", align_corners=False)[0]
    return masks[:, : size_hw[0], : size_hw[1]]


def cfg_of(*options):
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "HFSegmenter", "MODEL.DEVICE", "cpu", "MODEL.MASK_ON", True])
    cfg.merge_from_list(["MODEL.HF.CONFIG", json.dumps(SEGMENTERS["mask2former"]), *options])
    return cfg


class TestConfig:
    def test_what_cannot_be_built(self):
        with pytest.raises(ValueError, match=r"MODEL\.HF\.TASK is one of instance, semantic, panoptic; got 'depth'"):
            build_model(cfg_of("MODEL.HF.TASK", "depth"))
        with pytest.raises(ValueError, match=r"HFSegmenter wraps: eomt, "):
            build_model(cfg_of("MODEL.HF.CONFIG", json.dumps(DETECTORS["detr"])))
        with pytest.raises(ValueError, match=r"\(MODEL\.HF\.NUM_THINGS\) is 0 of 4 classes"):
            build_model(cfg_of("MODEL.HF.TASK", "panoptic"))

    def test_panoptic_classes_of_the_data(self):
        name = "hf_panoptic"
        from detectron2.data import DatasetCatalog

        DatasetCatalog.register(name, list)
        try:
            MetadataCatalog.get(name).set(thing_classes=["a", "b"], stuff_classes=["things", "sky", "sea", "sand"])
            cfg = cfg_of("MODEL.HF.TASK", "panoptic", "DATASETS.TRAIN", (name,))
            model = build_model(cfg)
        finally:
            DatasetCatalog.pop(name)
            MetadataCatalog.pop(name)
        assert (model.num_things, model.num_classes) == (2, 5)
        for key, value in model.portable_keys.items():
            cfg.merge_from_list([key, value])
        again = build_model(cfg)
        assert (again.num_things, again.num_classes, again.task) == (2, 5, "panoptic")

    def test_words_of_one_former(self, tmp_path):
        """They come from a tokenizer beside the config, and travel with the model."""
        config = {key: value for key, value in SEGMENTERS["oneformer"].items() if key != "text_ids"}
        with pytest.raises(
            ValueError, match=r"reads text, such as 'a photo with a label 0', .*PRETRAINED or MODEL\.HF"
        ):
            build_model(cfg_of("MODEL.HF.CONFIG", json.dumps(config)))
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(FileNotFoundError, match="knows no word of 'a photo with a label 0': its files"):
            build_model(cfg_of("MODEL.HF.CONFIG", str(tmp_path)))
        letters = sorted(set("the task is instance semantic panoptic a an photo with label 0123") - {" "})
        parts = ["<|startoftext|>", *letters, *(f"{letter}</w>" for letter in letters), "<|endoftext|>"]
        vocabulary = {part: i for i, part in enumerate(parts)}
        tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[])
        tokenizer.save_pretrained(tmp_path)
        model = build_model(cfg_of("MODEL.HF.CONFIG", str(tmp_path)))
        ids = model.transformers_config["text_ids"]
        a, end = vocabulary["a</w>"], vocabulary["<|endoftext|>"]
        assert ids["a photo with a label 0"][:2] == [0, a]
        assert all(row[-1] == end and len(row) <= 12 for row in ids.values())
        assert set(ids) == set(SEGMENTERS["oneformer"]["text_ids"])
        cfg = cfg_of("MODEL.HF.CONFIG", model.portable_keys["MODEL.HF.CONFIG"])
        again = build_model(cfg).eval()
        again.load_state_dict(model.state_dict())
        with torch.no_grad():
            wanted, found = model.eval()(batch()), again(batch())
        assert torch.equal(wanted[0]["instances"].scores, found[0]["instances"].scores)

    def test_training_and_evaluation(self, shapes, tmp_path):
        cfg = cfg_of(
            *("DATASETS.TRAIN", (shapes,), "DATASETS.TEST", (shapes,), "DATALOADER.NUM_WORKERS", 0),
            *("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, "SOLVER.IMS_PER_BATCH", 2),
            *("SOLVER.OPTIMIZER", "AdamW", "SOLVER.MAX_ITER", 1, "OUTPUT_DIR", str(tmp_path)),
        )
        trainer = DefaultTrainer(cfg)
        results = trainer.train()
        assert set(results) == {"bbox", "segm"}
        assert trainer.model.num_classes == 6
