import copy
import logging
import math
import pickle

import pytest
import torch
from torch import nn

from detectron2.config import get_cfg
from detectron2.modeling.backbone import BasicStem, ResNet, SwinTransformer, ViT
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from detectron2.solver import (
    LRMultiplier,
    build_lr_scheduler,
    build_optimizer,
    get_default_optimizer_params,
    maybe_add_gradient_clipping,
    reduce_param_groups,
)
from detectron2.solver.build import (
    GradientClipType,
    _create_gradient_clipper,
    _expand_param_groups,
    layer_decay,
    match_memory_formats,
)


def settings(*pairs):
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.BASE_LR", 0.1, "SOLVER.MAX_ITER", 100, "SOLVER.STEPS", (60, 80), *pairs])
    return cfg


def small_model():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    model[2].weight.requires_grad_(False)
    return model


def group_of(groups, parameter):
    (group,) = [g for g in groups if any(p is parameter for p in g["params"])]
    return {key: value for key, value in group.items() if key != "params"}


def test_a_model_without_parameters_has_no_groups():
    assert get_default_optimizer_params(nn.ReLU()) == []
    assert reduce_param_groups([]) == []


def test_without_overrides_there_is_one_group_of_all_trainable_parameters():
    model = small_model()
    (group,) = get_default_optimizer_params(model)
    assert list(map(id, group["params"])) == [id(p) for p in model.parameters() if p.requires_grad]
    assert set(group) == {"params"}


def test_defaults_norms_and_biases():
    model = small_model()
    groups = get_default_optimizer_params(
        model, base_lr=1.0, weight_decay=0.1, weight_decay_norm=0.0, bias_lr_factor=2.0, weight_decay_bias=0.3
    )
    assert group_of(groups, model[0].weight) == {"lr": 1.0, "weight_decay": 0.1}
    assert group_of(groups, model[1].weight) == {"lr": 1.0, "weight_decay": 0.0}
    assert group_of(groups, model[0].bias) == {"lr": 2.0, "weight_decay": 0.3}
    assert group_of(groups, model[1].bias) == {"lr": 2.0, "weight_decay": 0.3}  # the name wins over the layer
    assert not any(p is model[2].weight for g in groups for p in g["params"])


def test_overrides_by_name_and_factors_by_full_name():
    model = small_model()
    model.token = nn.Parameter(torch.zeros(1))
    overrides = {"bias": {"weight_decay": 0.0}}
    asked = []

    def factor(name):
        asked.append(name)
        return 0.5 if name.startswith("0.") else 1.0

    groups = get_default_optimizer_params(model, base_lr=1.0, overrides=overrides, lr_factor_func=factor)
    assert group_of(groups, model[0].weight) == {"lr": 0.5}
    assert group_of(groups, model[0].bias) == {"lr": 0.5, "weight_decay": 0.0}
    assert group_of(groups, model.token) == {"lr": 1.0}
    assert asked == ["token", "0.weight", "0.bias", "1.weight", "1.bias", "2.bias"]
    assert overrides == {"bias": {"weight_decay": 0.0}}


@pytest.mark.parametrize(
    "arguments",
    [
        {"bias_lr_factor": 2.0},
        {"lr_factor_func": lambda name: 1.0},
        {"weight_decay_bias": 0.0, "overrides": {"bias": {"lr": 1.0}}},
    ],
)
def test_contradictions_are_refused(arguments):
    with pytest.raises(ValueError, match=r"base_lr|bias"):
        get_default_optimizer_params(small_model(), **arguments)


def test_shared_parameters_occur_once():
    layer = nn.Linear(2, 2)
    twice = nn.ModuleList([layer, layer, nn.Linear(2, 2)])
    twice[2].weight = layer.weight
    groups = get_default_optimizer_params(twice)
    assert sum(len(g["params"]) for g in groups) == 3
    torch.optim.SGD(groups, lr=1.0)


