"""The optimized form of models: empty results, equal values, an unchanged model, and what must not be optimized."""

import copy
import pickle
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detectron2.export.graphs import build_graph
from detectron2.layers import (
    Conv2d,
    CycleBatchNormList,
    DeformConv,
    FrozenBatchNorm2d,
    ModulatedDeformConv,
    NaiveSyncBatchNorm,
    ShapeSpec,
    get_norm,
)
from detectron2.modeling import optimized_for_inference
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator, RotatedAnchorGenerator
from detectron2.modeling.backbone import BasicBlock, BottleneckBlock
from detectron2.modeling.optimized import OptimizedForm
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from tests.e2e.test_model_edges import BOXES, BUILDERS, batch_of, built, find_nothing, flat, predictions

NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d, NaiveSyncBatchNorm, nn.SyncBatchNorm)
TWO_STAGE = "mask FPN"


def with_statistics(model):
    """Give every norm values that make a difference."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, NORMS) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                if module.weight is not None:
                    module.weight.uniform_(0.5, 1.5, generator=generator)
                    module.bias.normal_(0, 0.2, generator=generator)
        for key, parameter in model.named_parameters():
            if key.endswith("mask_head.predictor.weight"):  # or the probability of every pixel is about a half
                parameter.normal_(0, 1, generator=generator)
    return model.eval()


def model_named(name):
    return with_statistics(copy.deepcopy(built(name)))


def norms_in(model):
    return [module for module in model.modules() if isinstance(module, NORMS)]


def assert_close(found, expected):
    """Equal within 1e-4 of the largest value; masks but for one pixel in a thousand."""
    found, expected = flat(found), flat(expected)
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        if b.numel() == 0:
            continue
        if b.dtype == torch.bool:  # a pixel at the threshold may fall on either side
            assert (a != b).float().mean() < 1e-3
        elif not b.is_floating_point():
            assert torch.equal(a, b)
        else:
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * max(float(b.abs().max()), 1e-6))


def run(model, *inputs):
    with torch.no_grad():
        return model(*inputs)


# -------------------------------------------------------------------------------------------------------- whole models


@pytest.mark.parametrize("name", [TWO_STAGE, "keypoint", "RetinaNet", "panoptic FPN", "rotated"])
def test_nothing_is_found(name):
    model = model_named(name)
    find_nothing(model)
    expected, found = predictions(model, name), predictions(optimized_for_inference(model), name)
    assert all(len(output["instances"]) == 0 for output in found)
    assert_close(found, expected)


def test_blank_image():
    model = model_named(TWO_STAGE)
    batch = [{"image": torch.zeros(3, 64, 96)}]
    assert_close(run(optimized_for_inference(model), batch), run(model, batch))


@pytest.mark.parametrize("name", BUILDERS)
def test_outputs_are_equal_and_the_model_is_unchanged(name):
    model = model_named(name)
    before = {key: (value, value.clone(), value._version) for key, value in model.state_dict(keep_vars=True).items()}
    trained = {key: p.requires_grad for key, p in model.named_parameters()}
    modules = [(key, type(module), vars(module).keys()) for key, module in model.named_modules()]
    expected = predictions(model, name)

    optimized = optimized_for_inference(model)

    assert norms_in(optimized) == []
    assert_close(predictions(optimized, name), expected)
    assert not any(p.requires_grad for p in optimized.parameters())
    after = model.state_dict(keep_vars=True)
    assert after.keys() == before.keys()
    for key, (value, copied, version) in before.items():
        assert after[key] is value and torch.equal(value, copied) and value._version == version
    assert {key: p.requires_grad for key, p in model.named_parameters()} == trained
    assert [(key, type(module), vars(module).keys()) for key, module in model.named_modules()] == modules
    assert torch.equal(flat(predictions(model, name))[0], flat(expected)[0])


def test_the_model_trains_as_before():
    model = model_named(TWO_STAGE).train()

    def gradients():
        torch.manual_seed(0)
        model.zero_grad()
        sum(model(batch_of(TWO_STAGE, BOXES["objects"])).values()).backward()
        return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    optimized = optimized_for_inference(model)
    assert model.training and not optimized.training
    predictions(optimized, TWO_STAGE)
    found = gradients()
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


def test_memory_is_shared_where_nothing_changes():
    model = model_named(TWO_STAGE)
    optimized = optimized_for_inference(model)
    predictor, shared = model.roi_heads.box_predictor, optimized.roi_heads.box_predictor
    assert shared.cls_score.weight.data_ptr() == predictor.cls_score.weight.data_ptr()
    assert optimized.pixel_mean is model.pixel_mean
    of_convolutions = sum(
        m.weight.nbytes for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d)
    )
    of_convolutions += model.roi_heads.box_head.fc1.weight.nbytes
    pointers = {t.data_ptr() for t in model.state_dict().values()}
    new = sum(p.nbytes for p in optimized.parameters() if p.data_ptr() not in pointers)
    assert 0 < new < 1.2 * of_convolutions


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_every_mode_of_autograd(mode):
    model = model_named("RetinaNet")
    expected = predictions(model, "RetinaNet")
    with mode():
        optimized = optimized_for_inference(model)
        assert_close(optimized(batch_of("RetinaNet")), expected)
    assert_close(optimized(batch_of("RetinaNet")), expected)
    assert not any(tensor.requires_grad for tensor in flat(optimized(batch_of("RetinaNet"))))


def test_copies_and_pickles():
    optimized = optimized_for_inference(model_named(TWO_STAGE))
    expected = predictions(optimized, TWO_STAGE)
    for other in (copy.deepcopy(optimized), pickle.loads(pickle.dumps(optimized)), optimized_for_inference(optimized)):
        assert_close(predictions(other, TWO_STAGE), expected)


def test_several_threads():
    model = model_named(TWO_STAGE)
    form = OptimizedForm(model)
    batches = [[{"image": torch.full((3, 64, 32 * n), 40.0 * n)}] for n in (1, 2, 3)] * 3
    expected = [run(model, batch) for batch in batches]
    with ThreadPoolExecutor(3) as pool:
        for found, wanted in zip(pool.map(lambda batch: run(form.current(), batch), batches), expected, strict=True):
            assert_close(found, wanted)


def test_half_precision():
    torch.manual_seed(0)
    block = with_statistics(BottleneckBlock(8, 16, bottleneck_channels=8, stride=2, norm="FrozenBN"))
    image = torch.randn(2, 8, 24, 32)
    expected = run(block, image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(optimized_for_inference(block), image)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.03 * float(expected.max()))
    half = copy.deepcopy(block).bfloat16()
    found = run(optimized_for_inference(half), image.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.03 * float(expected.max()))


@pytest.mark.parametrize("name", [TWO_STAGE, "RetinaNet", "panoptic FPN"])
def test_whole_models_in_half_precision(name):
    """The optimized form differs from the model in float32 by little more than the model in half precision does."""
    model = model_named(name)
    with torch.no_grad():
        images = model.preprocess_image(batch_of(name))
        exact = model.backbone(images.tensor)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            optimized = optimized_for_inference(model)
            plain, found = model.backbone(images.tensor), optimized.backbone(images.tensor)
            outputs = optimized(batch_of(name))
    for key, value in exact.items():
        scale = float(value.abs().max())
        assert (found[key].float() - value).abs().max() <= 2 * (plain[key].float() - value).abs().max() + 0.01 * scale
        assert found[key].dtype == plain[key].dtype == torch.bfloat16
    assert len(outputs) == len(batch_of(name))
    for output in outputs:
        assert len(output["instances"]) > 0 and output["instances"].scores.isfinite().all()


@pytest.mark.slow  # half a minute
@pytest.mark.filterwarnings("ignore::FutureWarning")  # what torchvision calls to be compiled
def test_a_whole_model_compiles():
    torch._dynamo.reset()
    model = model_named("RetinaNet")
    compiled = torch.compile(optimized_for_inference(model), backend="aot_eager")
    assert_close(predictions(compiled, "RetinaNet"), predictions(model, "RetinaNet"))
    assert OptimizedForm(compiled).current() is compiled


def test_compiles():
    torch._dynamo.reset()
    block = with_statistics(BottleneckBlock(8, 16, bottleneck_channels=8, stride=2, norm="BN"))
    image = torch.randn(2, 8, 24, 32)
    compiled = torch.compile(optimized_for_inference(block), fullgraph=True, backend="aot_eager")
    assert_close(run(compiled, image), run(block, image))


def test_exports_as_the_model_does():
    model = model_named("RetinaNet")
    inputs = torch.rand(1, 3, 64, 96) * 255, torch.tensor([[64, 96]])
    found, expected = (run(build_graph(m).eval(), *inputs) for m in (optimized_for_inference(model), model))
    assert_close(found, expected)


# ------------------------------------------------------------------------------------------------------ what is folded

FOLDED = {
    "batch norm": lambda: Conv2d(4, 6, 3, norm=get_norm("BN", 6)),
    "batch norm without affine": lambda: Conv2d(4, 6, 3, norm=nn.BatchNorm2d(6, affine=False)),
    "frozen": lambda: Conv2d(4, 6, 3, bias=False, norm=get_norm("FrozenBN", 6), activation=F.relu),
    "synchronized": lambda: Conv2d(4, 6, 3, norm=get_norm("SyncBN", 6), activation=nn.ReLU()),
    "naively synchronized": lambda: Conv2d(4, 6, 3, groups=2, norm=get_norm("naiveSyncBN_N", 6)),
    "sequence": lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 1)),
    "sequence of our layers": lambda: nn.Sequential(Conv2d(4, 6, 3, bias=False), FrozenBatchNorm2d(6), nn.ReLU()),
    "block": lambda: BasicBlock(4, 6, stride=2, norm="BN"),
}


@pytest.mark.parametrize("case", FOLDED)
def test_folded(case):
    torch.manual_seed(0)
    module = with_statistics(FOLDED[case]())
    optimized = optimized_for_inference(module)
    assert norms_in(optimized) == [] and norms_in(module) != []
    image = torch.randn(2, 4, 9, 11)
    before = image.clone()
    assert_close(run(optimized, image), run(module, image))
    assert torch.equal(image, before)


@pytest.mark.parametrize("cls", [DeformConv, ModulatedDeformConv])
def test_deformable_convolution(cls):
    torch.manual_seed(0)
    conv = with_statistics(cls(4, 6, 3, padding=1, norm=get_norm("BN", 6), activation=F.relu))
    inputs = [torch.randn(1, 4, 8, 9), torch.randn(1, 18, 8, 9), torch.rand(1, 9, 8, 9)]
    inputs = inputs[: 2 if cls is DeformConv else 3]
    optimized = optimized_for_inference(conv)
    assert optimized.norm is None
    assert_close(run(optimized, *inputs), run(conv, *inputs))


class Twice(nn.Module):
    """One convolution before two norms."""

    def __init__(self):
        super().__init__()
        conv = nn.Conv2d(4, 4, 1)
        self.a, self.b = nn.Sequential(conv, nn.BatchNorm2d(4)), nn.Sequential(conv, nn.BatchNorm2d(4))

    def forward(self, x):
        return self.a(x) + self.b(x)


class OwnConv(Conv2d):
    """Looks at what is between the convolution and its norm."""

    def forward(self, input):
        return self.norm(self._conv_forward(input, self.weight, self.bias).clamp(min=0))


class OwnNorm(nn.BatchNorm2d):
    def forward(self, input):
        return super().forward(input) * 2


NOT_FOLDED = {
    "no norm": lambda: Conv2d(4, 6, 3),
    "group norm": lambda: Conv2d(4, 32, 3, norm=get_norm("GN", 32), activation=F.relu),
    "layer norm": lambda: Conv2d(4, 6, 3, norm=get_norm("LN", 6), activation=F.relu),
    "no running statistics": lambda: Conv2d(4, 6, 3, norm=nn.BatchNorm2d(6, track_running_stats=False)),
    "norms in turn": lambda: Conv2d(4, 6, 3, norm=CycleBatchNormList(1, num_features=6)),
    "norm first": lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3)),
    "rectifier between": lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.BatchNorm2d(6)),
    "activation between": lambda: nn.Sequential(Conv2d(4, 6, 3, activation=F.relu), nn.BatchNorm2d(6)),
    "convolution of two norms": Twice,
    "own convolution": lambda: OwnConv(4, 6, 3, norm=nn.BatchNorm2d(6)),
    "own norm": lambda: Conv2d(4, 6, 3, norm=OwnNorm(6)),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 2), nn.BatchNorm2d(6)),
    "rectifier of the input": lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(4, 6, 3)),
    "rectifier after a view": lambda: nn.Sequential(nn.Identity(), nn.ReLU()),
    "other activation": lambda: Conv2d(4, 6, 3, activation=F.gelu),
}


@pytest.mark.parametrize("case", NOT_FOLDED)
def test_not_folded(case):
    torch.manual_seed(0)
    module = with_statistics(NOT_FOLDED[case]())
    optimized = optimized_for_inference(module)
    assert len(norms_in(optimized)) == len(norms_in(module))
    image = torch.randn(2, 4, 9, 11)
    before = image.clone()
    assert_close(run(optimized, image), run(module, image))
    assert torch.equal(image, before)


@pytest.mark.parametrize("listen_to", ["convolution", "norm"])
def test_hooks_see_what_they_saw(listen_to):
    conv = with_statistics(Conv2d(4, 6, 3, norm=get_norm("BN", 6), activation=F.relu))
    seen = []
    target = conv if listen_to == "convolution" else conv.norm
    target.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    image = torch.randn(1, 4, 8, 8)
    run(conv, image)
    run(optimized_for_inference(conv), image)
    assert len(seen) == 2
    torch.testing.assert_close(seen[1], seen[0])


def test_a_patched_forward_is_called():
    block = with_statistics(BasicBlock(4, 4, norm="BN"))
    conv = block.conv1
    block.conv1.forward = lambda x: conv.norm(conv._conv_forward(x, conv.weight, conv.bias)) * 3
    image = torch.randn(1, 4, 8, 8)
    assert_close(run(optimized_for_inference(block), image), run(block, image))


def test_attributes_are_shared_and_methods_rebound():
    model = nn.Module()
    model.inner, model.limits = nn.Linear(2, 2), {True: 5, False: 3}
    model.parts, model.function = [model.inner], model.inner.extra_repr
    optimized = optimized_for_inference(model)
    assert optimized.limits is model.limits
    assert optimized.parts == [optimized.inner] and optimized.function.__self__ is optimized.inner
    assert model.parts == [model.inner] and model.function.__self__ is model.inner is not optimized.inner


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, "got NoneType"),
        (torch.compile(nn.Linear(1, 1)), "OptimizedModule"),
        (nn.DataParallel(nn.Linear(1, 1)), "DataParallel"),
        (nn.LazyLinear(3), "LazyLinear with tensors of other types"),
    ],
)
def test_what_cannot_be_optimized(model, message):
    with pytest.raises(TypeError, match=message):
        optimized_for_inference(model)


# ------------------------------------------------------------------------------------------------------------ box heads


def box_head(conv_dims=(), fc_dims=(6, 5)):
    torch.manual_seed(0)
    return FastRCNNConvFCHead(ShapeSpec(channels=4, height=3, width=2), conv_dims=conv_dims, fc_dims=fc_dims).eval()


@pytest.mark.parametrize("conv_dims", [(), (7,)])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_box_head_takes_regions_in_either_order(count, conv_dims):
    head = box_head(conv_dims)
    optimized = optimized_for_inference(head)
    assert optimized.fcs[0] is optimized.fc1 and not torch.equal(optimized.fc1.weight, head.fc1.weight)
    regions = torch.randn(count, 4, 3, 2)
    for x in (regions, regions.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(run(optimized, x), run(head, x))
    if not conv_dims:
        torch.testing.assert_close(run(optimized, regions.flatten(1)), run(head, regions.flatten(1)))
        before, flat = regions.contiguous(memory_format=torch.channels_last), optimized.flatten
        assert count == 0 or flat(before).data_ptr() == before.data_ptr(), "a copy"
    again = optimized_for_inference(optimized)
    torch.testing.assert_close(run(again, regions), run(head, regions))


def test_box_heads_whose_layers_are_used_otherwise():
    class OwnHead(FastRCNNConvFCHead):
        def forward(self, x):
            return self.fc1(x.flatten(1))

    own = OwnHead(ShapeSpec(channels=4, height=3, width=2), conv_dims=[], fc_dims=[6]).eval()
    listened, shared, convolutions = box_head(), nn.ModuleList([box_head()]), box_head((7,), ())
    listened.flatten.register_forward_hook(lambda *args: None)
    shared.append(shared[0].fc1)
    for model in (own, listened, shared[0], convolutions):
        x = torch.randn(2, 4, 3, 2)
        torch.testing.assert_close(run(optimized_for_inference(model), x), run(model, x))
    assert torch.equal(optimized_for_inference(shared)[1].weight, shared[1].weight)


# ------------------------------------------------------------------------------------------------------------- anchors


@pytest.mark.parametrize(
    ("cls", "options"), [(DefaultAnchorGenerator, {}), (RotatedAnchorGenerator, {"angles": [[0, 30]]})]
)
def test_anchors_are_kept(cls, options):
    generator = cls(sizes=[[8], [16]], aspect_ratios=[[0.5, 1]], strides=[4, 8], **options)
    optimized = optimized_for_inference(generator)
    maps = [torch.zeros(1, 2, 6, 4), torch.zeros(1, 2, 3, 2)]
    first, again, wanted = optimized(maps), optimized(maps), generator(maps)
    assert all(a.tensor is b.tensor for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(first, wanted, strict=True))
    for width in range(1, 30):
        maps = [torch.zeros(1, 2, 6, width), torch.zeros(1, 2, 3, width)]
        found, wanted = optimized(maps), generator(maps)
        assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(found, wanted, strict=True))
    assert len(optimized._keep) < 10
    optimized.offset = 0.25
    assert not torch.equal(optimized(maps)[0].tensor, wanted[0].tensor)


# ------------------------------------------------------------------------------------------------------------- changes


def test_form_of_what_is_no_module():
    function = sorted
    assert OptimizedForm(function).current() is function


def in_training(model):
    return model.train()


def in_training_in_part(model):
    model.roi_heads.box_head.train()
    return model


def listened_to(model):
    model.backbone.bottom_up.register_forward_hook(print)
    return model


def with_another_class(model):
    model.roi_heads.mask_head = nn.Sequential(OwnConv(8, 8, 1, norm=nn.BatchNorm2d(8)))
    return model


def patched(model):
    model.roi_heads.forward = lambda *args: None
    return model


def patched_below_forward(model):
    """A method that keeps what it sees, for the caller to read afterwards."""

    def inference(self, *args, **options):
        self.seen = args
        return type(self).inference(self, *args, **options)

    model.inference = types.MethodType(inference, model)
    return model


def on_another_device(model):
    return model.to("meta")


@pytest.mark.parametrize(
    "change",
    [
        in_training,
        in_training_in_part,
        listened_to,
        with_another_class,
        patched,
        patched_below_forward,
        on_another_device,
    ],
)
def test_models_that_are_left_alone(change):
    model = change(model_named(TWO_STAGE))
    assert OptimizedForm(model).current() is model


def set_in_place(model):
    model.roi_heads.box_predictor.cls_score.bias.data.add_(1)


def set_a_folded_norm(model):
    with torch.no_grad():
        model.backbone.bottom_up.res2[0].conv1.norm.weight.mul_(2)


def load(model):
    model.load_state_dict({key: value * 1.5 for key, value in model.state_dict().items()})


def replace_a_weight(model):
    model.backbone.fpn_output2.weight = nn.Parameter(torch.ones_like(model.backbone.fpn_output2.weight))


def replace_data(model):
    model.backbone.fpn_output2.weight.data = torch.ones_like(model.backbone.fpn_output2.weight)


def replace_a_module(model):
    model.backbone.fpn_output2.norm = nn.BatchNorm2d(8).eval()


def set_an_attribute(model):
    model.roi_heads.box_predictor.test_score_thresh = 0.9


def set_the_form_of_masks(model):
    model.mask_format = "rle"


CHANGES = [
    set_in_place,
    set_a_folded_norm,
    load,
    replace_a_weight,
    replace_data,
    replace_a_module,
    set_an_attribute,
    set_the_form_of_masks,
]


@pytest.mark.parametrize("change", CHANGES)
def test_form_follows_changes(change):
    model = model_named(TWO_STAGE)
    form = OptimizedForm(model)
    before = form.current()
    assert before is form.current() is not model
    predictions(before, TWO_STAGE)
    assert form.current() is before, "use is no change"
    change(model)
    assert form.current() is not before
    expected, found = predictions(model, TWO_STAGE), predictions(form.current(), TWO_STAGE)
    assert set(found[0]["instances"].get_fields()) == set(expected[0]["instances"].get_fields())
    if change is not set_the_form_of_masks:
        assert_close(found, expected)
    assert form.current() is form.current()


def test_numbers_that_are_set_anew_are_no_change():
    model = model_named(TWO_STAGE)
    form = OptimizedForm(model)
    before = form.current()
    for _ in range(2):
        model.roi_heads.box_predictor.test_nms_thresh = float(str(model.roi_heads.box_predictor.test_nms_thresh))
        assert form.current() is before


@pytest.mark.parametrize("name", BUILDERS)
def test_every_model_has_a_form(name):
    model = model_named(name)
    assert OptimizedForm(model).current() is not model


def test_form_follows_limits_that_are_changed_in_place():
    model = model_named(TWO_STAGE)
    form = OptimizedForm(model)
    form.current()
    model.proposal_generator.post_nms_topk = {True: 30, False: 20}
    form.current()
    model.proposal_generator.post_nms_topk[False] = 2
    assert_close(predictions(form.current(), TWO_STAGE), predictions(model, TWO_STAGE))


def test_form_follows_hooks_and_their_removal():
    model = model_named(TWO_STAGE)
    form = OptimizedForm(model)
    optimized = form.current()
    handle = model.backbone.bottom_up.res2[0].conv1.norm.register_forward_hook(lambda *args: None)
    assert form.current() is model
    handle.remove()
    assert form.current() not in (model, optimized)


def test_form_of_weights_that_are_not_numbers_is_made_once():
    model = model_named("RetinaNet")
    model.backbone.fpn_output3.weight.data.fill_(float("nan"))
    form = OptimizedForm(model)
    assert form.current() is form.current()


def test_copies_of_a_form_follow_their_own_model():
    form = OptimizedForm(Conv2d(3, 4, 1).eval())
    form.current()
    for other in (copy.deepcopy(form), pickle.loads(pickle.dumps(form))):
        other.model.weight.data.zero_()
        assert not other.current().weight.any() and form.current().weight.any()


@pytest.mark.parametrize(
    "constrain",
    [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm],
)
def test_weights_that_are_computed(constrain):
    """Parametrized modules cannot be copied by `copy.copy`; their copies follow the weights of the model."""
    model = nn.Sequential(constrain(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    form, image = OptimizedForm(model), torch.rand(1, 3, 8, 9)
    with torch.no_grad():
        for fast in (optimized_for_inference(model), form.current(), copy.deepcopy(optimized_for_inference(model))):
            torch.testing.assert_close(fast(image), model(image))
        before = model(image)
        model.load_state_dict({key: 2 * value for key, value in model.state_dict().items()})
        assert not torch.allclose(model(image), before)
        torch.testing.assert_close(form.current()(image), model(image))
