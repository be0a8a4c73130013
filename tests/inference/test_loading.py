"""From a config or a file of weights to a model that is ready to predict."""

from pathlib import Path

import numpy as np
import pytest
import torch

from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg, instantiate
from detectron2.data import Metadata
from detectron2.export.api import export_model
from detectron2.inference import Predictor, loading
from detectron2.modeling import META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from tests.cli.conftest import LAZY
from tests.export.conftest import mapper as _mapper
from tests.export.conftest import segmenter as _segmenter

mapper, segmenter = _mapper, _segmenter


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


class TestLoad:
    def test_nothing(self):
        with pytest.raises(TypeError, match=r"Expected a checkpoint, a config, an exported model .* got NoneType"):
            loading.load(None)

    def test_config_and_its_file(self, tiny_cfg, tmp_path):
        file = tmp_path / "own.yaml"
        file.write_text(tiny_cfg.dump())
        for source in (tiny_cfg, file):
            loaded = loading.load(source, device="cpu", overrides=["INPUT.MIN_SIZE_TEST", 32])
            assert not loaded.model.training and loaded.cfg.INPUT.MIN_SIZE_TEST == 32
            assert loaded.metadata.thing_classes == ["ant", "bee", "cat"]  # beside the weights
        assert tiny_cfg.INPUT.MIN_SIZE_TEST == 96 and tiny_cfg.is_frozen()

    def test_checkpoint(self, tiny_cfg):
        loaded = loading.load(tiny_cfg.MODEL.WEIGHTS)
        assert loaded.cfg.MODEL.DEVICE == "cpu" and loaded.mapper.image_format == "BGR"
        with pytest.raises(ValueError, match="is taken for weights"):
            loading.load(tiny_cfg.MODEL.WEIGHTS, "other.pth")

    def test_lazy_config(self, tmp_path, tiny_files):
        """Images are made ready as `dataloader.test.mapper` says, with the numbers of the same model called by hand."""
        file = tmp_path / "own.py"
        file.write_text(LAZY)
        cfg = loading.load_config(str(file), [], device="cpu")
        torch.manual_seed(0)
        model = instantiate(cfg.model).eval()
        DetectionCheckpointer(model, str(tmp_path)).save("model")
        predictor = Predictor(file, weights=tmp_path / "model.pth", device="cpu", batch_size=1, optimize=False)
        mapper = instantiate(cfg.dataloader.test.mapper)
        assert predictor.image_format == mapper.image_format == "BGR"
        for file, result in zip(tiny_files[:3], predictor(tiny_files[:3]), strict=True):
            with torch.no_grad():
                expected = model([mapper({"file_name": str(file)})])[0]["instances"]
            assert torch.equal(result.instances.pred_boxes.tensor, expected.pred_boxes.tensor)
            assert torch.equal(result.instances.scores, expected.scores) and len(expected)
        again = loading.load(cfg, str(tmp_path / "model.pth"), overrides=["train.device=cpu"])
        assert again.cfg is not cfg

    def test_folder_that_is_no_model(self, tmp_path):
        with pytest.raises(ValueError, match=r"a folder without model.json.*Give the file of a checkpoint"):
            loading.load(tmp_path)

    def test_no_such_file(self, tmp_path):
        for name in ("model.pth", "model.yaml", "model.onnx"):
            with pytest.raises(FileNotFoundError, match=name):
                loading.load(tmp_path / name)

    def test_published_weights_of_the_model_zoo(self, monkeypatch):
        """They take the place of those of a backbone alone, unless others are named."""
        name = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
        taken = []

        def note(cfg, weights, **_):
            taken.append(weights)
            return torch.nn.Identity(), None

        monkeypatch.setattr(loading, "load_model", note)
        monkeypatch.setattr(loading, "load_metadata", lambda cfg, weights: Metadata())
        loading.load(name, device="cpu")
        loading.load(name, "own.pth", device="cpu")
        loading.load(name, device="cpu", overrides=["MODEL.WEIGHTS", "own.pth"])
        assert taken == [model_zoo.get_checkpoint_url(name), "own.pth", ""]

    def test_exported_model(self, segmenter, mapper, tmp_path):
        names = Metadata().set(name="own", stuff_classes=["sky", "sea", "sand", "sun"])
        folder = tmp_path / "out"
        export_model(segmenter, folder, "pt2", mapper=mapper, metadata=names, size=(48, 96), verify=False)
        for source in (folder, folder / "model.json", folder / "model.pt2"):
            loaded = loading.load(source)
            assert loaded.cfg is None and loaded.mapper.image_format == "RGB"
            assert loaded.metadata.stuff_classes == ["sky", "sea", "sand", "sun"]
        image = np.zeros((24, 96, 3), np.uint8)
        (resize,) = loaded.mapper.augmentations.augs
        assert resize.get_transform(image).apply_image(image).shape == (24, 96, 3)  # 96 is the most for the long edge


