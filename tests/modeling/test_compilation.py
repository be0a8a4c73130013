"""Compilation of the parts of a model."""

import copy

import pytest
import torch

from detectron2.modeling import build_model
from detectron2.modeling.compilation import compile_parts, uncompiled


def test_compiled_parts(monkeypatch):
    """In place, and put aside where hooks have to see every layer."""
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: function)  # whose import takes seconds
    model = torch.nn.Module()
    model.backbone, model.head = torch.nn.Linear(2, 2), torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    names = list(model.state_dict())
    compile_parts(model)
    assert model.backbone._compiled_call_impl and model.head[0]._compiled_call_impl and not model._compiled_call_impl
    assert list(model.state_dict()) == names
    with uncompiled(model):
        assert model.backbone._compiled_call_impl is None
    assert model.backbone._compiled_call_impl
    whole = torch.nn.Linear(1, 1)
    compile_parts(whole)
    assert whole._compiled_call_impl


def two_parts():
    model = torch.nn.Module()
    model.backbone = torch.nn.Conv2d(3, 4, 3, padding=1)
    model.roi_heads = torch.nn.Module()
    model.roi_heads.box_head = torch.nn.Linear(2, 2)
    return model


@pytest.fixture
def asked_for(monkeypatch):
    """What `torch.compile`, whose import takes seconds, is asked for."""
    asked = []

    def compile(function, **kwargs):
        asked.append(kwargs)
        return lambda *args: ("compiled", function(*args))

    monkeypatch.setattr(torch, "compile", compile)
    return asked


def test_few_shapes_are_compiled_for_training_only(asked_for):
    model = two_parts()
    compile_parts(model, few_shapes=True)
    assert asked_for == [{"dynamic": False}, {}]  # the number of regions varies
    image = torch.rand(1, 3, 8, 8)
    kind, trained = model.backbone(image)
    assert kind == "compiled" and torch.equal(model.eval().backbone(image), trained)
    assert copy.deepcopy(model).backbone._compiled_call_impl is None
    with uncompiled(model.train()):
        assert torch.equal(model.backbone(image), trained)


def test_on_the_cpu_there_are_no_cuda_graphs(asked_for, caplog):
    model = two_parts()
    compile_parts(model, cuda_graphs=True)
    assert asked_for == [{}, {}] and not model._forward_pre_hooks
    assert caplog.text.count("TRAIN.CUDA_GRAPHS (train.cuda_graphs) has no effect") == 1


def test_padded_batches_are_compiled_once_for_each_size(tiny_rcnn_cfg, monkeypatch):
    graphs = []

    def backend(graph, inputs):
        graphs.append([tuple(x.shape) for x in inputs if isinstance(x, torch.Tensor) and x.dim() == 4 and len(x) == 1])
        return graph.forward

    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: original(*args, **kwargs, backend=backend))
    model = build_model(tiny_rcnn_cfg())
    model.pad_to = ((64, 96), (96, 64))
    compile_parts(model, few_shapes=True)
    for height, width in [(40, 60), (64, 96), (33, 50), (60, 41), (96, 64), (48, 48), (50, 90)]:
        images = model.preprocess_image([{"image": torch.zeros(3, height, width)}])
        model.backbone(images.tensor)
    assert len(graphs) == 2
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graphs_give_the_same_losses_and_gradients(tiny_rcnn_cfg, rcnn_batch):
    model = build_model(tiny_rcnn_cfg("MODEL.DEVICE", "cuda"))
    model.pad_to = ((64, 96),)
    batch = rcnn_batch(train=True)

    def gradient():
        torch.manual_seed(0)
        model.zero_grad()
        losses = model(batch)
        sum(losses.values()).backward()
        return {k: v.item() for k, v in losses.items()}, model.backbone.conv.weight.grad.clone()

    expected, expected_gradient = gradient()
    compile_parts(model, few_shapes=True, cuda_graphs=True)
    for _ in range(4):  # compiled, recorded, and replayed
        found, found_gradient = gradient()
        assert found == pytest.approx(expected, rel=1e-3)
        torch.testing.assert_close(found_gradient, expected_gradient, rtol=1e-2, atol=1e-4)
