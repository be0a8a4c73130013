import copy
import errno
import http.server
import logging
import os
import pickle
import threading
from collections import OrderedDict
from pathlib import Path
from unittest.mock import Mock
from urllib.error import HTTPError

import fvcore.common.checkpoint
import numpy as np
import pytest
import torch
from torch import nn

from detectron2.checkpoint import Checkpointer, DetectionCheckpointer, PeriodicCheckpointer
from detectron2.checkpoint.catalog import ModelCatalog
from detectron2.checkpoint.load_report import OtherModelError
from detectron2.utils.file_io import Detectron2Handler, DownloadError, PathManager


class Model(nn.Module):
    """A detector in miniature, with the names that matter."""

    def __init__(self, classes=3, width=8):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width))
        self.box_predictor = nn.ModuleDict({"cls_score": nn.Linear(width, classes + 1)})
        self.register_buffer("pixel_mean", torch.zeros(3, 1, 1), persistent=False)

    def forward(self, x):
        return self.box_predictor["cls_score"](self.backbone(x).mean((2, 3)))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.fixture
def log(caplog, monkeypatch):
    """(level, message) of what was logged."""
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    caplog.set_level(logging.INFO, logger="detectron2.checkpoint")
    return lambda: [(record.levelname, record.getMessage()) for record in caplog.records]


def test_classes_are_those_of_fvcore():
    assert Checkpointer is fvcore.common.checkpoint.Checkpointer
    assert PeriodicCheckpointer is fvcore.common.checkpoint.PeriodicCheckpointer
    assert issubclass(DetectionCheckpointer, Checkpointer)
    assert DetectionCheckpointer(Model()).path_manager is PathManager


@pytest.mark.parametrize("content", [{"model": {}}, {"model": {}, "iteration": 3}])
def test_a_file_without_weights(tmp_path, content):
    torch.save(content, path := tmp_path / "model_0000003.pth")
    (tmp_path / "last_checkpoint").write_text(path.name)
    keeper = DetectionCheckpointer(Model(), str(tmp_path))
    for load in (keeper.load, keeper.load_for_inference, lambda p: keeper.resume_or_load("", resume=True)):
        with pytest.raises(ValueError, match=r"model_0000003\.pth holds no weights: its 'model' is empty\."):
            load(str(path))
    assert DetectionCheckpointer(nn.ReLU()).load(str(path)).get("iteration") == content.get("iteration")


def test_an_empty_path_loads_nothing():
    model, twin = Model(), Model()
    twin.load_state_dict(model.state_dict())
    assert DetectionCheckpointer(model).load("") == {}
    assert same(model, twin)


def test_a_model_without_parameters(tmp_path):
    checkpointer = DetectionCheckpointer(nn.ReLU(), str(tmp_path))
    checkpointer.save("empty")
    assert DetectionCheckpointer(nn.ReLU()).load(str(tmp_path / "empty.pth")) == {}


def trained(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    return optimizer


def test_round_trip_with_training_state(tmp_path, log):
    model = Model()
    optimizer = trained(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    first = DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer, scheduler=scheduler)
    first.save(
        "model_0000009", iteration=9, best=np.float64(0.5), shape=(1, 2), names=["a"], table=np.eye(2), flags={1}
    )
    assert os.listdir(tmp_path) != []
    assert first.get_checkpoint_file() == str(tmp_path / "model_0000009.pth")
    assert first.get_all_checkpoint_files() == [str(tmp_path / "model_0000009.pth")]

    other = Model()
    fresh = torch.optim.SGD(other.parameters(), lr=0.7, momentum=0.9)
    second = DetectionCheckpointer(other, str(tmp_path), optimizer=fresh)
    second.add_checkpointable("scheduler", torch.optim.lr_scheduler.StepLR(fresh, 3))
    rest = second.resume_or_load("ignored", resume=True)
    assert same(model, other)
    assert fresh.param_groups[0]["lr"] == 0.1
    buffers = [state["momentum_buffer"] for state in fresh.state.values()]
    assert all(torch.equal(a, b["momentum_buffer"]) for a, b in zip(buffers, optimizer.state.values(), strict=True))
    assert rest["iteration"] == 9
    assert rest["best"] == 0.5
    assert rest["shape"] == (1, 2)
    assert rest["flags"] == {1}
    np.testing.assert_array_equal(rest["table"], np.eye(2))
    assert type(rest["table"]) is np.ndarray
    assert [message for level, message in log() if level == "WARNING"] == []
    assert any("100.0% of the model" in message for _, message in log())


def test_resume_semantics(tmp_path, log):
    model = Model()
    path = str(tmp_path / "weights.pth")
    torch.save({"model": model.state_dict(), "iteration": 4, "optimizer": trained(Model()).state_dict()}, path)
    other = Model()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.7)
    checkpointer = DetectionCheckpointer(other, str(tmp_path / "out"), optimizer=optimizer)
    # nothing to resume from: the given weights are loaded, and only those
    assert not checkpointer.has_checkpoint()
    assert checkpointer.get_all_checkpoint_files() == []
    checkpointer.resume_or_load(path, resume=True)
    assert same(model, other)
    assert optimizer.param_groups[0]["lr"] == 0.7
    # from a run that saved: its last checkpoint is loaded with everything, unless resume is off
    checkpointer.save("model_0000001", iteration=1)
    assert checkpointer.has_checkpoint()
    nn.init.zeros_(other.backbone[0].weight)
    assert checkpointer.resume_or_load(path, resume=True)["iteration"] == 1
    assert checkpointer.resume_or_load(path, resume=False)["iteration"] == 4
    assert not any("starts afresh" in message for _, message in log())


