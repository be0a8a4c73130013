"""Checkpoints in parts, with one process; `tests/e2e/test_sharded_checkpoints.py` has several."""

import errno
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from detectron2.checkpoint import DetectionCheckpointer, read_description
from detectron2.checkpoint.parts import (
    is_parts_folder,
    read_parts,
    remove_checkpoint,
    remove_unfinished,
    separate_parts,
    write_parts,
)
from detectron2.utils.file_io import PathManager
from detectron2.utils.safe_pickle import UnsafePickleError


@pytest.fixture(scope="module")
def mesh():
    """The mesh of a process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.fixture
def split(mesh):
    return lambda tensor: distribute_tensor(tensor, mesh, [Shard(0)])


def save(folder, data, **options):
    parts, rest = separate_parts(data)
    write_parts(str(folder), parts, rest, dist.group.WORLD, PathManager, **options)


def contents(split):
    weights = OrderedDict(weight=split(torch.arange(6.0).reshape(3, 2)), bias=torch.ones(2))
    weights._metadata = OrderedDict({"": {"version": 2}})
    state = {"state": {0: {"momentum_buffer": split(torch.full((3, 2), 7.0)), "step": torch.tensor(4)}}}
    return {"model": weights, "trainer": {"optimizer": state, "list": [1, (2, "x")]}, "iteration": 9}


def test_nothing_to_separate():
    assert separate_parts({}) == ({}, {})
    assert separate_parts({"a": [1, {"b": (None, "c")}]}) == ({}, {"a": [1, {"b": (None, "c")}]})


def test_no_folder_of_parts(tmp_path):
    assert not is_parts_folder(str(tmp_path)) and not is_parts_folder(str(tmp_path / "x"))
    (tmp_path / "config.yaml").touch()
    remove_unfinished(str(tmp_path))
    assert os.listdir(tmp_path) == ["config.yaml"]


def test_copies_do_not_change_with_training(split):
    tied, array = torch.zeros(2), np.zeros(2)
    data = {"a": tied, "b": tied, "c": split(torch.zeros(2)), "d": array, "e": [1]}
    parts, rest = separate_parts(data, copies=True)
    for value in (tied, data["c"].to_local(), array):
        value += 1
    data["e"].append(2)
    assert parts["c"].to_local().tolist() == rest["a"].tolist() == rest["d"].tolist() == [0, 0] and rest["e"] == [1]
    assert rest["a"].data_ptr() == rest["b"].data_ptr()


def test_what_is_written_is_read(split, tmp_path):
    finished = []
    folder = tmp_path / "x.sharded"
    save(folder, contents(split), finish=lambda: finished.append(is_parts_folder(folder)))
    assert finished == [True] and os.listdir(tmp_path) == ["x.sharded"]
    found = read_parts(str(tmp_path / "x.sharded"))
    assert found["model"]["weight"].tolist() == [[0, 1], [2, 3], [4, 5]] and found["model"]["bias"].tolist() == [1, 1]
    assert type(found["model"]["weight"]) is torch.Tensor and found["model"]._metadata == {"": {"version": 2}}
    assert found["trainer"]["optimizer"]["state"][0]["momentum_buffer"].tolist() == [[7, 7]] * 3
    assert found["trainer"]["list"] == [1, (2, "x")] and found["iteration"] == 9
    weights_only = read_parts(str(tmp_path / "x.sharded"), with_state=False)
    assert weights_only.keys() == {"model", "iteration"}


def test_targets_are_filled(split, tmp_path):
    save(tmp_path / "x.sharded", contents(split))
    target, asked = split(torch.zeros(3, 2)), []

    def choose(path, size):
        asked.append((path, tuple(size)))
        return target if path == ("model", "weight") else None

    found = read_parts(str(tmp_path / "x.sharded"), choose)
    assert found["model"]["weight"] is target and target.full_tensor().tolist() == [[0, 1], [2, 3], [4, 5]]
    momentum = ("trainer", "optimizer", "state", 0, "momentum_buffer")
    assert asked == [(("model", "weight"), (3, 2)), (momentum, (3, 2))]


def test_a_checkpoint_of_that_name_is_replaced(split, tmp_path):
    for value in (1, 2):
        save(tmp_path / "x.sharded", {"model": {"weight": split(torch.full((2,), float(value)))}})
    assert os.listdir(tmp_path) == ["x.sharded"]
    assert read_parts(str(tmp_path / "x.sharded"))["model"]["weight"].tolist() == [2, 2]


def test_leftovers_of_a_killed_process(split, tmp_path):
    save(tmp_path / "x.sharded", contents(split))
    (tmp_path / "x.sharded").rename(tmp_path / "x.sharded.old")
    (tmp_path / "y.sharded.tmp").mkdir()
    remove_unfinished(str(tmp_path))
    assert os.listdir(tmp_path) == ["x.sharded"]
    remove_checkpoint(str(tmp_path / "x.sharded"))
    assert os.listdir(tmp_path) == []


def test_one_that_fails_leaves_no_name(split, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("the disk is full")

    monkeypatch.setattr("detectron2.checkpoint.parts.save_tensors", fail)
    with pytest.raises(OSError, match="the disk is full"):
        save(tmp_path / "x.sharded", contents(split))
    assert os.listdir(tmp_path) == ["x.sharded.tmp"]


def test_a_part_that_cannot_be_written(split, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr("torch.distributed.checkpoint.FileSystemWriter.write_data", fail)
    with pytest.raises(OSError, match="cannot be written") as info:
        save(tmp_path / "x.sharded", contents(split))
    assert info.value.errno == errno.ENOSPC and "disk" in str(info.value)
    monkeypatch.setattr("torch.distributed.checkpoint.FileSystemWriter.write_data", lambda *args: 1 / 0)
    with pytest.raises(OSError, match="cannot be written: ZeroDivisionError on rank 0: division by zero"):
        save(tmp_path / "x.sharded", contents(split))
    assert os.listdir(tmp_path) == ["x.sharded.tmp"]


def test_damage(split, tmp_path):
    folder = tmp_path / "x.sharded"
    save(folder, contents(split))
    data = next(folder.glob("*.distcp"))
    data.rename(folder / "elsewhere")
    with pytest.raises(ValueError, match=r"not a readable checkpoint: .* copy the whole folder once more"):
        read_parts(str(folder))
    (folder / ".metadata").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match="copy the whole folder once more"):
        read_parts(str(folder))


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hostile",)


def test_code_in_the_table_of_contents_is_refused(split, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "x.sharded", contents(split))
    table = tmp_path / "x.sharded" / ".metadata"
    good = pickle.loads(table.read_bytes())
    table.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(UnsafePickleError, match=r"asks for (posix|nt)\.mkdir"):
        read_parts(str(tmp_path / "x.sharded"))
    assert not (tmp_path / "hostile").exists()
    for entry in good.storage_data.values():
        entry.relative_path = "../elsewhere"
    table.write_bytes(pickle.dumps(good))
    with pytest.raises(UnsafePickleError, match=r"names the file '\.\./elsewhere'"):
        read_parts(str(tmp_path / "x.sharded"))


def test_the_usual_checkpointer_reads_it(split, tmp_path):
    model = torch.nn.Linear(2, 3)
    weights = {name: split(torch.full_like(value, 5.0)) for name, value in model.state_dict().items()}
    save(tmp_path / "model_0000007.sharded", {"model": weights, "iteration": 7, "description": {"iteration": 7}})
    keeper = DetectionCheckpointer(model, str(tmp_path))
    keeper.tag_last_checkpoint("model_0000007.sharded")
    assert keeper.load_for_inference(str(tmp_path / "model_0000007.sharded"))["iteration"] == 7
    assert model.weight.unique().tolist() == model.bias.unique().tolist() == [5]
    assert keeper.resume_or_load("")["iteration"] == 7
    assert keeper.get_all_checkpoint_files() == [str(tmp_path / "model_0000007.sharded")]
    assert read_description(str(tmp_path / "model_0000007.sharded")).iteration == 7
    keeper.file_name = lambda name: f"{name}.sharded"
    keeper.describe = lambda: {"iteration": 8}
    keeper.describe_again("model_0000007")
    assert read_description(str(tmp_path / "model_0000007.sharded")).iteration == 8
