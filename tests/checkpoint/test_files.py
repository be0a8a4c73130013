"""Files of weights: every type of tensor, and damaged headers. Hostile files are in test_hostile_files.py."""

import argparse
import os

import numpy as np
import pytest
import torch
from torch import nn

from detectron2.checkpoint.files import read_header, read_torch_file, read_weights, require_safetensors, write_weights
from detectron2.utils.file_io import PathManager

safe_open = pytest.importorskip("safetensors", reason="the package safetensors is not installed").safe_open


class TestWeights:
    @pytest.mark.parametrize("header", [{}, {"a": "text", "b": '{"ü": 1}'}])
    def test_nothing(self, tmp_path, header):
        path = str(tmp_path / "a.safetensors")
        write_weights(path, {}, header, PathManager)
        assert read_weights(path) == ({}, {"format": "pt", **header})
        found = read_header(path)
        assert len(found.pop("crc32")) == 8 and found == {"format": "pt", **header}

    def test_all_types(self, tmp_path):
        values = torch.tensor([0.0, 1.0, -2.0, 3.5])
        kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
        kinds += [torch.int64, torch.int32, torch.int16, torch.int8, torch.bool]
        weights = {str(kind): values.to(kind) for kind in kinds}
        weights |= {"uint8": values.abs().to(torch.uint8), "scalar": torch.tensor(3), "empty": torch.zeros(0, 4)}
        weights |= {"transposed": torch.arange(6.0).reshape(2, 3).T, "ü.weight": torch.ones(1)}
        weights["image"] = torch.rand(1, 3, 4, 5).to(memory_format=torch.channels_last)
        weights["shared"] = weights["image"]
        weights["part"] = weights["image"][:, 1]
        path = str(tmp_path / "a.safetensors")
        write_weights(path, weights, {}, PathManager)
        with safe_open(path, framework="pt") as file:  # the library's own reader
            assert set(file.keys()) == set(weights)
            for name, value in weights.items():
                found = file.get_tensor(name)
                assert found.dtype == value.dtype and found.shape == value.shape, name
                assert np.array_equal(found.double().numpy(), value.double().numpy()), name
        found, _ = read_weights(path)
        assert found.keys() == weights.keys()

    def test_versions_of_modules(self, tmp_path):
        state = nn.Sequential(nn.BatchNorm2d(2)).state_dict()
        path = str(tmp_path / "a.safetensors")
        write_weights(path, state, {}, PathManager)
        found, texts = read_weights(path)
        assert found._metadata == state._metadata and texts == {"format": "pt"}

    @pytest.mark.parametrize(("value", "text"), [([1], "a list"), (torch.zeros(1, dtype=torch.complex64), "complex64")])
    def test_what_it_cannot_hold(self, tmp_path, value, text):
        with pytest.raises(TypeError, match=rf"extra in the state dict is .*{text}.*save as \.pth"):
            write_weights(str(tmp_path / "a.safetensors"), {"extra": value}, {}, PathManager)
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("content", [b"", b"\x10\x00", b"\xff" * 20, b"\x02" + bytes(7) + b"[]", bytes(8)])
    def test_a_damaged_header_says_nothing(self, tmp_path, content):
        (tmp_path / "a.safetensors").write_bytes(content)
        assert read_header(str(tmp_path / "a.safetensors")) == {}

    def test_the_package_is_missing(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r"That needs the package safetensors: pip install safetensors"):
            require_safetensors("That")


@pytest.mark.parametrize("is_zip", [True, False])
def test_arguments_of_a_training_program(tmp_path, is_zip):
    """The published files of DETR, Deformable DETR and DINO hold them beside the weights."""
    path = str(tmp_path / "checkpoint.pth")
    arguments = argparse.Namespace(lr=1e-4, masks=False, sizes=[480, 800], scale=np.float32(2))
    torch.save({"model": {"a": torch.ones(2)}, "args": arguments}, path, _use_new_zipfile_serialization=is_zip)
    found = read_torch_file(path)
    assert found["model"]["a"].tolist() == [1, 1] and found["args"] == arguments