@pytest.fixture
def two_ranks(monkeypatch):
    """Make this process believe that it is one of two; only rank 0 has the file. Returns what rank 0 sends."""
    sent = []

    def join(rank, has_file=(True, False)):
        def broadcast(box, src, group):
            sent.append(copy.copy(box[0])) if rank == 0 else box.__setitem__(0, sent[0])

        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda: rank)
        monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
        monkeypatch.setattr("detectron2.utils.comm.all_gather", lambda data: list(has_file))
        monkeypatch.setattr("detectron2.utils.comm._get_global_gloo_group", lambda: None)
        monkeypatch.setattr("torch.distributed.broadcast_object_list", broadcast)

    return join, sent


def wrapped_checkpointer(model, monkeypatch, **kwargs):
    """A checkpointer of a model that is wrapped for distributed training, without a process group."""
    checkpointer = DetectionCheckpointer(model, **kwargs)
    monkeypatch.setattr(checkpointer, "_is_distributed", True)
    return checkpointer


def test_the_file_need_only_be_on_rank_0(tmp_path, monkeypatch, two_ranks):
    join, sent = two_ranks
    source = Model()
    torch.save({"model": source.state_dict(), "iteration": 3}, tmp_path / "a.pth")
    models = [Model(), Model()]
    for rank, name in ((0, "a.pth"), (1, "absent.pth")):
        join(rank)
        checkpointer = wrapped_checkpointer(models[rank], monkeypatch)
        assert checkpointer.save_to_disk == (rank == 0)
        assert checkpointer.load(str(tmp_path / name))["iteration"] == 3
    assert len(sent) == 1
    assert same(source, models[0])
    assert same(source, models[1])


def test_an_error_on_rank_0_reaches_the_others(tmp_path, monkeypatch, two_ranks):
    join, _ = two_ranks
    (tmp_path / "a.pth").write_bytes(b"no checkpoint")
    for rank, name in ((0, "a.pth"), (1, "absent.pth")):
        join(rank)
        with pytest.raises(ValueError, match=r"a\.pth"):
            wrapped_checkpointer(Model(), monkeypatch).load(str(tmp_path / name))


def test_a_download_that_fails_on_one_rank_does_not_leave_the_others_waiting(tmp_path, monkeypatch, two_ranks):
    join, _ = two_ranks
    source = Model()
    torch.save({"model": source.state_dict()}, tmp_path / "a.pth")
    models = [Model(), Model()]
    for rank in (0, 1):
        join(rank)
        checkpointer = wrapped_checkpointer(models[rank], monkeypatch)
        if rank == 1:
            error = HTTPError("https://host/a.pth", 503, "busy", None, None)  # type: ignore[arg-type]  # no headers
            monkeypatch.setattr(checkpointer, "_local_file", Mock(side_effect=error))
        checkpointer.load(str(tmp_path / "a.pth"))
    assert same(source, models[1])


def test_when_rank_0_lacks_the_file_nobody_waits(tmp_path, monkeypatch, two_ranks):
    join, sent = two_ranks
    for rank in (0, 1):
        join(rank, has_file=(False, False))
        with pytest.raises(FileNotFoundError):
            wrapped_checkpointer(Model(), monkeypatch).load(str(tmp_path / "absent.pth"))
    assert sent == []


def test_a_plain_model_may_be_loaded_by_one_rank_alone(tmp_path, monkeypatch, two_ranks):
    join, sent = two_ranks
    torch.save(Model().state_dict(), tmp_path / "a.pth")
    join(1)
    monkeypatch.setattr("detectron2.utils.comm.all_gather", lambda data: pytest.fail("this would wait for rank 0"))
    DetectionCheckpointer(Model()).load(str(tmp_path / "a.pth"))
    assert sent == []


def test_a_missing_state_is_reported_when_resuming(tmp_path, log):
    model = Model()
    DetectionCheckpointer(model, str(tmp_path)).save("a")
    DetectionCheckpointer(model, str(tmp_path), optimizer=trained(model)).resume_or_load("", resume=True)
    assert any(level == "WARNING" and "'optimizer'" in message for level, message in log())


def test_a_last_checkpoint_that_was_deleted(tmp_path):
    checkpointer = DetectionCheckpointer(Model(), str(tmp_path))
    checkpointer.save("a")
    checkpointer.save("b")
    os.remove(tmp_path / "b.pth")
    with pytest.raises(FileNotFoundError, match=r"b\.pth.*holds a\.pth"):
        checkpointer.resume_or_load("", resume=True)


