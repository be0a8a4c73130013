"""Graphs in PyTorch give what the models give; options, dynamic shapes, and what is refused."""

import dataclasses

import pytest
import torch
from torch import nn

from detectron2.export.graphs import (
    GraphOptions,
    NotExportableError,
    StandardROIHeadsGraph,
    build_graph,
    register_exportable,
)
from detectron2.export.graphs.graph import ExportGraph, GraphPart
from detectron2.modeling import StandardROIHeads
from detectron2.modeling.meta_arch.rcnn import GeneralizedRCNN
from detectron2.utils.env import TORCH_VERSION
from tests.export.graphs.models import MODELS, batch, by_graph, difference, graph_of, in_pytorch, model_of
from tests.export.test_tracing import tiny_model

TWO = [(160, 224), (96, 128)]
# A mask head that runs on all rows is a matrix product of another size than one on the detections alone.
ROUNDING = 2e-4


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "options",
    [GraphOptions(), GraphOptions(outputs="flat", nms="torchvision"), GraphOptions(nms="aten")],
    ids=["padded, operator", "flat, torchvision", "padded, aten"],
)
def test_the_same_as_the_model(name, options):
    graph = graph_of(name, options)
    for sizes, contrast in ((TWO, 1.0), ([(70, 33)], 0.0)):
        images, image_sizes = batch(sizes, contrast)
        want = in_pytorch(graph.model, images, image_sizes)
        worst = difference(by_graph(graph, images, image_sizes), want)
        assert max(worst.values()) <= ROUNDING, worst


def test_boxes_and_scores_are_equal_to_the_last_bit():
    for name in ("Faster R-CNN, FPN", "FCOS", "Cascade Mask R-CNN"):
        graph = graph_of(name)
        images, sizes = batch(TWO)
        worst = difference(by_graph(graph, images, sizes), in_pytorch(graph.model, images, sizes))
        assert worst["pred_boxes"] == worst["scores"] == worst["pred_classes"] == 0, name


def test_what_is_around_an_image_does_not_matter():
    graph = graph_of("Mask R-CNN, FPN")
    images, sizes = batch(TWO)
    alone = by_graph(graph, images, sizes)
    images[1, :, 96:] = 7.0
    images[1, :, :, 128:] = 250.0
    assert set(difference(by_graph(graph, images, sizes), alone).values()) == {0.0}


def test_no_detections():
    graph = graph_of("Mask R-CNN, FPN")
    images, sizes = batch(TWO)
    outputs = dict(zip(graph.output_names, graph(images, sizes, torch.tensor(1.0)), strict=True))
    assert outputs["count"].tolist() == [0, 0]
    assert (outputs["classes"] == -1).all()
    assert not any(outputs[name].any() for name in ("boxes", "scores", "masks"))
    for result in graph.to_results(outputs, sizes):
        assert len(result["instances"]) == 0 and result["instances"].pred_masks.shape == (0, 1, 28, 28)


def test_the_threshold_is_an_input():
    graph = graph_of("Mask R-CNN, FPN")
    assert graph.input_names == ("images", "image_sizes", "score_threshold")
    images, sizes = batch(TWO)
    lengths = []
    for threshold in (0.3, 0.6, 0.95):
        outputs = dict(zip(graph.output_names, graph(images, sizes, torch.tensor(threshold)), strict=True))
        want = in_pytorch(graph.model, images, sizes, threshold)
        assert difference(graph.to_results(outputs, sizes), want)["scores"] == 0
        lengths.append(int(outputs["count"].sum()))
    assert lengths == sorted(set(lengths), reverse=True)
    assert graph_of("semantic FPN").input_names == ("images", "image_sizes")