def test_reduce_param_groups_merges_equal_settings():
    a, b, c, d = (nn.Parameter(torch.zeros(1)) for _ in range(4))
    groups = reduce_param_groups(
        [
            {"params": [a], "lr": 1.0, "weight_decay": 0.0},
            {"params": [b], "lr": 2.0},
            {"params": [c], "weight_decay": 0.0, "lr": 1.0},
            {"params": d, "lr": 2.0},
        ]
    )
    assert [g["params"] for g in groups] == [[a, c], [b, d]]
    assert groups[0]["lr"] == 1.0


def test_build_optimizer_follows_the_config():
    cfg = settings("SOLVER.MOMENTUM", 0.8, "SOLVER.NESTEROV", True, "SOLVER.WEIGHT_DECAY", 0.2)
    model = small_model()
    optimizer = build_optimizer(cfg, model)
    assert type(optimizer) is torch.optim.SGD
    assert group_of(optimizer.param_groups, model[0].weight)["weight_decay"] == 0.2
    assert group_of(optimizer.param_groups, model[1].weight)["weight_decay"] == 0.0
    assert all(g["lr"] == 0.1 and g["momentum"] == 0.8 and g["nesterov"] for g in optimizer.param_groups)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("SGD", torch.optim.SGD), ("adamw", torch.optim.AdamW), ("ADAMW", torch.optim.AdamW), ("Adam", torch.optim.Adam)],
)
def test_optimizer_by_name(name, kind):
    optimizer = build_optimizer(settings("SOLVER.OPTIMIZER", name, "SOLVER.WEIGHT_DECAY", 0.05), small_model())
    assert type(optimizer) is kind
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.05, 0.0}
    assert all(group["fused"] for group in optimizer.param_groups)


def test_without_a_choice_optimizers_are_fused_on_the_cpu():
    model = small_model().to("meta")
    assert all(not group["fused"] for group in build_optimizer(settings(), model).param_groups)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
@pytest.mark.parametrize(
    "orders", [(torch.channels_last, torch.contiguous_format), (torch.contiguous_format, torch.channels_last)]
)
def test_state_in_another_order_of_memory_is_brought_into_that_of_the_parameters(name, orders):
    found = []
    for of_state in (orders[0], orders[1]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3)).to(memory_format=orders[0])
        optimizer = build_optimizer(settings("SOLVER.OPTIMIZER", name), model)
        for step in range(2):
            optimizer.zero_grad()
            model(torch.arange(150.0).view(2, 3, 5, 5).sin()).square().sum().backward()
            optimizer.step()
            for state in optimizer.state.values() if step == 0 else ():
                for key, value in state.items():
                    state[key] = value.contiguous(memory_format=of_state) if value.dim() == 4 else value
        found.append(model[0].weight.detach())
    assert torch.equal(*found)


def test_gradients_in_another_order_of_memory():
    found = []
    for order in (torch.channels_last, torch.contiguous_format):
        parameter = nn.Parameter(torch.arange(54.0).view(2, 3, 3, 3).contiguous(memory_format=torch.channels_last))
        parameter.grad = torch.arange(54.0).view(2, 3, 3, 3).sin().contiguous(memory_format=order)
        optimizer = build_optimizer(settings(), nn.ParameterList([parameter]))
        optimizer.step()
        found.append(parameter.detach())
    assert torch.equal(*found)


def test_state_is_brought_into_the_order_of_parameters():
    parameter = nn.Parameter(torch.zeros(2, 3, 4, 5).contiguous(memory_format=torch.channels_last))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    values = torch.arange(120.0).view(2, 3, 4, 5)
    optimizer.state[parameter] = {"momentum_buffer": values, "step": torch.tensor(3.0), "name": None}
    match_memory_formats(optimizer)
    state = optimizer.state[parameter]
    assert torch.equal(state["momentum_buffer"], values) and state["momentum_buffer"].stride() == parameter.stride()
    assert state["step"] == 3 and state["name"] is None