@pytest.mark.parametrize(("path", "hint"), [("nowhere/a.pth", "does not exist"), ("a.pth", "no checkpoint")])
def test_missing_files_are_explained(tmp_path, path, hint):
    with pytest.raises(FileNotFoundError, match=hint):
        DetectionCheckpointer(Model()).load(str(tmp_path / path))


def test_a_failing_save_leaves_the_last_checkpoint(tmp_path):
    model = Model()
    checkpointer = DetectionCheckpointer(model, str(tmp_path))
    checkpointer.save("model_final", iteration=1)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        checkpointer.save("model_final", iteration=lambda: None)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        checkpointer.save("model_2", iteration=lambda: None)
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_final.pth"]
    assert checkpointer.resume_or_load("")["iteration"] == 1


def test_saving_can_be_off(tmp_path):
    DetectionCheckpointer(Model(), str(tmp_path), save_to_disk=False).save("a")
    DetectionCheckpointer(Model()).save("a")
    assert os.listdir(tmp_path) == []


def test_names_with_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="save_dir"):
        DetectionCheckpointer(Model(), str(tmp_path)).save("sub/a")


def test_checkpointables_are_checked():
    checkpointer = DetectionCheckpointer(Model(), thing=nn.ReLU())
    with pytest.raises(KeyError):
        checkpointer.add_checkpointable("thing", nn.ReLU())
    with pytest.raises(TypeError):
        checkpointer.add_checkpointable("number", 3)


def test_periodic_checkpointer_keeps_the_last(tmp_path):
    checkpointer = DetectionCheckpointer(Model(), str(tmp_path))
    periodic = PeriodicCheckpointer(checkpointer, 2, max_iter=7, max_to_keep=2)
    for iteration in range(7):
        periodic.step(iteration)
    assert sorted(name for name in os.listdir(tmp_path) if name.endswith(".pth")) == [
        "model_0000003.pth",
        "model_0000005.pth",
        "model_final.pth",
    ]
    assert checkpointer.get_checkpoint_file().endswith("model_final.pth")


def numpy_state(model):
    return {key: value.numpy() for key, value in model.state_dict().items()}


def zoo(model):
    return {"model": numpy_state(model), "__author__": "Detectron2 Model Zoo"}


OLD_CONSTANTS = {"pixel_mean": torch.ones(3, 1, 1), "anchor_generator.cell_anchors.0": torch.ones(3, 4)}
LAYOUTS = {
    "plain": lambda m: m.state_dict(),
    "model": lambda m: {"model": m.state_dict()},
    "state_dict": lambda m: {"state_dict": m.state_dict(), "epoch": 90, "arch": "x"},
    "parallel": lambda m: {"model": {f"module.{key}": value for key, value in m.state_dict().items()}},
    "arrays": lambda m: {"model": numpy_state(m)},
    "zoo": zoo,
    "old constants": lambda m: {"model": {**m.state_dict(), **OLD_CONSTANTS}},
    "pycls": lambda m: {"model_state": m.state_dict(), "epoch": 3},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_layouts_and_containers(tmp_path, layout, kind, log):
    torch.manual_seed(3)
    model = Model()
    path = tmp_path / f"weights.{'pkl' if kind == 'pickle' else 'pth'}"
    content = LAYOUTS[layout](model)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    other = Model()
    DetectionCheckpointer(other).load(str(path))
    assert same(model, other)
    assert float(other.pixel_mean.sum()) == 0
    assert [message for level, message in log() if level == "WARNING"] == []


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol(tmp_path, protocol):
    model = Model()
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(zoo(model), protocol=protocol))
    other = Model()
    DetectionCheckpointer(other).load(str(path))
    assert same(model, other)


def test_the_name_of_a_file_does_not_decide(tmp_path):
    model = Model()
    torch.save(model.state_dict(), tmp_path / "a.pkl")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(zoo(model)))
    for name in ("a.pkl", "b.pth"):
        other = Model()
        DetectionCheckpointer(other).load(str(tmp_path / name))
        assert same(model, other)


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="the package safetensors is not installed")
    model, other = Model(), Model()
    safetensors.save_file(model.state_dict(), tmp_path / "weights.safetensors")
    DetectionCheckpointer(other).load(str(tmp_path / "weights.safetensors"))
    assert same(model, other)
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(ValueError, match=r"cut\.safetensors"):
        DetectionCheckpointer(other).load(str(tmp_path / "cut.safetensors"))


def test_a_wrapped_model_is_saved_without_its_wrapper(tmp_path):
    model = nn.DataParallel(Model())
    DetectionCheckpointer(model, str(tmp_path)).save("a")
    saved = torch.load(tmp_path / "a.pth", weights_only=True)["model"]
    assert set(saved) == set(Model().state_dict())