def test_padded_rows_are_sorted_and_empty_ones_zero():
    graph = graph_of("Mask R-CNN, FPN")
    outputs = dict(zip(graph.output_names, graph(*batch(TWO)), strict=True))
    assert outputs["boxes"].shape == (2, 20, 4) and outputs["masks"].shape == (2, 20, 28, 28)
    assert {name: x.dtype for name, x in outputs.items() if not x.is_floating_point()} == {
        "classes": torch.int64,
        "count": torch.int64,
    }
    for i, count in enumerate(outputs["count"].tolist()):
        assert 0 < count < 20
        scores = outputs["scores"][i]
        assert (scores[:count].diff() <= 0).all() and scores[:count].min() > 0.55
        assert (outputs["classes"][i, count:] == -1).all() and (outputs["classes"][i, :count] >= 0).all()
        assert not any(outputs[name][i, count:].any() for name in ("boxes", "scores", "masks"))


def test_flat_rows_are_those_of_the_padded_ones():
    images, sizes = batch(TWO)
    padded, flat = (
        dict(zip(graph.output_names, graph(images, sizes), strict=True))
        for graph in (graph_of("Mask R-CNN, FPN"), graph_of("Mask R-CNN, FPN", GraphOptions(outputs="flat")))
    )
    assert list(flat) == ["boxes", "scores", "classes", "image_index", "masks"]
    assert flat["image_index"].tolist() == [i for i, n in enumerate(padded["count"].tolist()) for _ in range(n)]
    for name in ("boxes", "scores", "classes"):
        rows = [x[:n] for x, n in zip(padded[name], padded["count"].tolist(), strict=True)]
        assert torch.equal(flat[name], torch.cat(rows))


def test_fewer_and_more_detections():
    images, sizes = batch(TWO)
    whole = dict(zip(*_named(graph_of("FCOS"), images, sizes), strict=True))
    few = dict(zip(*_named(graph_of("FCOS", GraphOptions(max_detections=3)), images, sizes), strict=True))
    assert torch.equal(few["boxes"], whole["boxes"][:, :3]) and few["count"].tolist() == [3, 3]
    proposals = graph_of("proposals", GraphOptions(max_detections=3))
    assert proposals(images, sizes)[0].shape == (2, 3, 4)
    model = tiny_model("faster", **{"TEST.DETECTIONS_PER_IMAGE": -1})
    with pytest.raises(NotExportableError, match="give max_detections"):
        build_graph(model)(images, sizes)
    assert build_graph(model, GraphOptions(max_detections=7))(images, sizes)[0].shape == (2, 7, 4)


def _named(graph, images, sizes):
    return graph.output_names, graph(images, sizes)


def test_tasks_and_names():
    names = {
        "Faster R-CNN, FPN": ("instances", ("boxes", "scores", "classes", "count")),
        "Keypoint R-CNN": ("keypoints", ("boxes", "scores", "classes", "count", "keypoint_heatmaps")),
        "RetinaNet": ("instances", ("boxes", "scores", "classes", "count")),
        "proposals": ("proposals", ("boxes", "scores", "count")),
        "semantic FPN": ("semantic", ("sem_seg",)),
        "panoptic FPN": ("panoptic", ("boxes", "scores", "classes", "count", "masks", "sem_seg")),
        "Panoptic-DeepLab": ("panoptic_deeplab", ("sem_seg", "center", "offset")),
    }
    for name, (task, outputs) in names.items():
        graph = graph_of(name)
        assert (graph.task, graph.output_names) == (task, outputs)


@pytest.mark.parametrize(
    ("field", "value"),
    [("outputs", "ragged"), ("masks", "rle"), ("nms", "loop"), ("max_detections", 0)],
)
def test_options_are_checked(field, value):
    with pytest.raises(ValueError, match=f"GraphOptions.{field}"):
        GraphOptions(**{field: value})
    with pytest.raises(dataclasses.FrozenInstanceError):
        GraphOptions().outputs = "flat"  # pyright: ignore[reportAttributeAccessIssue]


def test_what_varies():
    graph = graph_of("Faster R-CNN, FPN")
    assert graph.dynamic_shapes(named=True) == ({0: "batch", 2: "height", 3: "width"}, {0: "batch"}, {})
    assert graph.dynamic_shapes(["batch"], named=True) == ({0: "batch"}, {0: "batch"}, {})
    assert graph.dynamic_shapes([]) == ({}, {}, {})
    with pytest.raises(ValueError, match="'batch' and 'size'"):
        graph.dynamic_shapes(["height"])
    images, sizes, threshold = graph.example_inputs(3, 64, 96)
    assert images.shape == (3, 3, 64, 96) and sizes.tolist() == [[64, 96], [48, 72], [48, 72]]
    assert threshold == pytest.approx(0.55)