def test_sparse_gradients_are_not_for_fused_optimizers():
    model = nn.Sequential(nn.Embedding(3, 2, sparse=True))
    optimizer = build_optimizer(settings("SOLVER.WEIGHT_DECAY", 0.0), model)
    model[0](torch.tensor([1])).sum().backward()
    optimizer.step()
    assert not optimizer.param_groups[0]["fused"]


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match=r"SOLVER\.OPTIMIZER.*AdamW.*'Lion'"):
        build_optimizer(settings("SOLVER.OPTIMIZER", "Lion"), small_model())
    with pytest.raises(ValueError, match=r"SOLVER\.OPTIMIZER.*AdamW.*but is None"):
        build_optimizer(settings("SOLVER.OPTIMIZER", None), small_model())


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_fused_optimizers_do_the_same(name):
    models = [small_model() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model, fused in zip(models, (False, True), strict=True):
        pairs = ("SOLVER.OPTIMIZER", name, "SOLVER.FUSED", fused, "SOLVER.BETAS", (0.8, 0.9))
        optimizer = build_optimizer(settings(*pairs), model)
        assert all(bool(group["fused"]) == fused for group in optimizer.param_groups)
        assert all(group.get("betas", (0.8, 0.9)) == (0.8, 0.9) for group in optimizer.param_groups)
        for _ in range(3):
            optimizer.zero_grad()
            model[0].weight.square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(models[0][0].weight, models[1][0].weight)


def test_adamw_does_the_published_update():
    """Loshchilov and Hutter, arXiv:1711.05101, algorithm 2, for one step from gradient 2."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False))
    before = model[0].weight.item()
    optimizer = build_optimizer(settings("SOLVER.OPTIMIZER", "AdamW", "SOLVER.WEIGHT_DECAY", 0.5), model)
    model[0].weight.grad = torch.tensor([[2.0]])
    optimizer.step()
    assert model[0].weight.item() == pytest.approx(before * (1 - 0.1 * 0.5) - 0.1 * 1.0, abs=1e-6)


def test_layer_decay_by_config():
    model = nn.Module()
    model.backbone = nn.Module()
    for name in ("stem", "res2", "res3"):
        setattr(model.backbone, name, nn.Linear(1, 1))
    model.head = nn.Linear(1, 1)
    optimizer = build_optimizer(settings("SOLVER.LAYER_DECAY", 0.5), model)
    rates = {name: group_of(optimizer.param_groups, p)["lr"] for name, p in model.named_parameters()}
    expected = {"backbone.stem": 0.0125, "backbone.res2": 0.025, "backbone.res3": 0.05, "head": 0.1}
    assert {name.rpartition(".")[0]: rate for name, rate in rates.items()} == pytest.approx(expected)


@pytest.mark.parametrize("part", ["backbone", "network.model.backbone.conv", "network.pixel_level_module.encoder"])
def test_factor_of_the_backbone(part):
    model = model_of("stem.weight", f"{part}.res2.weight", "backbones.weight")
    optimizer = build_optimizer(settings("SOLVER.BACKBONE_LR_FACTOR", 0.1), model)
    rates = {name: group_of(optimizer.param_groups, p)["lr"] for name, p in model.named_parameters()}
    assert rates == pytest.approx({"stem.weight": 0.1, f"{part}.res2.weight": 0.01, "backbones.weight": 0.1})


def test_factor_of_the_backbone_and_of_its_layers():
    model = model_of("backbone.stem.weight", "backbone.res2.weight", "head.weight")
    optimizer = build_optimizer(settings("SOLVER.LAYER_DECAY", 0.5, "SOLVER.BACKBONE_LR_FACTOR", 0.1), model)
    rates = [group_of(optimizer.param_groups, p)["lr"] for p in model.parameters()]
    assert rates == pytest.approx([0.1 * 0.25 * 0.1, 0.1 * 0.5 * 0.1, 0.1])


def test_factor_of_a_backbone_that_is_not_there():
    with pytest.raises(ValueError, match=r"SOLVER\.BACKBONE_LR_FACTOR is 0\.1, but no parameter of Module is in a"):
        build_optimizer(settings("SOLVER.BACKBONE_LR_FACTOR", 0.1), model_of("head.weight"))


CLIP = ("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1.0)
GRADIENTS = ([3.0, -4.0], [0.3, 0.4], None)


def parameters_with_gradients():
    parameters = []
    for gradient in GRADIENTS:
        parameter = nn.Parameter(torch.zeros(2))
        parameter.grad = None if gradient is None else torch.tensor(gradient)
        parameters.append(parameter)
    return parameters


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value"), [[1.0, -1.0], [0.3, 0.4]]),
        (("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"), [[0.6, -0.8], [0.3, 0.4]]),
        (
            ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm", "SOLVER.CLIP_GRADIENTS.NORM_TYPE", float("inf")),
            [[0.75, -1.0], [0.3, 0.4]],
        ),
    ],
)
def test_clipping_acts_on_every_parameter_by_itself(kind, expected):
    cfg = settings(*CLIP, *kind)
    parameters = parameters_with_gradients()
    optimizer = maybe_add_gradient_clipping(cfg, torch.optim.SGD(parameters, lr=1.0))
    optimizer.step()
    for parameter, gradient in zip(parameters, [*expected, [0.0, 0.0]], strict=True):
        torch.testing.assert_close(-parameter.detach(), torch.tensor(gradient))


def test_norm_clipping_equals_that_of_torch_per_parameter():
    clipper = _create_gradient_clipper(settings(*CLIP, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm").SOLVER.CLIP_GRADIENTS)
    ours = [nn.Parameter(torch.zeros(3, 4)) for _ in range(3)]
    for parameter in ours:
        parameter.grad = torch.randn(3, 4) * 2
    theirs = copy.deepcopy(ours)
    for mine, parameter in zip(ours, theirs, strict=True):
        parameter.grad = mine.grad.clone()
        nn.utils.clip_grad_norm_(parameter, 1.0, 2.0)
    clipper(ours[0])  # one parameter
    clipper(ours[1:])  # several
    for mine, parameter in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, parameter.grad)
    clipper([])


def test_clipping_off_changes_nothing():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    assert maybe_add_gradient_clipping(settings(), optimizer) is optimizer
    assert maybe_add_gradient_clipping(settings(), torch.optim.Adam) is torch.optim.Adam
    assert type(optimizer) is torch.optim.SGD


def test_clipping_of_a_class_leaves_the_class_alone():
    derived = maybe_add_gradient_clipping(settings(*CLIP), torch.optim.Adam)
    assert issubclass(derived, torch.optim.Adam)
    assert derived is not torch.optim.Adam
    assert "Adam" in derived.__name__
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = derived([parameter], lr=0.1)
    parameter.grad = torch.tensor([5.0])
    optimizer.step()
    assert float(parameter.grad) == 1.0


def test_clipping_sees_the_gradients_of_a_closure():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = maybe_add_gradient_clipping(settings(*CLIP), torch.optim.SGD([parameter], lr=1.0))

    def closure():
        optimizer.zero_grad()
        loss = 7 * parameter.sum()
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) == 0.0
    assert parameter.item() == -1.0


def test_step_hooks_run_once():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = maybe_add_gradient_clipping(settings(*CLIP), torch.optim.SGD)([parameter], lr=1.0)
    calls = []
    optimizer.register_step_pre_hook(lambda *a: calls.append("before"))
    optimizer.register_step_post_hook(lambda *a: calls.append("after"))
    parameter.grad = torch.ones(1)
    optimizer.step()
    assert calls == ["before", "after"]


def test_a_clipping_optimizer_can_be_copied_and_pickled():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = maybe_add_gradient_clipping(settings(*CLIP), torch.optim.SGD([parameter], lr=1.0, momentum=0.9))
    parameter.grad = torch.tensor([5.0])
    optimizer.step()
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert isinstance(twin, torch.optim.SGD)
        assert twin.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
        (own,) = twin.param_groups[0]["params"]
        own.grad = torch.tensor([5.0])
        twin.step()
        assert own.item() == pytest.approx(-1.0 - 1.9)


def test_with_loss_scaling_the_unscaled_gradients_are_clipped():
    parameter = nn.Parameter(torch.zeros(1))
    cls = maybe_add_gradient_clipping(settings(*CLIP), torch.optim.SGD)
    optimizer = cls([parameter], lr=1.0, fused=True)  # fused optimizers offer to unscale in their step
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(0.5 * parameter.sum()).backward()
    scaler.step(optimizer)
    assert parameter.item() == -0.5


def test_clipping_of_the_full_model_equals_that_of_torch():
    cfg = settings(*CLIP, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model")
    parameters = parameters_with_gradients()
    maybe_add_gradient_clipping(cfg, torch.optim.SGD(parameters, lr=1.0)).step()
    norm = (3.0**2 + 4.0**2 + 0.3**2 + 0.4**2) ** 0.5
    for parameter, gradient in zip(parameters, [*GRADIENTS[:2], [0.0, 0.0]], strict=True):
        torch.testing.assert_close(-parameter.detach(), torch.tensor(gradient) / norm)

    theirs = parameters_with_gradients()
    nn.utils.clip_grad_norm_(theirs, 1.0, 2.0)
    for mine, parameter in zip(parameters[:2], theirs[:2], strict=True):
        assert torch.equal(mine.grad, parameter.grad)


def test_clipping_of_the_full_model_leaves_small_gradients_alone():
    cfg = settings(*CLIP, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 6.0)
    parameters = parameters_with_gradients()
    maybe_add_gradient_clipping(cfg, torch.optim.SGD(parameters, lr=1.0)).step()
    assert parameters[0].tolist() == [-3.0, 4.0]


def test_clip_types():
    assert {kind.value for kind in GradientClipType} == {"value", "norm", "full_model"}
    with pytest.raises(ValueError, match="everything"):
        _create_gradient_clipper(settings("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "everything").SOLVER.CLIP_GRADIENTS)


def schedule_values(cfg, count=100):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    assert isinstance(scheduler, LRMultiplier)
    values = []
    for _ in range(count):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


def test_multi_step_schedule():
    values = schedule_values(settings("SOLVER.WARMUP_ITERS", 0))
    assert values == pytest.approx([0.1] * 60 + [0.01] * 20 + [0.001] * 20)


def test_fixed_gamma_schedule():
    """NUM_DECAYS equal parts after the first: factor GAMMA each."""
    cfg = settings("SOLVER.LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR", "SOLVER.WARMUP_ITERS", 0)
    cfg.merge_from_list(["SOLVER.NUM_DECAYS", 3, "SOLVER.GAMMA", 0.5])
    assert schedule_values(cfg) == pytest.approx([0.1] * 25 + [0.05] * 25 + [0.025] * 25 + [0.0125] * 25)


@pytest.mark.parametrize("rescale", [False, True])
def test_cosine_schedule_with_warmup_and_end(rescale):
    cfg = settings("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR_END", 0.01)
    cfg.merge_from_list(["SOLVER.WARMUP_ITERS", 20, "SOLVER.WARMUP_FACTOR", 0.1, "SOLVER.RESCALE_INTERVAL", rescale])

    def cosine(progress):
        return 0.01 + 0.09 * (1 + math.cos(math.pi * progress)) / 2

    joined = 0.1 if rescale else cosine(0.2)
    warmup = [0.01 + (joined - 0.01) * i / 20 for i in range(20)]
    after = [cosine((i - 20) / 80 if rescale else i / 100) for i in range(20, 100)]
    assert schedule_values(cfg) == pytest.approx(warmup + after)


def test_constant_warmup_then_steps():
    cfg = settings("SOLVER.WARMUP_ITERS", 10, "SOLVER.WARMUP_FACTOR", 0.3, "SOLVER.WARMUP_METHOD", "constant")
    assert schedule_values(cfg) == pytest.approx([0.03] * 10 + [0.1] * 50 + [0.01] * 20 + [0.001] * 20)


def test_steps_behind_the_end_are_ignored_with_a_warning(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    values = schedule_values(settings("SOLVER.WARMUP_ITERS", 0, "SOLVER.STEPS", (60, 100, 200)))
    assert values == pytest.approx([0.1] * 60 + [0.01] * 40)
    assert "SOLVER.STEPS" in caplog.text


def test_a_warmup_longer_than_the_training():
    values = schedule_values(settings("SOLVER.WARMUP_ITERS", 1000, "SOLVER.STEPS", ()))
    assert values == sorted(values)
    assert values[0] == pytest.approx(0.1 * 0.001)


@pytest.mark.parametrize("name", ["WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"])
@pytest.mark.parametrize("warmup", [0, 10, 100])
def test_every_schedule_is_defined_to_its_end_and_beyond(name, warmup):
    values = schedule_values(settings("SOLVER.LR_SCHEDULER_NAME", name, "SOLVER.WARMUP_ITERS", warmup), 105)
    assert all(0 <= value <= 0.1 + 1e-9 for value in values)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (("SOLVER.LR_SCHEDULER_NAME", "Unknown"), "WarmupCosineLR"),
        (("SOLVER.STEPS", (80, 60)), "SOLVER.STEPS"),
        (("SOLVER.STEPS", (0,)), "SOLVER.STEPS"),
        (("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR_END", 1.0), "BASE_LR_END"),
        (("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR", 0.0), "BASE_LR"),
        (("SOLVER.MAX_ITER", 0, "SOLVER.STEPS", ()), "SOLVER.MAX_ITER"),
        (("SOLVER.WARMUP_METHOD", "cubic"), "cubic"),
    ],
)
def test_bad_schedules_are_refused(pairs, message):
    with pytest.raises(ValueError, match=message):
        schedule_values(settings(*pairs), 1)


def model_of(*names):
    """A module with one parameter under each dotted name."""
    root = nn.Module()
    for name in names:
        *path, last = name.split(".")
        node = root
        for part in path:
            if not hasattr(node, part):
                setattr(node, part, nn.Module())
            node = getattr(node, part)
        node.register_parameter(last, nn.Parameter(torch.zeros(1)))
    return root


@pytest.mark.parametrize("names", [[], ["head.weight"], ["backbone.conv.weight"], ["head.blocks.0.weight"]])
def test_a_backbone_without_known_layers_is_refused(names):
    with pytest.raises(ValueError, match=r"SOLVER\.LAYER_DECAY"):
        layer_decay(model_of(*names), 0.9)


@pytest.mark.parametrize("rate", [0.0, -0.5, 1.5])
def test_a_rate_out_of_range_is_refused(rate):
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        layer_decay(model_of("backbone.res2.weight"), rate)


@pytest.mark.parametrize(
    ("powers"),
    [
        # ResNet below a pyramid, RegNet
        {
            "backbone.bottom_up.stem.conv1.weight": 3,
            "backbone.bottom_up.res2.0.conv1.weight": 2,
            "backbone.bottom_up.res3.3.conv2.norm.bias": 1,
            "backbone.fpn_lateral2.weight": 0,
            "roi_heads.res5.weight": 0,
        },
        {"backbone.stem.weight": 3, "backbone.s1.b1.weight": 2, "backbone.s2.b1.weight": 1, "head.s1.weight": 0},
        # ViT
        {
            "backbone.net.patch_embed.proj.weight": 4,
            "backbone.net.pos_embed": 4,
            "backbone.net.blocks.0.attn.weight": 3,
            "backbone.net.blocks.2.attn.weight": 1,
            "backbone.net.blocks.2.residual.conv1.weight": 0,
            "backbone.simfp_2.0.weight": 0,
            "head.weight": 0,
        },
        # Swin: five blocks, in stages of two and three
        {
            "backbone.bottom_up.patch_embed.proj.weight": 6,
            "backbone.bottom_up.layers.0.blocks.0.weight": 5,
            "backbone.bottom_up.layers.0.blocks.1.weight": 4,
            "backbone.bottom_up.layers.0.downsample.weight": 4,
            "backbone.bottom_up.layers.1.blocks.0.weight": 3,
            "backbone.bottom_up.layers.1.blocks.1.weight": 2,
            "backbone.bottom_up.layers.1.blocks.2.weight": 1,
            "backbone.bottom_up.norm1.weight": 0,
            "head.layers.0.blocks.0.weight": 0,
        },
    ],
    ids=["resnet", "regnet", "vit", "swin"],
)
def test_factors(powers):
    factor = layer_decay(model_of(*powers), 0.5)
    assert {name: factor(name) for name in powers} == {name: 0.5**power for name, power in powers.items()}


def test_the_real_backbones_are_known():
    with torch.device("meta"):
        backbones = {
            "vit": ViT(img_size=32, patch_size=16, embed_dim=8, depth=3, num_heads=2),
            "swin": SwinTransformer(embed_dim=8, depths=[1, 2], num_heads=[1, 2], out_indices=(0, 1)),
            "resnet": ResNet(BasicStem(), ResNet.make_default_stages(18)),
        }
    for name, backbone in backbones.items():
        model = nn.Module()
        model.backbone = backbone
        factors = {layer_decay(model, 0.5)(key) for key, _ in model.named_parameters()}
        assert {0.5, 0.25, 0.125} <= factors, name
    model.backbone = backbones["vit"]
    for key, _ in model.named_parameters():
        assert layer_decay(model, 0.7)(key) == get_vit_lr_decay_rate(key, 0.7, 3)


def test_a_parameter_of_several_groups_has_the_settings_of_all():
    groups = [
        {"params": ["p1", "p2", "p3", "p4"], "lr": 1.0, "weight_decay": 4.0},
        {"params": ["p2", "p3", "p5"], "lr": 2.0, "momentum": 2.0},
        {"params": ["p1"], "weight_decay": 3.0},
    ]
    both = {"lr": 2.0, "weight_decay": 4.0, "momentum": 2.0}
    expected = {
        "p1": {"lr": 1.0, "weight_decay": 3.0},
        "p2": both,
        "p3": both,
        "p4": {"lr": 1.0, "weight_decay": 4.0},
        "p5": {"lr": 2.0, "momentum": 2.0},
    }
    assert _expand_param_groups(groups) == [{"params": [name], **given} for name, given in expected.items()]
    assert [group["params"] for group in reduce_param_groups(groups)] == [["p1"], ["p2", "p3"], ["p4"], ["p5"]]


def test_unknown_kind_of_clipping():
    cfg = get_cfg()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED, cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = True, "all"
    with pytest.raises(ValueError, match=r"CLIP_TYPE must be one of value, norm, full_model, but is 'all'"):
        maybe_add_gradient_clipping(cfg, torch.optim.SGD)


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
@pytest.mark.parametrize("wrong", [torch.ones(5), torch.ones(()), "text"])
def test_a_state_of_other_parameters_is_refused(kind, wrong):
    """A fused optimizer would leave its memory with it."""
    model = nn.Linear(2, 3)
    optimizer = build_optimizer(settings("SOLVER.OPTIMIZER", kind), model)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(state)
    name = next(name for name in state["state"][0] if name != "step")
    state["state"][0][name] = wrong
    with pytest.raises(ValueError, match=rf"{name} of a parameter of shape \(3, 2\) is "):
        optimizer.load_state_dict(state)
