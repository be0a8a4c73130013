"""From a config or a file of weights to a model that is ready to predict."""

from pathlib import Path

import pytest
import torch

from detectron2.config import CfgNode
from detectron2.inference import loading


def test_without_a_name():
    with pytest.raises(FileNotFoundError, match="There is no config file ''"):
        loading.find_config_file("")


def test_find_config_file(tmp_path: Path):
    own = tmp_path / "own.yaml"
    own.write_text("VERSION: 2\n")
    assert loading.find_config_file(str(own)) == str(own)
    name = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
    assert loading.find_config_file(name).endswith(name)


def test_load_config_of_each_kind(tmp_path: Path):
    yaml = tmp_path / "own.yaml"
    yaml.write_text("MODEL: {DEVICE: cpu}\n")
    cfg = loading.load_config(str(yaml), ["SEED", "7"], output_dir="out")
    assert isinstance(cfg, CfgNode) and cfg.is_frozen() and (cfg.SEED, cfg.OUTPUT_DIR) == (7, "out")
    lazy = tmp_path / "own.py"
    lazy.write_text("model = {}\ndataloader = {}\n")
    with pytest.raises(ValueError, match="does not define train"):
        loading.load_config(str(lazy), [])


class TestAvailableDevice:
    @pytest.mark.parametrize("device", ["", "gpu", "cuda:x", "cpu:-2"])
    def test_what_is_no_device(self, device):
        with pytest.raises(ValueError, match=f"--device is '{device}', which is not a device; expected cpu, cuda or"):
            loading.available_device(device, "--device")

    @pytest.mark.parametrize(
        ("cuda", "mps", "device"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
    )
    def test_auto(self, monkeypatch, caplog, cuda, mps, device):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        assert loading.available_device("auto") == device
        assert not caplog.records

    @pytest.mark.parametrize(("device", "what"), [("cuda", "GPU"), ("cuda:3", "GPU"), ("mps", "GPU of Apple")])
    def test_an_accelerator_that_is_not_there(self, monkeypatch, caplog, device, what):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        assert loading.available_device(torch.device(device)) == "cpu"
        assert caplog.messages == [f"device is '{device}' but no {what} is available; using the CPU."]

    def test_a_number_that_no_gpu_has(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert loading.available_device("cuda:1") == "cuda:1"
        with pytest.raises(ValueError, match=r"'cuda:2', but the GPUs of this machine have the numbers 0 to 1"):
            loading.available_device("cuda:2")

    def test_others_are_taken_as_they_are(self):
        assert [loading.available_device(d) for d in ("cpu", "meta")] == ["cpu", "meta"]


def test_config_on_a_device_that_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = CfgNode({"MODEL": {"DEVICE": "cuda"}})
    cfg.freeze()
    assert loading.on_available_device(cfg).MODEL.DEVICE == "cpu" and cfg.MODEL.DEVICE == "cuda"
    cfg = CfgNode({"MODEL": {"DEVICE": "cpu"}})
    assert loading.on_available_device(cfg) is cfg