class Residual(nn.Module):
    """A block with the names of ours."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 1, bias=False)
        self.conv1.norm = nn.BatchNorm2d(4)
        self.shortcut = nn.Conv2d(4, 4, 1, bias=False)
        self.shortcut.norm = nn.BatchNorm2d(4)


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        stem = nn.Module()
        stem.conv1 = nn.Conv2d(3, 4, 7, bias=False)
        stem.conv1.norm = nn.BatchNorm2d(4)
        self.backbone = nn.Module()
        self.backbone.bottom_up = nn.Module()
        self.backbone.bottom_up.stem = stem
        self.backbone.bottom_up.res2 = nn.Sequential(Residual())
        self.head = nn.Linear(4, 2)


def caffe2_blobs():
    generator = np.random.default_rng(0)
    blobs = {
        "conv1_w": generator.random((4, 3, 7, 7), dtype=np.float32),
        "res_conv1_bn_s": generator.random(4, dtype=np.float32),
        "res_conv1_bn_b": generator.random(4, dtype=np.float32),
        "res2_0_branch1_w": generator.random((4, 4, 1, 1), dtype=np.float32),
        "res2_0_branch2a_w": generator.random((4, 4, 1, 1), dtype=np.float32),
        **{
            f"res2_0_branch{branch}_bn_{letter}": generator.random(4, dtype=np.float32)
            for branch in ("1", "2a")
            for letter in "sb"
        },
        "fc1000_w": generator.random((10, 4), dtype=np.float32),
        "conv1_w_momentum": np.zeros(1, np.float32),
    }
    return blobs


@pytest.mark.parametrize("wrapped", [False, True])
def test_caffe2_backbones(tmp_path, wrapped, log):
    blobs = caffe2_blobs()
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs} if wrapped else blobs, protocol=2))
    model = Detector()
    DetectionCheckpointer(model, optimizer=nn.ReLU()).load(str(path))
    bottom_up = model.backbone.bottom_up
    np.testing.assert_array_equal(bottom_up.stem.conv1.weight.detach().numpy(), blobs["conv1_w"])
    np.testing.assert_array_equal(bottom_up.stem.conv1.norm.weight.detach().numpy(), blobs["res_conv1_bn_s"])
    np.testing.assert_array_equal(bottom_up.res2[0].shortcut.weight.detach().numpy(), blobs["res2_0_branch1_w"])
    # the head is missing on purpose, which is no reason for a warning
    assert {level for level, _ in log()} == {"INFO"}
    assert any("fc1000" in message and "head" in message for _, message in log())


def torchvision_names():
    generator = torch.Generator().manual_seed(0)
    return {
        "conv1.weight": torch.rand(4, 3, 7, 7, generator=generator),
        "bn1.weight": torch.rand(4, generator=generator),
        "bn1.running_mean": torch.rand(4, generator=generator),
        "bn1.num_batches_tracked": torch.tensor(5),
        "layer1.0.conv1.weight": torch.rand(4, 4, 1, 1, generator=generator),
        "layer1.0.bn1.weight": torch.rand(4, generator=generator),
        "layer1.0.downsample.0.weight": torch.rand(4, 4, 1, 1, generator=generator),
        "layer1.0.downsample.1.bias": torch.rand(4, generator=generator),
        "fc.weight": torch.rand(10, 4, generator=generator),
    }


@pytest.mark.parametrize("prefix", ["", "module.", "module.encoder_q."])
def test_torchvision_backbones(tmp_path, prefix, log):
    weights = torchvision_names()
    content = {prefix + key: value for key, value in weights.items()}
    if prefix:
        content = {"state_dict": {**content, "module.queue": torch.zeros(2)}}
    torch.save(content, tmp_path / "r50.pth")
    model = Detector()
    DetectionCheckpointer(model).load(str(tmp_path / "r50.pth"))
    bottom_up = model.backbone.bottom_up
    assert torch.equal(bottom_up.stem.conv1.weight, weights["conv1.weight"])
    assert torch.equal(bottom_up.stem.conv1.norm.running_mean, weights["bn1.running_mean"])
    assert torch.equal(bottom_up.res2[0].conv1.norm.weight, weights["layer1.0.bn1.weight"])
    assert torch.equal(bottom_up.res2[0].shortcut.norm.bias, weights["layer1.0.downsample.1.bias"])
    assert any("RGB" in message for level, message in log() if level == "WARNING")


def test_a_model_that_uses_torchvision_names_is_left_alone(tmp_path, log):
    model = nn.Module()
    model.layer1 = nn.Sequential(Residual())
    weights = {**torchvision_names(), **model.state_dict()}
    weights["layer1.0.conv1.weight"] = torch.ones(4, 4, 1, 1)
    torch.save(weights, tmp_path / "a.pth")
    DetectionCheckpointer(model).load(str(tmp_path / "a.pth"))
    assert float(model.layer1[0].conv1.weight.detach().sum()) == 16


def test_matching_heuristics_by_query(tmp_path, log):
    model = Detector()
    part = {key.removeprefix("backbone.bottom_up."): value for key, value in model.backbone.state_dict().items()}
    part = {key.removeprefix("bottom_up."): value + 1 for key, value in part.items()}
    path = str(tmp_path / "part.pth")
    torch.save(part, path)
    DetectionCheckpointer(model).load(path + "?matching_heuristics=True")
    assert torch.equal(model.backbone.bottom_up.stem.conv1.weight, part["stem.conv1.weight"])
    with pytest.raises(
        ValueError, match=r"without the prefix 'backbone.bottom_up.'.*part\.pth\?matching_heuristics=True,"
    ):
        DetectionCheckpointer(model).load(path + "?matching_heuristics=False")
    with pytest.raises(ValueError, match="only"):
        DetectionCheckpointer(model).load(path + "?matching_heuristics=True&x=1")


def test_a_question_mark_in_a_name(tmp_path):
    path = str(tmp_path / "what?.pth")
    torch.save(Model().state_dict(), path)
    DetectionCheckpointer(Model()).load(path)


def test_other_classes_are_information(tmp_path, log):
    DetectionCheckpointer(Model(classes=80), str(tmp_path)).save("a")
    model = Model(classes=3)
    DetectionCheckpointer(model).load(str(tmp_path / "a.pth"))
    assert {level for level, _ in log()} == {"INFO"}
    (summary,) = [message for _, message in log() if "of the model" in message]
    assert "box_predictor.cls_score.weight" in summary
    assert "(81, 8) in the file, (4, 8) in the model" in summary


def test_other_shapes_elsewhere_are_a_loud_warning(tmp_path, log):
    source = Model()
    state = source.state_dict()
    state["backbone.0.weight"] = torch.zeros(8, 3, 5, 5)
    torch.save(state, tmp_path / "a.pth")
    DetectionCheckpointer(Model()).load(str(tmp_path / "a.pth"))
    (warning,) = [message for level, message in log() if level == "WARNING"]
    assert "backbone.0.weight" in warning
    assert "random" in warning


def test_missing_and_unexpected_weights_are_listed(tmp_path, log):
    state = Model().state_dict()
    del state["backbone.1.weight"], state["backbone.1.bias"]
    state["extra.scale"] = torch.ones(1)
    torch.save(state, tmp_path / "a.pth")
    DetectionCheckpointer(Model()).load(str(tmp_path / "a.pth"))
    (warning,) = [message for level, message in log() if level == "WARNING"]
    assert "backbone.1.{bias, weight}" in warning
    assert "extra.scale" in warning


@pytest.mark.parametrize("ending", ["pth", "pkl", "safetensors"])
@pytest.mark.parametrize(
    ("prefixes", "fits"),
    [
        (["modelTeacher."], "all 9 tensors fit without 'modelTeacher.'"),
        (["model.teacher.module."], "all 9 tensors fit without 'model.teacher.module.'"),
        (
            ["modelStudent.", "modelTeacher."],
            "9 of its 18 tensors fit without 'modelStudent.' and 9 of its 18 tensors fit without 'modelTeacher.'",
        ),
    ],
)
def test_a_prefix_of_another_program_is_named_and_can_be_taken_off(tmp_path, monkeypatch, ending, prefixes, fits):
    monkeypatch.chdir(tmp_path)
    teacher = Model()
    weights = {prefix + key: value.clone() for prefix in prefixes for key, value in teacher.state_dict().items()}
    path = f"old.{ending}"
    if ending == "safetensors":
        pytest.importorskip("safetensors.torch").save_file(weights, path)
    elif ending == "pkl":
        Path(path).write_bytes(pickle.dumps({"model": {key: value.numpy() for key, value in weights.items()}}))
    else:
        torch.save({"model": weights}, path)
    model = Model()
    with pytest.raises(ValueError, match="has prefixes in front of this model's names") as error:
        DetectionCheckpointer(model).load(path)
    message = str(error.value)
    assert fits in message
    exec(message[message.index("import torch") :], {})
    DetectionCheckpointer(model).load("old_without_prefix.pth")
    assert same(model, teacher)


def test_a_prefix_that_only_the_model_has(tmp_path):
    teacher, model = Model(), nn.ModuleDict({"student": Model()})
    path = str(tmp_path / "a.pth")
    torch.save({"model": teacher.state_dict()}, path)
    with pytest.raises(
        ValueError, match=r"without the prefix 'student\.' of this model's: 9 of its 9 tensors fit with it"
    ):
        DetectionCheckpointer(model).load(path)
    DetectionCheckpointer(model).load(path + "?matching_heuristics=True")
    assert same(model["student"], teacher)


def test_a_model_of_another_size_is_told_from_another_architecture(tmp_path):
    path = str(tmp_path / "a.pth")
    weights = {key: torch.zeros(*value.shape, 2) for key, value in Model().state_dict().items()}
    torch.save({"model": weights}, path)
    with pytest.raises(ValueError, match=r"another size: 9 of its 9 tensors .* backbone\.0\.weight: \(.*, 2\) in the"):
        DetectionCheckpointer(Model()).load(path)


def test_another_architecture_is_refused_and_changes_nothing(tmp_path):
    torch.save({"encoder.weight": torch.zeros(5), "decoder.weight": torch.zeros(7)}, tmp_path / "a.pth")
    model, twin = Model(), Model()
    twin.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match=r"another architecture.*encoder\.weight.*backbone\.0\.weight.*MODEL\.WEIGHTS"):
        DetectionCheckpointer(model).load(str(tmp_path / "a.pth"))
    assert same(model, twin)


def test_shared_weights_need_one_name_only(tmp_path, log):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 2)
            self.b = self.a

    state = {key: value for key, value in Tied().state_dict().items() if key.startswith("a.")}
    torch.save(state, tmp_path / "a.pth")
    DetectionCheckpointer(Tied()).load(str(tmp_path / "a.pth"))
    assert any("100.0% of the model" in message for _, message in log())


WRAPPED = {
    "parallel": lambda name: f"module.{name}",
    "lightning": lambda name: f"model.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "several": lambda name: f"module._orig_mod.model.{name}",
    "compiled part": lambda name: name.replace("backbone.", "backbone._orig_mod."),
    "sharded part": lambda name: name.replace("backbone.", "backbone._fsdp_wrapped_module."),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_prefixes_of_wrappers_do_not_matter(tmp_path, kind, log):
    model, other = Model(), Model()
    state = {WRAPPED[kind](name): value for name, value in model.state_dict().items()}
    torch.save({"state_dict": {**state, "criterion.weight": torch.ones(3)}, "epoch": 1}, tmp_path / "a.pth")
    DetectionCheckpointer(other).load(str(tmp_path / "a.pth"))
    assert same(model, other)
    assert any("criterion.weight" in message for level, message in log() if level == "WARNING")


def test_the_wrapper_may_be_around_the_model(tmp_path, log):
    model = Model()
    torch.save(model.state_dict(), tmp_path / "a.pth")
    shell = nn.Module()
    shell.model = Model()  # as a training framework keeps it
    DetectionCheckpointer(shell).load(str(tmp_path / "a.pth"))
    assert same(model, shell.model)
    assert any("100.0% of the model" in message for _, message in log())


def test_a_prefix_that_belongs_to_the_names_stays(tmp_path, log):
    """Student and teacher: a model with both is loaded with both."""

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.Linear(2, 2)
            self.net = nn.Linear(2, 2)

    pair, other = Pair(), Pair()
    torch.save(pair.state_dict(), tmp_path / "a.pth")
    DetectionCheckpointer(other).load(str(tmp_path / "a.pth"))
    assert same(pair, other)
    # names that would collide without their prefix are left alone
    torch.save({**pair.state_dict(), "module.net.weight": torch.zeros(2, 2)}, tmp_path / "b.pth")
    DetectionCheckpointer(other).load(str(tmp_path / "b.pth"))
    assert same(pair, other)


def test_versions_of_modules_survive_the_removal_of_a_prefix(tmp_path):
    """An old frozen batch norm stored its variance without eps: its version must reach the module."""
    from detectron2.layers import FrozenBatchNorm2d

    model = nn.Sequential(FrozenBatchNorm2d(2))
    state = nn.ModuleDict({"model": model}).state_dict()
    state["model.0.running_var"] = torch.ones(2)
    state._metadata["model.0"]["version"] = 2
    torch.save({"model": state}, tmp_path / "a.pth")
    DetectionCheckpointer(model).load(str(tmp_path / "a.pth"))
    assert torch.equal(model[0].running_var, torch.ones(2) - 1e-5)


def test_compiled_models_are_saved_and_loaded_without_their_wrapper(tmp_path):
    model = Model()
    compiled = torch.compile(model, backend="eager")
    DetectionCheckpointer(compiled, str(tmp_path)).save("a")
    assert set(torch.load(tmp_path / "a.pth", weights_only=True)["model"]) == set(model.state_dict())
    other = Model()
    DetectionCheckpointer(torch.compile(other, backend="eager")).load(str(tmp_path / "a.pth"))
    assert same(model, other)


def test_backbones_with_a_wrapper_find_their_place_by_their_ends(tmp_path, log):
    model = Detector()
    part = {f"model.{key}": value + 1 for key, value in model.backbone.bottom_up.state_dict().items()}
    torch.save(part, tmp_path / "a.pth")
    DetectionCheckpointer(model).load(str(tmp_path / "a.pth") + "?matching_heuristics=True")
    assert torch.equal(model.backbone.bottom_up.stem.conv1.weight, part["model.stem.conv1.weight"])


def test_a_backbone_of_another_depth_is_a_warning(tmp_path, log):
    """The heads may be missing in the file of a backbone; its own blocks may not."""
    model = Detector()
    part = {key: value + 1 for key, value in model.backbone.bottom_up.state_dict().items()}
    torch.save(part, tmp_path / "a.pth")
    model.backbone.bottom_up.res2.append(Residual())
    DetectionCheckpointer(model).load(str(tmp_path / "a.pth") + "?matching_heuristics=True")
    (warning,) = [message for level, message in log() if level == "WARNING"]
    assert "backbone.bottom_up.res2.1.conv1.weight | keeps its initialization" in " ".join(warning.split())
    assert "| head | 2 tensors, not expected |" in " ".join(warning.split())


def test_caffe2_weights_of_other_classes_are_information(tmp_path, log):
    model = nn.Module()
    model.roi_heads = nn.Module()
    model.roi_heads.box_predictor = nn.ModuleDict({"cls_score": nn.Linear(6, 4), "bbox_pred": nn.Linear(6, 12)})
    model.roi_heads.box_head = nn.ModuleDict({"fc1": nn.Linear(5, 6)})
    ones = {"cls_score_w": (81, 6), "cls_score_b": (81,), "bbox_pred_w": (324, 6), "bbox_pred_b": (324,)}
    blobs = {name: np.ones(shape, np.float32) for name, shape in {**ones, "fc6_w": (6, 5), "fc6_b": (6,)}.items()}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    DetectionCheckpointer(model).load(str(tmp_path / "a.pkl"))
    assert float(model.roi_heads.box_head.fc1.weight.detach().sum()) == 30
    assert {level for level, _ in log()} == {"INFO"}
    assert any("(320, 6) in the file, (12, 6) in the model" in message for _, message in log())


def test_unused_weights_are_a_warning(tmp_path, log):
    torch.save({**Model().state_dict(), "mask_head.weight": torch.ones(2)}, tmp_path / "a.pth")
    DetectionCheckpointer(Model()).load(str(tmp_path / "a.pth"))
    (warning,) = [message for level, message in log() if level == "WARNING"]
    assert "NOT ALL WAS USED" in warning and "mask_head.weight" in warning


def test_the_table_counts_what_was_loaded_by_parts(tmp_path, log):
    state = Model().state_dict()
    del state["backbone.1.weight"]
    torch.save(state, tmp_path / "a.pth")
    DetectionCheckpointer(Model()).load(str(tmp_path / "a.pth"))
    (warning,) = [message for level, message in log() if level == "WARNING"]
    lines = [" ".join(line.split()) for line in warning.splitlines()]
    assert "| loaded | backbone | 5 of 6 tensors |" in lines
    assert "| loaded | box_predictor | 2 of 2 tensors |" in lines
    assert "| not in the file | backbone.1.weight | keeps its initialization |" in lines


# ----------------------------------------------------------------------------------------------------------- inference


def test_inference_takes_a_whole_model(tmp_path, log):
    model, other = Model(), Model()
    optimizer = trained(other)
    DetectionCheckpointer(model, str(tmp_path), optimizer=trained(Model())).save("a", iteration=4)
    checkpointer = DetectionCheckpointer(other, optimizer=optimizer)
    assert checkpointer.load_for_inference(str(tmp_path / "a.pth"))["iteration"] == 4
    assert same(model, other)
    assert [message for level, message in log() if level == "WARNING"] == []


def test_inference_without_weights_is_a_warning(log):
    assert DetectionCheckpointer(Model()).load_for_inference("") == {}
    assert [level for level, _ in log()] == ["WARNING"]


def test_inference_after_training(tmp_path):
    model = Model()
    DetectionCheckpointer(model, str(tmp_path)).save("a")
    torch.save(Model().state_dict(), tmp_path / "other.pth")
    for resume in (False, True):
        loaded = Model()
        DetectionCheckpointer(loaded, str(tmp_path)).load_for_inference(str(tmp_path / "other.pth"), resume=resume)
        assert same(model, loaded) == resume
    loaded = Model()
    DetectionCheckpointer(loaded, str(tmp_path / "x")).load_for_inference(str(tmp_path / "a.pth"), resume=True)
    assert same(model, loaded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("backbone.1.bias"), r"predicts noise.*backbone\.1\.bias"),
        (lambda state: state.update({"backbone.0.weight": torch.zeros(8, 3, 5, 5)}), r"\(8, 3, 5, 5\) in the file"),
        (
            lambda state: state.update(
                {
                    "box_predictor.cls_score.weight": torch.zeros(81, 8),
                    "box_predictor.cls_score.bias": torch.zeros(81),
                }
            ),
            r"other classes: 80, not 3 .*NUM_CLASSES",
        ),
    ],
)
def test_inference_with_a_part_of_the_weights_is_an_error(tmp_path, change, message, log):
    state = Model().state_dict()
    change(state)
    torch.save(state, tmp_path / "a.pth")
    checkpointer = DetectionCheckpointer(Model())
    with pytest.raises(ValueError, match=f"(?s){message}"):
        checkpointer.load_for_inference(str(tmp_path / "a.pth"))
    checkpointer.load(str(tmp_path / "a.pth"))  # for training it is not


def test_inference_with_a_backbone_is_an_error(tmp_path):
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps(caffe2_blobs(), protocol=2))
    with pytest.raises(ValueError, match=r"(?s)to start training from.*head +\| 2 tensors"):
        DetectionCheckpointer(Detector()).load_for_inference(str(path))


# ----------------------------------------------------------------------------------------------------------- downloads


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder that a web server on this machine shows in the place of the published weights."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("DETECTRON2_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DETECTRON2_OFFLINE", raising=False)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, format, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.02,))
        thread.start()
        monkeypatch.setattr(Detectron2Handler, "S3_DETECTRON2_PREFIX", f"http://127.0.0.1:{httpd.server_port}/")
        monkeypatch.setattr(ModelCatalog, "S3_C2_DETECTRON_PREFIX", f"http://127.0.0.1:{httpd.server_port}")
        yield folder
        httpd.shutdown()
        thread.join()


def test_published_weights_are_downloaded(server, monkeypatch):
    model = Model()
    (server / "zoo").mkdir()
    (server / "zoo" / "a.pkl").write_bytes(pickle.dumps(zoo(model)))
    for offline in ("0", "1"):  # from the cache the second time
        monkeypatch.setenv("DETECTRON2_OFFLINE", offline)
        other = Model()
        DetectionCheckpointer(other).load("detectron2://zoo/a.pkl?matching_heuristics=True")
        assert same(model, other)


def test_catalog_weights_are_downloaded(server):
    (server / "ImageNetPretrained" / "MSRA").mkdir(parents=True)
    (server / "ImageNetPretrained" / "MSRA" / "R-50.pkl").write_bytes(pickle.dumps(caffe2_blobs(), protocol=2))
    model = Detector()
    assert PathManager.exists("catalog://ImageNetPretrained/MSRA/R-50")
    DetectionCheckpointer(model).load("catalog://ImageNetPretrained/MSRA/R-50")
    np.testing.assert_array_equal(
        model.backbone.bottom_up.stem.conv1.weight.detach().numpy(), caffe2_blobs()["conv1_w"]
    )


def test_names_that_are_not_published_get_the_nearest(server):
    with pytest.raises(OSError, match=r"404.*R-49\.pkl.*nearest.*detectron2://ImageNetPretrained/MSRA/R-50\.pkl"):
        DetectionCheckpointer(Model()).load("detectron2://ImageNetPretrained/MSRA/R-49.pkl")


def test_offline_is_not_about_names(server, monkeypatch):
    monkeypatch.setenv("DETECTRON2_OFFLINE", "1")
    with pytest.raises(DownloadError, match="DETECTRON2_OFFLINE") as caught:
        DetectionCheckpointer(Model()).load("detectron2://ImageNetPretrained/MSRA/R-49.pkl")
    assert "nearest" not in str(caught.value)


def test_the_old_protocol_of_subclasses(tmp_path):
    """The hooks that other projects override are called, and may return nothing."""

    class Mine(DetectionCheckpointer):
        def _load_file(self, filename):
            loaded = super()._load_file(filename)
            loaded["model"] = {key.removeprefix("old."): value for key, value in loaded["model"].items()}
            return loaded

        def _torch_load(self, f):
            seen.append(f)
            return super()._torch_load(f)

        def _load_model(self, checkpoint):
            super()._load_model(checkpoint)

    seen = []
    model, other = Model(), Model()
    path = str(tmp_path / "a.pth")
    torch.save({f"old.{key}": value for key, value in model.state_dict().items()}, path)
    assert Mine(other).load(path) == {}
    assert same(model, other)
    assert seen == [path]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({}, "holds no weights"),
        ({"epoch": 3, "lr": 0.1}, "'epoch'"),
        ({"model": OrderedDict(a=torch.ones(1))}, "another architecture"),
        ({"model": {"a": "text"}}, "a"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path, content, message):
    for path, save in (
        (tmp_path / "a.pth", torch.save),
        (tmp_path / "a.pkl", lambda c, p: p.write_bytes(pickle.dumps(c))),
    ):
        save(content, path)
        with pytest.raises(ValueError, match=message):
            DetectionCheckpointer(Model()).load(str(path))


@pytest.mark.parametrize("name", ["a.pth", "a.pkl"])
@pytest.mark.parametrize("keep", [0, 1, 300, -50])
def test_cut_off_files(tmp_path, name, keep):
    path = tmp_path / name
    if name == "a.pth":
        torch.save(Model().state_dict(), path)
    else:
        path.write_bytes(pickle.dumps(zoo(Model())))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"not a readable checkpoint.*cut off"):
        DetectionCheckpointer(Model()).load(str(path))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x01model", b"model\x00.pth", b"\x1b[2Jmodel.pth", b"a.pth\nb.pth"])
def test_a_damaged_file_last_checkpoint(tmp_path, content):
    keeper = DetectionCheckpointer(torch.nn.Linear(1, 1), str(tmp_path))
    keeper.save("model_0000003")
    (tmp_path / "last_checkpoint").write_bytes(content)
    for read in (keeper.get_checkpoint_file, lambda: keeper.resume_or_load("", resume=True)):
        with pytest.raises(ValueError, match=r"last_checkpoint is damaged: .*the newest are model_0000003\.pth"):
            read()
    (tmp_path / "last_checkpoint").write_bytes(b"model_0000003.pth\r\n")
    keeper.resume_or_load("", resume=True)


def test_a_full_disk_is_named_with_what_a_checkpoint_needs(tmp_path, monkeypatch):
    def full(data, file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    keeper = DetectionCheckpointer(torch.nn.Linear(1000, 1000), str(tmp_path))
    with pytest.raises(OSError, match=r"model_0000003\.pth cannot be written, .* free at .* and 4\.0 MB are needed"):
        keeper.save("model_0000003")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "state", [None, [1], "text", 5, {"param_groups": None, "state": {}}, {"param_groups": [], "state": {}}]
)
def test_a_state_that_makes_no_sense_is_refused(tmp_path, state):
    model = nn.Linear(2, 2)
    torch.save({"model": model.state_dict(), "optimizer": state}, tmp_path / "m.pth")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(OtherModelError, match=r"The state of 'optimizer' in .*m\.pth does not fit this training"):
        DetectionCheckpointer(model, optimizer=optimizer).load(str(tmp_path / "m.pth"))
