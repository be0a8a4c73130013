"""Detectors and segmenters of transformers as graphs."""

import pytest
import torch

from detectron2.export import export_model
from detectron2.export.graphs import GraphOptions, build_graph
from detectron2.export.graphs.graph import OpenSizes
from detectron2.export.graphs.hf_models import _recordable
from tests.export.graphs.models import hf_detector, hf_segmenter
from tests.modeling.meta_arch.hf_configs import DETECTORS, SEGMENTERS

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def places():
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    return torch.export.export(Places(), (torch.zeros(16),), dynamic_shapes=dynamic, strict=False).module()


@pytest.mark.parametrize("kind", DETECTORS)
def test_a_graph_does_what_the_model_does(kind):
    """Also with what is around smaller images being anything."""
    model = hf_detector(kind)
    sizes = [(60, 90), (40, 64)]
    images = 255 * torch.rand(2, 3, 60, 90, generator=torch.Generator().manual_seed(0))
    inputs = [{"image": image[:, :h, :w]} for image, (h, w) in zip(images, sizes, strict=True)]
    for threshold in (0.0, 0.3, 1.0):
        graph = build_graph(model, GraphOptions(outputs="padded"))
        outputs = dict(
            zip(graph.output_names, graph(images, torch.tensor(sizes), torch.tensor(threshold)), strict=True)
        )
        model.test_score_thresh = threshold
        with torch.no_grad():
            wanted = model.inference(inputs, do_postprocess=False)
        for found, want in zip(graph.to_results(outputs, torch.tensor(sizes)), wanted, strict=True):
            found = found["instances"]
            assert len(found) == len(want) <= 6
            assert torch.allclose(found.scores, want.scores, atol=1e-5)
            assert torch.allclose(found.pred_boxes.tensor, want.pred_boxes.tensor, atol=1e-3)
            assert torch.equal(found.pred_classes, want.pred_classes)


class Places(torch.nn.Module):
    def forward(self, x):
        length = x.shape[0] // 2
        with OpenSizes():
            places = torch.linspace(0.5, length - 0.5, length, dtype=x.dtype)
            return places, torch.linspace(0.0, 1.0, 3), torch.as_tensor([(length, 7), (2 * length, 9)])


@pytest.mark.parametrize("length", [2, 5])
def test_sizes_that_vary(places, length):
    x = torch.zeros(2 * length)  # exporters refuse lengths of 0 and 1
    for found, want in zip(places(x), Places()(x), strict=True):
        assert torch.equal(found, want)
    assert places(x)[0].tolist() == [i + 0.5 for i in range(length)]
    assert places(x)[2].tolist() == [[length, 7], [2 * length, 9]]


class Resized(torch.nn.Module):
    def forward(self, maps, x):
        with OpenSizes():
            size = x.shape[0] // 2, x.shape[1]
            options = {"size": size, "mode": "bicubic", "align_corners": False, "antialias": True}
            return torch.nn.functional.interpolate(maps, **options)


@pytest.fixture(scope="module")
def resized():
    dynamic = ({}, dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC))
    inputs = torch.zeros(1, 2, 6, 7), torch.zeros(16, 5)
    return torch.export.export(Resized(), inputs, dynamic_shapes=dynamic, strict=False)


@pytest.mark.parametrize("size", [(2, 3), (6, 7), (4, 25), (11, 3)])
def test_resizing_with_anti_aliasing_to_sizes_that_vary(resized, size):
    assert not any("interpolate" in str(node.target) or "_aa" in str(node.target) for node in resized.graph.nodes)
    maps = torch.rand(1, 2, 6, 7, generator=torch.Generator().manual_seed(0))
    want = torch.nn.functional.interpolate(maps, size=size, mode="bicubic", align_corners=False, antialias=True)
    torch.testing.assert_close(resized.module()(maps, torch.zeros(2 * size[0], size[1])), want)


def test_fewer_detections():
    graph = build_graph(hf_detector("rt_detr"), GraphOptions(outputs="flat", max_detections=2))
    outputs = dict(zip(graph.output_names, graph(*graph.example_inputs(2, 64, 96)), strict=True))
    assert outputs["boxes"].shape == (4, 4) and outputs["image_index"].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("kind", SEGMENTERS)