def test_weights_that_fill_a_part(tiny_cfg):
    cfg = tiny_cfg.clone()
    cfg.defrost()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 4
    with pytest.raises(ValueError, match="roi_heads"):
        loading.load_model(cfg)
    model, _ = loading.load_model(cfg, allow_random_weights=True)
    assert not model.training


def test_keys_of_projects():
    cfg = get_cfg()
    loading.add_project_keys(cfg, [])
    assert "POINT_HEAD" not in cfg.MODEL
    loading.add_project_keys(cfg, ["MODEL.DEVICE", "MODEL.POINT_HEAD.NAME"])
    assert "POINT_HEAD" in cfg.MODEL


PROJECTS = Path(__file__).resolve().parents[2] / "projects"


@pytest.mark.parametrize("folder", ["DeepLab", "Panoptic-DeepLab", "PointRend", "Mask2Former", "DeformableDETR"])
def test_configs_of_projects_that_set_none_of_their_keys(folder):
    """The names of models and parts tell the project as well."""
    files = sorted((PROJECTS / folder / "configs").rglob("*.yaml"))
    assert files
    for path in files:
        cfg = loading.load_config(str(path), [], device="cpu")
        assert META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
        if cfg.MODEL.META_ARCHITECTURE in ("SemanticSegmentor", "PanopticDeepLab", "MaskFormer"):
            assert SEM_SEG_HEADS_REGISTRY.get(cfg.MODEL.SEM_SEG_HEAD.NAME)
    path = str(PROJECTS / "DeepLab/configs/Cityscapes-SemanticSegmentation/Base-DeepLabV3-OS16-Semantic.yaml")
    assert loading.load_config(path, ["MODEL.META_ARCHITECTURE", "DINO"], device="cpu").MODEL.DINO


def test_kinds_of_config_files(tmp_path):
    for name, content, is_lazy in (
        ("a.py", "", True),
        ("a.yaml", "train: {}\n", True),
        ("b.yaml", "MODEL: {}\n", False),
        ("c.yaml", b"\x93NUMPY\xff", False),
    ):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        assert loading.is_lazy_file(str(tmp_path / name)) == is_lazy


def test_weights_fetch_no_others(monkeypatch):
    """A config in a checkpoint may say how its training started; to use the weights, nothing of that is fetched."""

    class Described:
        config = "yaml"

        def load_config(self):
            cfg = get_cfg()
            started = ["MODEL.TIMM.PRETRAINED", True, "MODEL.TIMM.CHECKPOINT", "a.pth", "MODEL.HF.PRETRAINED", "a/b"]
            cfg.merge_from_list([*started, "MODEL.TRANSFORMERS.PRETRAINED", True, "MODEL.TIMM.NAME", "resnet18"])
            return cfg

    monkeypatch.setattr(loading, "read_description", lambda path: Described())
    cfg = loading.load_config_of_weights("model_final.pth", ["MODEL.DEVICE", "cpu"])
    assert not (cfg.MODEL.TIMM.PRETRAINED or cfg.MODEL.TIMM.CHECKPOINT or cfg.MODEL.HF.PRETRAINED)
    assert not cfg.MODEL.TRANSFORMERS.PRETRAINED and cfg.MODEL.TIMM.NAME == "resnet18"
