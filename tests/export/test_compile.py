"""`torch.compile`: backbones and heads become one graph; a whole model becomes few, and stays right."""

import pytest
import torch

from detectron2.export.graphs import build_graph
from detectron2.layers import batched_nms
from detectron2.modeling.roi_heads.numerics import best_after_nms
from detectron2.utils.env import TORCH_VERSION
from tests.export.test_tracing import assert_same, picture, tiny_model

# Numbers of graphs that a model is cut into, mostly where the number of boxes depends on the image. They may only fall.
GRAPHS = {
    "semantic": 1,
    "fcos": 17,
    "retinanet": 20,
    "faster": 26,
    "keypoint": 40,
    "mask": 41,
    "panoptic": 47,
    "cascade": 50,
}


class Graphs(list):
    """A backend of `torch.compile` that keeps the graphs and runs them as they are."""

    def __call__(self, graph, inputs):
        self.append(graph)
        return graph.forward


@pytest.fixture
def graphs():
    torch._dynamo.reset()
    yield Graphs()
    torch._dynamo.reset()


def parts(model):
    """The parts of a model that neither choose boxes nor look at values: name, module, what gives its input."""
    yield "backbone", model.backbone, lambda images, features: images
    if hasattr(model, "proposal_generator"):
        head, names = model.proposal_generator.rpn_head, model.proposal_generator.in_features
        yield "rpn_head", head, lambda images, features: [features[name] for name in names]
    if hasattr(model, "head"):
        yield "head", model.head, lambda images, features: [features[name] for name in model.head_in_features]


def flat(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [x for part in (value.values() if isinstance(value, dict) else value) for x in flat(part)]


@pytest.mark.parametrize("name", ["mask", *(pytest.param(x, marks=pytest.mark.slow) for x in ("retinanet", "fcos"))])
def test_each_part_is_one_graph(name, graphs):
    model = tiny_model(name)
    with torch.no_grad():
        images = model.preprocess_image([{"image": picture(96, 128)}]).tensor
        features = model.backbone(images)
        for part, module, argument in parts(model):
            before, given = len(graphs), argument(images, features)
            compiled = torch.compile(module, backend=graphs, fullgraph=True)
            assert_same(flat(compiled(given)), flat(module(given)))
            assert len(graphs) == before + 1, part


@pytest.mark.skipif(TORCH_VERSION < (2, 7), reason="PyTorch 2.6 does not compile loops over lists of buffers")
@pytest.mark.parametrize(
    "name", ["retinanet", *(pytest.param(x, marks=pytest.mark.slow) for x in ("mask", "panoptic"))]
)
def test_the_exportable_form_is_one_graph(name, graphs):
    form = build_graph(tiny_model(name))
    compiled = torch.compile(form, backend=graphs, fullgraph=True)
    inputs = form.example_inputs(1, 96, 128)
    assert_same(compiled(*inputs), form(*inputs))
    assert len(graphs) == 1


def detections(count):
    generator = torch.Generator().manual_seed(count)
    corners = 100 * torch.rand(count, 2, generator=generator)
    boxes = torch.cat([corners, corners + 20 * torch.rand(count, 2, generator=generator)], dim=1)
    return boxes, torch.rand(count, generator=generator), torch.arange(count) % 5


@pytest.mark.parametrize(
    ("function", "limit"),
    [
        (lambda boxes, scores, classes: batched_nms(boxes, scores, classes, 0.5), 2),
        (lambda boxes, scores, classes: best_after_nms(boxes, scores, classes, 0.5, 30), 3),
    ],
    ids=["all", "best"],
)
def test_suppression_of_any_number_of_boxes(function, limit, graphs):
    """What ends a graph is only the operator itself, whose result is of any length."""
    compiled = torch.compile(function, backend=graphs)
    for i, count in enumerate((5000, 10, 0)):
        assert compiled(*detections(count)).equal(function(*detections(count)))
        assert i > 0 or len(graphs) <= limit


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", GRAPHS)
def test_whole_models_are_cut_into_few_graphs(name, graphs):
    model = tiny_model(name)
    compiled = torch.compile(model, backend=graphs)
    with torch.no_grad():
        for i, image in enumerate((picture(96, 128), picture(64, 96, seed=2), picture(64, 96, contrast=0.0))):
            got, want = compiled([{"image": image}]), model([{"image": image}])
            if i == 0:
                assert len(graphs) <= GRAPHS[name]
            for g, w in zip(got, want, strict=True):
                assert g.keys() == w.keys()
                for key in g:
                    assert_same(*(fields(x[key]) for x in (g, w)))


def fields(value):
    """The tensors of a result."""
    if isinstance(value, (torch.Tensor, tuple)):  # a panoptic result is a map and segments
        return [value if isinstance(value, torch.Tensor) else value[0]]
    return [getattr(x, "tensor", x) for x in value.get_fields().values()]