# ------------------------------------------------------------------------------------------------------------- refusals


def test_a_model_in_training_mode_is_refused():
    model = tiny_model("faster").train()
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        build_graph(model)


def test_an_unknown_model_is_refused_by_name():
    class Unknown(nn.Module):
        pass

    with pytest.raises(NotExportableError, match=r"the model, .*Unknown, has no exportable form.*register_exportable"):
        build_graph(Unknown().eval())


def replaced(model, path, base, **members):
    """Give a part of a model a subclass of its class."""
    part = model.get_submodule(path)
    part.__class__ = type(f"My{base.__name__}", (base,), members)
    return type(part)


PARTS = {
    "roi_heads": "_forward_box",
    "roi_heads.box_predictor": "predict_probs",
    "roi_heads.box_pooler": "forward",
    "roi_heads.mask_head": "forward",
    "proposal_generator": "predict_proposals",
    "proposal_generator.anchor_generator": "_grid_anchors",
}


@pytest.mark.parametrize(("path", "method"), PARTS.items())
def test_a_part_with_a_method_of_its_own_is_refused_by_name(path, method):
    model = tiny_model("mask")
    base = type(model.get_submodule(path))
    replaced(model, path, base)
    build_graph(model)  # a subclass that changes nothing is the same
    replaced(model, path, base, **{method: lambda self, *args: None})
    with pytest.raises(NotExportableError, match=rf"My{base.__name__}, has its own {method}\(\)"):
        build_graph(model)
    model = tiny_model("mask")
    setattr(model.get_submodule(path), method, lambda *args: None)
    with pytest.raises(NotExportableError, match=rf"has its own {method}\(\)"):
        build_graph(model)


def test_a_model_with_its_own_inference_is_refused():
    class Mine(GeneralizedRCNN):
        def inference(self, *args, **kwargs):
            return None

    model = tiny_model("faster")
    model.__class__ = Mine
    with pytest.raises(NotExportableError, match=r"Mine, has its own inference\(\)"):
        build_graph(model)


def test_proposals_that_come_with_the_image_are_refused():
    model = tiny_model("faster")
    model.proposal_generator = None
    with pytest.raises(NotExportableError, match="has no proposal generator"):
        build_graph(model)


def test_rotated_boxes_are_refused_with_the_reason():
    with pytest.raises(NotExportableError, match="neither ONNX nor torchvision"):
        build_graph(tiny_model("rotated"))


def test_forms_of_ones_own():
    """ROI heads of a user and the form that goes with them: twice the score of class 0."""

    class Mine(StandardROIHeads):
        def _forward_box(self, features, proposals):
            found = super()._forward_box(features, proposals)
            for x in found:
                x.scores = x.scores / 2
            return found

    model = tiny_model("faster")
    model.roi_heads.__class__ = Mine

    @register_exportable(Mine)
    class MineGraph(StandardROIHeadsGraph):
        def detect(self, features, proposals, image_sizes, score_threshold):
            found = super().detect(features, proposals, image_sizes, score_threshold)
            found.outputs["scores"] = found.outputs["scores"] / 2
            return found

    images, sizes = batch(TWO)
    graph = build_graph(model)
    assert isinstance(graph.roi_heads, MineGraph)
    worst = difference(by_graph(graph, images, sizes), in_pytorch(model, images, sizes))
    assert max(worst.values()) == 0


def test_a_form_says_what_it_has_to_define():
    for graph, method, arguments in (
        (ExportGraph, "outputs", ({}, None, None, ())),
        (ExportGraph, "to_results", ({}, None)),
    ):
        with pytest.raises(NotImplementedError, match=rf"must define {method}\(\)"):
            getattr(graph(nn.Module(), GraphOptions()), method)(*arguments)
    assert GraphPart(3, GraphOptions()).module == 3