@pytest.mark.parametrize("labels", [(), (3, 1)], ids=["all labels", "two labels"])
def test_a_graph_of_a_segmenter_does_what_the_model_does(kind, labels):
    """Also with what is around smaller images being anything, and in the order of channels of the model."""
    model = hf_segmenter(kind, label_ids=labels, input_format="BGR")
    sizes = [(60, 90), (40, 64)]
    images = 255 * torch.rand(2, 3, 60, 90, generator=torch.Generator().manual_seed(0))
    inputs = [{"image": image[:, :h, :w]} for image, (h, w) in zip(images, sizes, strict=True)]
    graph = build_graph(model)
    found = dict(zip(graph.output_names, graph(images, torch.tensor(sizes)), strict=True))
    with torch.no_grad():
        padded = model.preprocess_image(inputs).tensor
        options = {"maskformer": {"output_hidden_states": True}}.get(kind, {})
        if kind != "eomt":
            options["pixel_mask"] = graph.inside(torch.tensor(sizes), (64, 96))
        if kind == "oneformer":
            ids = model.transformers_config["text_ids"]["the task is instance"]
            options["task_inputs"] = torch.tensor([ids + [0] * (12 - len(ids))] * 2)
        outputs = model.network(pixel_values=padded, **options)
    assert found["padded_sizes"].tolist() == [list(padded.shape[2:])] * 2
    scores = outputs.class_queries_logits.softmax(-1)[..., [*(labels or range(4)), 4]]
    torch.testing.assert_close(found["class_scores"], scores)
    torch.testing.assert_close(found["mask_logits"], outputs.masks_queries_logits)
    assert graph.class_counts() == (len(labels) or 4, 1)


def test_a_segmenter_is_as_before_its_graph_ran():
    model = hf_segmenter("eomt")
    names = set(model.state_dict())
    build_graph(model)(torch.zeros(1, 3, 64, 64), torch.tensor([[64, 64]]))
    assert set(model.state_dict()) == names and "attn_mask_probs" in dict(model.network.named_buffers())


@pytest.mark.slow
def test_onnx_of_a_segmenter(tmp_path):
    report = export_model(hf_segmenter("eomt"), tmp_path / "a", size=(64, 96))
    assert {"sample", "another size", "three images", "mixed sizes"} <= {c.case for c in report.comparisons}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["detr", "rt_detr_v2", "deformable_detr"])
def test_onnx(tmp_path, kind):
    """The exporter compares the file with the model, for other numbers and sizes of images, too."""
    report = export_model(hf_detector(kind), tmp_path / kind, size=(64, 96))
    assert {"sample", "another size", "three images", "mixed sizes"} <= {c.case for c in report.comparisons}
    assert (tmp_path / kind / "model.onnx").is_file()


torch_int = int  # a function of transformers, which the modules of its networks have


class Rows(torch.nn.Module):
    def forward(self, x):
        with _recordable(self):
            return x.new_ones(len(x), len([1, 2])), x.new_ones(torch_int(x.shape[0] + 1), torch_int(2.5))


@pytest.mark.parametrize("length", [2, 5])
@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_lengths_of_tensors_may_vary(length):
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    exported = torch.export.export(Rows(), (torch.zeros(3, 3),), dynamic_shapes=dynamic, strict=False).module()
    traced = torch.jit.trace(Rows(), torch.zeros(3, 3))
    for form in (Rows(), exported, traced):
        assert [y.shape for y in form(torch.zeros(length, 3))] == [(length, 2), (length + 1, 2)]
    assert "len" not in globals() and len([1]) == 1 and torch_int is int


@pytest.mark.parametrize("kind", ["yolos", "rt_detr"])
@pytest.mark.filterwarnings("ignore")  # PyTorch has deprecated traces, and warns of questions about sizes
def test_a_trace_takes_images_of_another_size(kind):
    """Boxes of these are in parts of the padded input, whose size may vary."""
    graph = build_graph(hf_detector(kind))
    traced = torch.jit.trace(graph, graph.example_inputs(2, 64, 96), check_trace=False)
    inputs = graph.example_inputs(3, 70, 130)
    for found, want in zip(traced(*inputs), graph(*inputs), strict=True):
        assert torch.equal(found, want)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rt_detr", "rt_detr_v2", "d_fine", "deimv2"])
def test_pt2_of_any_batch_and_size(tmp_path, kind):
    report = export_model(hf_detector(kind), tmp_path / kind, "pt2", size=(64, 96))
    assert {"three images", "another size", "mixed sizes"} <= {c.case for c in report.comparisons}
