"""Checkpoints in two files: every format of tensor, and no moment at which they do not belong together."""

import builtins
import json
import logging
import os
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer, detection_checkpoint
from detectron2.checkpoint.training_state import remove_orphans, state_file

safe_open = pytest.importorskip("safetensors", reason="the package safetensors is not installed").safe_open


def keeper(folder, model=None, **state):
    model = model or nn.Linear(2, 1)
    checkpointer = DetectionCheckpointer(model, str(folder), **state)
    checkpointer.file_format = "safetensors"
    return checkpointer


def training(folder, value=0.0):
    """Return (checkpointer, model, optimizer), all numbers of which are the value."""
    model = nn.Linear(2, 1)
    nn.init.constant_(model.weight, value)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    optimizer.state[model.weight]["momentum_buffer"] = torch.full((1, 2), value)
    return keeper(folder, model, optimizer=optimizer), model, optimizer


def names(folder):
    return sorted(os.listdir(folder))


class TestTwoFiles:
    def test_weights_alone(self, tmp_path):
        keeper(tmp_path).save("a", iteration=3, best=0.5, kind="x", nothing=None)
        assert names(tmp_path) == ["a.safetensors", "last_checkpoint"]
        assert keeper(tmp_path).load(str(tmp_path / "a.safetensors")) == {
            "iteration": 3,
            "best": 0.5,
            "kind": "x",
            "nothing": None,
        }

    def test_everything_comes_back(self, tmp_path):
        first, model, _ = training(tmp_path, 3.0)
        first.save("model_0000004", iteration=4, shape=(1, 2), table=np.eye(2), nan=float("nan"))
        assert names(tmp_path) == ["last_checkpoint", "model_0000004.safetensors", "model_0000004.state.pt"]
        assert first.get_checkpoint_file() == str(tmp_path / "model_0000004.safetensors")
        assert first.get_all_checkpoint_files() == [first.get_checkpoint_file()]
        second, other, optimizer = training(tmp_path)
        rest = second.resume_or_load("ignored", resume=True)
        assert torch.equal(other.weight, model.weight)
        assert torch.equal(optimizer.state[other.weight]["momentum_buffer"], torch.full((1, 2), 3.0))
        np.testing.assert_array_equal(rest.pop("table"), np.eye(2))
        assert np.isnan(rest.pop("nan"))
        assert rest == {"iteration": 4, "shape": (1, 2)}

    def test_without_the_second_file(self, tmp_path):
        first, model, _ = training(tmp_path, 3.0)
        first.save("a", iteration=4, shape=(1, 2))
        os.remove(tmp_path / "a.state.pt")
        fresh = keeper(tmp_path)
        assert fresh.load(str(tmp_path / "a.safetensors")) == {"iteration": 4}
        assert fresh.load_for_inference(str(tmp_path / "a.safetensors")) == {"iteration": 4}
        assert torch.equal(fresh.model.weight, model.weight)
        second, _, _ = training(tmp_path)
        assert second.load(str(tmp_path / "a.safetensors"), checkpointables=[]) == {"iteration": 4}
        with pytest.raises(FileNotFoundError, match=r"has weights alone: a\.state\.pt, .* is not beside it"):
            second.resume_or_load("", resume=True)

    def test_files_of_two_trainings(self, tmp_path):
        for folder in ("x", "y"):
            (tmp_path / folder).mkdir()
            training(tmp_path / folder)[0].save("a", iteration=4)
        shutil.copy(tmp_path / "x" / "a.state.pt", tmp_path / "y")
        with pytest.raises(ValueError, match="files of two trainings got mixed"):
            training(tmp_path / "y")[0].resume_or_load("", resume=True)

    @pytest.mark.parametrize("name", ["../a.state.pt", "/etc/passwd", "a.pth", 3])
    def test_a_name_that_leads_elsewhere(self, tmp_path, name):
        path = str(tmp_path / "a.safetensors")
        first = training(tmp_path)[0]
        header = json.dumps({"__metadata__": {"training_state": name}}).encode()
        (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(ValueError, match=r"not the name of such a file|not a readable checkpoint"):
            first.load(path)
        with pytest.raises(ValueError, match="not the name of such a file"):
            state_file(path)

    def test_saved_again_under_the_same_name(self, tmp_path):
        for value, state in ((1.0, "a.state.pt"), (2.0, "a.state2.pt"), (3.0, "a.state.pt")):
            training(tmp_path, value)[0].save("a", iteration=int(value))
            assert names(tmp_path) == ["a.safetensors", state, "last_checkpoint"]
            checkpointer, model, optimizer = training(tmp_path)
            assert checkpointer.resume_or_load("")["iteration"] == value
            assert optimizer.state[model.weight]["momentum_buffer"][0, 0] == model.weight[0, 0] == value
        keeper(tmp_path).save("a")
        assert names(tmp_path) == ["a.safetensors", "last_checkpoint"]

    @pytest.mark.parametrize("former", [False, True])
    def test_a_process_that_dies_at_any_moment(self, tmp_path, monkeypatch, former):
        """It dies in each of its calls that change the folder; what is there is whole, or was never promised."""

        class Death(BaseException):
            pass

        calls = {"left": 0}

        def dying(function):
            def call(*args, **kwargs):
                if calls["left"] == 0:
                    raise Death
                calls["left"] -= 1
                return function(*args, **kwargs)

            return call

        survived = 0
        for left in range(20):
            folder = tmp_path / str(left)
            folder.mkdir()
            if former:
                training(folder, 1.0)[0].save("a", iteration=1)
            checkpointer = training(folder, 2.0)[0]
            calls["left"] = left
            with monkeypatch.context() as patch:
                for owner, name in (
                    (os, "replace"),
                    (os, "fsync"),
                    (os, "remove"),
                    (torch, "save"),
                    (builtins, "open"),
                ):
                    patch.setattr(owner, name, dying(getattr(owner, name)))
                try:
                    checkpointer.save("a", iteration=2)
                except Death:
                    pass
                else:
                    survived += 1
            fresh, model, optimizer = training(folder)
            if not fresh.has_checkpoint():
                assert not former
                continue
            at = fresh.resume_or_load("")["iteration"]
            assert model.weight[0, 0] == optimizer.state[model.weight]["momentum_buffer"][0, 0] == at
            with monkeypatch.context() as patch:  # the process that died has another number than this one
                patch.setattr(detection_checkpoint, "_may_be_alive", lambda pid: False)
                fresh.remove_leftovers()
            assert {n for n in names(folder) if n != "a.state2.pt"} <= {
                "a.safetensors",
                "a.state.pt",
                "last_checkpoint",
            }
            assert len(names(folder)) == 3
            assert fresh.resume_or_load("")["iteration"] == at
        assert 2 <= survived <= 15  # it was killed in enough places, and not in all

    def test_orphans(self, tmp_path):
        remove_orphans(str(tmp_path))
        training(tmp_path)[0].save("a")
        training(tmp_path)[0].save("b")
        for name in ("c.state.pt", "b.state2.pt", "mine.state.pth", "a.state3.pt"):
            (tmp_path / name).write_bytes(b"")
        remove_orphans(str(tmp_path), ["b"])
        assert (tmp_path / "c.state.pt").is_file() and not (tmp_path / "b.state2.pt").exists()
        remove_orphans(str(tmp_path))
        kept = ["a.safetensors", "a.state.pt", "a.state3.pt", "b.safetensors", "b.state.pt", "last_checkpoint"]
        assert names(tmp_path) == sorted([*kept, "mine.state.pth"])

    def test_unknown_format(self, tmp_path):
        checkpointer = keeper(tmp_path)
        checkpointer.file_format = "npz"
        with pytest.raises(ValueError, match=r"one of \('pth', 'safetensors'\), not as 'npz'"):
            checkpointer.save("a")


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
class TestDescribed:
    def test_again(self, tmp_path, kind):
        checkpointer, model, optimizer = training(tmp_path, 2.0)
        checkpointer.file_format = kind
        checkpointer.describe_again("a")  # there is nothing to describe, and nobody who could
        checkpointer.save("a", iteration=1, table=np.eye(2))
        before = checkpointer.load(checkpointer.get_checkpoint_file())
        checkpointer.describe = lambda: {"metrics": {"AP": 1.0}, "iteration": 1}
        checkpointer.describe_again("none")
        assert "none" not in " ".join(names(tmp_path))
        checkpointer.describe_again("a", iteration=2)
        fresh, other, restored = training(tmp_path)
        rest = fresh.resume_or_load("")
        assert rest.pop("description") == {"metrics": {"AP": 1.0}, "iteration": 2}
        np.testing.assert_array_equal(rest.pop("table"), before.pop("table"))
        assert rest == before == {"iteration": 1}
        assert torch.equal(other.weight, model.weight)
        assert torch.equal(
            restored.state[other.weight]["momentum_buffer"], optimizer.state[model.weight]["momentum_buffer"]
        )

    def test_it_fails(self, tmp_path, kind, caplog, monkeypatch):
        """The weights are saved all the same."""
        monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
        checkpointer = keeper(tmp_path)
        checkpointer.file_format = kind
        checkpointer.describe = lambda: 1 / 0
        checkpointer.save("a", iteration=2)
        assert "a is saved without a description" in caplog.text and "ZeroDivisionError" in caplog.text
        assert keeper(tmp_path).resume_or_load("") == {"iteration": 2}

    def test_aside(self, tmp_path, kind):
        checkpointer = training(tmp_path)[0]
        checkpointer.file_format = kind
        assert checkpointer.save_aside("best") == f"best.{kind}"
        assert not checkpointer.has_checkpoint()
        with pytest.raises(ValueError, match="must not contain a folder"):
            checkpointer.save_aside("a/b")
        checkpointer.save_to_disk = False
        assert checkpointer.save_aside("other") is None
