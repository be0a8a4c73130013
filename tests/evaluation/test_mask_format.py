"""Which form of masks models are asked for in an evaluation; the file under test is private."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    RotatedCOCOEvaluator,
    SemSegEvaluator,
    inference_on_dataset,
)
from detectron2.evaluation.cityscapes_evaluation import whole_masks
from detectron2.evaluation.evaluator import preferred_format
from detectron2.modeling import GeneralizedRCNN, GeneralizedRCNNWithTTA, PanopticFPN
from detectron2.modeling.postprocessing import paste_predicted_masks
from detectron2.structures import Boxes, Instances, ROIMasks


class Recorder(DatasetEvaluator):
    """Notes the form in which masks come."""

    def __init__(self):
        self.seen = []

    def process(self, inputs, outputs):
        self.seen += [kind_of(output["instances"]) for output in outputs]


class Lean(Recorder):
    mask_formats = ("rle", "full")


class Raw(Recorder):
    mask_formats = ("roi", "rle", "full")


class Blind(Recorder):
    mask_formats = ()


class LeanButProcessedAnew(Lean):
    def process(self, inputs, outputs):
        super().process(inputs, outputs)


class LeanAndSaysSo(LeanButProcessedAnew):
    mask_formats = ("rle",)


def kind_of(instances):
    if instances.has("pred_masks_rle"):
        return "rle"
    return "roi" if isinstance(instances.pred_masks, ROIMasks) else "full"


def one_detection():
    out = Instances((20, 30))
    out.pred_boxes, out.pred_classes = Boxes(torch.tensor([[2.0, 3, 12, 15]])), torch.tensor([0])
    out.scores = torch.tensor([0.5])
    out.pred_masks = torch.rand(1, 1, 7, 7)
    return out


class Detector(GeneralizedRCNN):
    """The outputs are made up; what is done with them is that of a real one."""

    mask_format = "full"

    def __init__(self):
        nn.Module.__init__(self)

    def inference(self, batched_inputs, detected_instances=None, do_postprocess=True):
        found = [one_detection() for _ in batched_inputs]
        return self._postprocess(found, batched_inputs, [(20, 30)] * len(found), self.mask_format)


class OfAnOlderProject(Detector):
    def inference(self, batched_inputs, detected_instances=None, do_postprocess=True):
        outputs = super().inference(batched_inputs)
        assert all(x["instances"].pred_masks.dtype == torch.bool for x in outputs)
        return outputs


LOADER = [[{"image": None, "height": 20, "width": 30}], [{"image": None}]]


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([], "full"),
        ([DatasetEvaluator()], "full"),
        ([Lean()], "rle"),
        ([Raw()], "roi"),
        ([Blind()], "roi"),
        ([LeanButProcessedAnew()], "full"),
        ([LeanAndSaysSo()], "rle"),
        ([Blind(), Lean()], "rle"),
        ([Raw(), Lean()], "rle"),
        ([Lean(), Raw()], "rle"),
        ([Lean(), Recorder()], "full"),
        ([DatasetEvaluators([Lean(), Blind()]), Raw()], "rle"),
        ([DatasetEvaluators([])], "full"),
        ([object()], "full"),
    ],
)
def test_what_evaluators_agree_on(members, expected):
    assert preferred_format(DatasetEvaluators(members)) == expected
    if len(members) == 1:
        assert preferred_format(members[0]) == expected


def test_an_evaluator_may_change_its_mind():
    evaluator = Lean()
    evaluator.mask_formats = ("full",)
    assert preferred_format(evaluator) == "full"


class OwnDistribution(DatasetEvaluators):
    def process(self, inputs, outputs):
        assert all(x["instances"].pred_masks.dtype == torch.bool for x in outputs)


def test_a_container_that_looks_at_the_outputs_itself():
    assert preferred_format(OwnDistribution([Lean()])) == "full"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (COCOEvaluator, "rle"),
        (LVISEvaluator, "rle"),
        (RotatedCOCOEvaluator, "rle"),
        (CityscapesInstanceEvaluator, "rle"),
        (SemSegEvaluator, "roi"),
        (COCOPanopticEvaluator, "roi"),
        (PascalVOCDetectionEvaluator, "roi"),
    ],
)
def test_built_in_evaluators(kind, expected):
    assert preferred_format(object.__new__(kind)) == expected


@pytest.mark.parametrize(
    ("evaluator", "expected"),
    [(Lean(), "rle"), (Raw(), "roi"), (Recorder(), "full"), (LeanButProcessedAnew(), "full")],
)
@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel])
def test_the_model_is_asked_and_restored(evaluator, expected, wrap):
    model = Detector()
    wrapped = wrap(model)
    if wrapped is not model:
        wrapped.forward = model.forward  # which a wrapper does on the CPU, without devices to spread over
    evaluator.seen.clear()
    assert inference_on_dataset(wrapped, LOADER, evaluator) == {}
    assert evaluator.seen == [expected] * 2
    assert model.mask_format == "full"
    assert kind_of(model.eval()(LOADER[0])[0]["instances"]) == "full"


def test_after_an_error_the_model_is_as_before():
    class Fails(Lean):
        mask_formats = ("rle",)

        def process(self, inputs, outputs):
            raise RuntimeError("here")

    model = Detector()
    with pytest.raises(RuntimeError, match="here"):
        inference_on_dataset(model, LOADER, Fails())
    assert model.mask_format == "full"


@pytest.mark.parametrize("asked", ["rle", "roi"])
def test_a_model_that_was_told_does_as_it_was_told(asked):
    model, evaluator = Detector(), Raw()
    model.mask_format = asked
    inference_on_dataset(model, LOADER, evaluator)
    assert evaluator.seen == [asked] * 2 and model.mask_format == asked


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: lambda inputs: model(inputs)])
def test_models_that_may_read_their_own_masks_are_left_alone(wrap):
    evaluator = Lean()
    inference_on_dataset(wrap(OfAnOlderProject().eval()), LOADER, evaluator)
    assert evaluator.seen == ["full"] * 2


def test_a_model_compiled_as_a_whole_is_left_alone():
    model, evaluator = Detector(), Lean()
    # which is what model.compile() leaves
    model._compiled_call_impl = lambda *args: nn.Module._call_impl(model, *args)
    inference_on_dataset(model, LOADER, evaluator)
    assert evaluator.seen == ["full"] * 2


@pytest.mark.parametrize("kind", [GeneralizedRCNN, PanopticFPN, GeneralizedRCNNWithTTA])
def test_models_that_can_choose(kind):
    from detectron2.evaluation.evaluator import _can_choose

    model = object.__new__(kind)
    nn.Module.__init__(model)
    assert _can_choose(model)

    class Sub(kind):
        def forward(self, x):
            return super().forward(x)

    model = object.__new__(Sub)
    nn.Module.__init__(model)
    assert not _can_choose(model)


def test_whole_masks_one_after_the_other():
    given = one_detection()
    given.pred_masks = ROIMasks(given.pred_masks[:, 0] * 0.5 + 0.4)
    full = paste_predicted_masks(given, "full")
    assert full.pred_masks.any()
    for kind in ("full", "rle", "roi"):
        (mask,) = whole_masks(paste_predicted_masks(given, kind))
        np.testing.assert_array_equal(mask != 0, full.pred_masks[0].numpy())
        assert list(whole_masks(paste_predicted_masks(given[:0], kind))) == []


def test_scores_do_not_depend_on_the_format(coco, tools):
    """The same model is evaluated once with whole masks and once with run lengths."""
    dataset = tools.random_coco(4)
    generator = torch.Generator().manual_seed(0)
    found = {}
    for input_, output in tools.jittered(dataset, 4):
        instances = output["instances"]
        instances.pred_masks = torch.rand(len(instances), 1, 7, 7, generator=generator) * 0.5 + 0.45
        found[input_["image_id"]] = instances

    class Model(Detector):
        def inference(self, batched_inputs, detected_instances=None, do_postprocess=True):
            raw = [copy.deepcopy(found[x["image_id"]]) for x in batched_inputs]
            return self._postprocess(raw, batched_inputs, [x.image_size for x in raw], self.mask_format)

        mask_format = "full"

    seen = []
    model, name = Model(), coco(dataset)
    model.register_forward_hook(lambda *args: seen.append(kind_of(args[2][0]["instances"])))
    loader = [[{"image_id": i}] for i in found]
    lean = COCOEvaluator(name, distributed=False)
    whole = COCOEvaluator(name, distributed=False)
    whole.mask_formats = ("full",)
    expected, results = (inference_on_dataset(model, loader, evaluator) for evaluator in (whole, lean))
    assert seen == ["full"] * len(loader) + ["rle"] * len(loader)
    assert 0 < expected["segm"]["AP"] < 100
    for task in expected:
        assert results[task] == pytest.approx(expected[task], abs=0, nan_ok=True)