# ------------------------------------------------------------------------------------------------------------ recording


@pytest.mark.skipif(TORCH_VERSION < (2, 7), reason="PyTorch 2.6 does not compile zip(..., strict=True)")
@pytest.mark.parametrize("name", ["FCOS", pytest.param("Mask R-CNN, FPN", marks=pytest.mark.slow)])
def test_compiles_in_one_graph(name):
    graph = graph_of(name)
    images, sizes = batch(TWO)
    torch._dynamo.reset()
    explained = torch._dynamo.explain(graph)(images, sizes, torch.tensor(graph.score_threshold))
    assert explained.graph_count == 1 and explained.graph_break_count == 0
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Faster R-CNN, C4", GraphOptions(nms="torchvision")),
        pytest.param("FCOS", GraphOptions(nms="torchvision"), marks=pytest.mark.slow),
        pytest.param("Mask R-CNN, FPN", GraphOptions(nms="torchvision", outputs="flat"), marks=pytest.mark.slow),
        pytest.param("Cascade Mask R-CNN", GraphOptions(nms="torchvision"), marks=pytest.mark.slow),
    ],
)
def test_exported_program_takes_any_batch_and_size(name, options):
    graph = graph_of(name, options)
    program = torch.export.export(graph, graph.example_inputs(), dynamic_shapes=graph.dynamic_shapes(), strict=False)
    assert not [node for node in program.graph.nodes if "detectron2" in str(node.target)]
    run = program.module()
    threshold = torch.tensor(graph.score_threshold)
    for sizes, contrast in ((TWO, 1.0), ([(192, 160)], 1.0), ([(97, 131), (80, 70), (64, 90)], 1.0), (TWO, 0.0)):
        images, image_sizes = batch(sizes, contrast)
        got = by_graph(graph, images, image_sizes, lambda *x: run(*x, threshold))
        worst = difference(got, in_pytorch(graph.model, images, image_sizes))
        assert max(worst.values()) <= ROUNDING, worst


@pytest.mark.slow
def test_exported_program_without_sizes_that_depend_on_values():
    graph = graph_of("Mask R-CNN, FPN", GraphOptions(nms="aten"))
    program = torch.export.export(graph, graph.example_inputs(), strict=False)
    assert not program.range_constraints
    targets = {str(node.target) for node in program.graph.nodes}
    assert not [t for t in targets if "detectron2" in t or "nms" in t or "nonzero" in t]
    height, width = graph.example_inputs()[0].shape[2:]
    images, sizes = batch([(height, width), (height - 40, width - 60)])
    run = program.module()
    got = by_graph(graph, images, sizes, lambda *x: run(*x, torch.tensor(graph.score_threshold)))
    assert max(difference(got, in_pytorch(graph.model, images, sizes)).values()) <= ROUNDING


# MViT makes positions for the size that it is traced with.
@pytest.mark.parametrize("name", [name for name in MODELS if "MViT" not in name])
@pytest.mark.filterwarnings("ignore")
def test_traced_graph_takes_any_batch_and_size(name):
    graph = graph_of(name, GraphOptions(nms="torchvision"))
    inputs = graph.example_inputs()
    traced = torch.jit.trace(graph, inputs, check_trace=False)
    for sizes in ([(192, 160)], [(97, 131), (80, 70), (64, 90)], [(40, 70)]):
        images, image_sizes = batch(sizes)
        got = by_graph(graph, images, image_sizes, lambda *x: traced(*x, *inputs[2:]))
        worst = difference(got, in_pytorch(graph.model, images, image_sizes))
        assert max(worst.values()) <= ROUNDING, (sizes, worst)


def test_weights_are_shared_and_models_unchanged():
    model = model_of("Faster R-CNN, FPN")
    before = {name: x.clone() for name, x in model.state_dict().items()}
    graph = build_graph(model)
    graph(*batch(TWO))
    assert graph.model is model and not graph.training
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert {id(p) for p in graph.parameters()} == {id(p) for p in model.parameters()}
