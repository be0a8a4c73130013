"""Mistakes in data, configs and checkpoints end in one sentence with the file, the value and the cure: before training.

Each test makes one mistake and runs ``detectron2 train``.
"""

import json
import pickle
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.cli import main
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from tests.engine.conftest import restore_logging

__all__ = ["restore_logging"]

NAME = "bad_input"
IMAGE = "00001.png"  # the second of six; its image id is 2


class Run:
    """A copy of the good data set to spoil, and ``detectron2 train`` on it."""

    def __init__(self, folder: Path, source: Path, cfg, capsys):
        self.data, self.output = folder / "data", folder / "output"
        shutil.copytree(source, self.data)
        self.image = self.data / "images" / IMAGE
        self.cfg, self._capsys = cfg, capsys
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (NAME,), ()
        cfg.SOLVER.MAX_ITER = 1
        self.config = folder / "config.yaml"
        self.annotations = json.loads((self.data / "annotations.json").read_text())

    def __call__(self, *opts) -> str:
        """Train, and return what was written to standard error, after checking that no iteration was done."""
        status, err = self.train(*opts)
        assert status == 1, err
        assert not list(self.output.glob("*.pth"))
        assert "Traceback" not in err
        return " ".join(err.split())

    def train(self, *opts, resume=False) -> tuple[int, str]:
        self.config.write_text(self.cfg.dump())
        (self.data / "annotations.json").write_text(json.dumps(self.annotations))
        files = [str(self.data / "annotations.json"), str(self.data / "images")]
        argv = ["train", "--config-file", str(self.config), "--coco", NAME, *files, "--output", str(self.output)]
        status = main([*argv, *(["--resume"] if resume else []), *map(str, opts)])
        DatasetCatalog.remove(NAME)
        MetadataCatalog.pop(NAME, None)
        return status, self._capsys.readouterr().err


@pytest.fixture
def run(tmp_path, shapes_dir, cfg, capsys, restore_logging):
    return Run(tmp_path, shapes_dir, cfg, capsys)


def check(text, *parts):
    for part in parts:
        assert str(part) in text, text


def test_without_mistakes(run):
    status, err = run.train()
    assert status == 0, err
    assert (run.output / "model_final.pth").is_file()


class TestImages:
    def test_missing(self, run):
        run.image.unlink()
        check(
            run(), f"Dataset '{NAME}'", "1 of 6", "cannot be found", run.image, "image_id 2", "Check the image folder"
        )

    def test_other_size(self, run):
        Image.new("RGB", (50, 40)).save(run.image)
        check(run(), run.image, "is 50 x 40 (width x height), said to be 128 x 96", "Correct 'width' and 'height'")

    def test_turned_by_exif(self, run):
        """The size is that of the image as it is shown."""
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (128, 96)).save(run.image, exif=exif)
        check(run(), run.image, "is 96 x 128 (width x height), said to be 128 x 96", "EXIF")

    @pytest.mark.parametrize("content", [b"", b"no image"], ids=["empty", "text"])
    def test_not_an_image(self, run, content):
        run.image.write_bytes(content)
        check(run(), run.image, "cannot be read as images", "Remove them")

    def test_cut_off(self, run):
        run.image.write_bytes(run.image.read_bytes()[:2000])
        check(run(), run.image, "cannot be read as images", "truncated", "Remove them")

    def test_damaged(self, run):
        """Images are not decoded before training; the error of the first batch names the file all the same."""
        for path in run.image.parent.iterdir():
            content = path.read_bytes()
            path.write_bytes(content[:1000] + bytes(200) + content[1200:])
        check(run(), "cannot read the image", run.image.parent)

    def test_all_mistakes_at_once(self, run):
        run.image.unlink()
        Image.new("RGB", (50, 40)).save(run.image.parent / "00002.png")
        run.annotations["annotations"][0]["bbox"] = [5, 5, 0, 10]
        check(run(), "3 problems", "1. ", "2. ", "3. ", "without area", "cannot be found", "another size")


class TestAnnotations:
    def test_label_out_of_range(self, run):
        needed = max(a["category_id"] for a in run.annotations["annotations"])  # ids start at 1, labels at 0
        text = run("MODEL.ROI_HEADS.NUM_CLASSES", 3)
        check(text, "a category_id of 3 or more, while MODEL.ROI_HEADS.NUM_CLASSES is 3", run.image.parent)
        check(text, f"Set MODEL.ROI_HEADS.NUM_CLASSES to {needed}.")

    def test_label_out_of_range_for_retinanet(self, run, tiny_config):
        run.cfg = tiny_config("COCO-Detection/retinanet_R_50_FPN_1x.yaml", "MODEL.RETINANET.NUM_CLASSES", 2)
        run.cfg.DATASETS.TRAIN, run.cfg.DATASETS.TEST = (NAME,), ()
        check(run(), "while MODEL.RETINANET.NUM_CLASSES is 2", "Set MODEL.RETINANET.NUM_CLASSES to")

    @pytest.mark.parametrize(
        ("box", "messages"),
        [
            ([500, 500, 10, 10], ["wholly outside its image", "[500, 500, 10, 10] (image 128 x 96)"]),
            ([-20, 5, 10, 10], ["wholly outside its image", "[-20, 5, 10, 10]"]),
            ([5, 5, 0, 10], ["without area", "[5, 5, 0, 10]"]),
            ([5, 5, 10, -3], ["without area", "[5, 5, 10, -3]"]),
            ([5, float("nan"), 3, 10], ["NaN or infinity", "[5, nan, 3, 10]"]),
            ([5, 5, float("inf"), 10], ["NaN or infinity", "[5, 5, inf, 10]"]),
        ],
        ids=str,
    )
    def test_box(self, run, box, messages):
        (first,) = [a for a in run.annotations["annotations"] if a["image_id"] == 2][:1]
        first["bbox"] = box
        check(run(), *messages, "annotation 0 of", run.image, "Correct them", 'degenerate_boxes = "drop"')

    def test_box_that_is_partly_outside_is_clipped(self, run):
        run.annotations["annotations"][0]["bbox"] = [-5, -5, 200, 200]
        status, err = run.train()
        assert status == 0, err

    def test_box_of_three_numbers(self, run):
        run.annotations["annotations"][0]["bbox"] = [5, 5, 10]
        check(run(), "annotations.json: annotation id 1 of image id 1", "[x, y, width, height], not [5, 5, 10]")

    def test_no_images(self, run):
        run.annotations.update(images=[], annotations=[])
        check(run(), f"Dataset '{NAME}'", "it is empty", "'images'")

    def test_nothing_is_left_after_filtering(self, run):
        run.annotations["annotations"] = []
        text = run()
        check(text, f"Dataset '{NAME}'", "none of its 6 images has annotations", "FILTER_EMPTY_ANNOTATIONS to False")

    def test_no_keypoints(self, run, tiny_config):
        run.cfg = tiny_config("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml", "MODEL.ROI_HEADS.NUM_CLASSES", 6)
        run.cfg.DATASETS.TRAIN, run.cfg.DATASETS.TEST = (NAME,), ()
        check(run(), "keypoint", f"Dataset '{NAME}'")

    def test_no_masks(self, run):
        for annotation in run.annotations["annotations"]:
            del annotation["segmentation"]
        check(run(), f"Dataset '{NAME}'", "segmentation", "MODEL.MASK_ON")

    def test_not_json(self, run, capsys):
        bad = run.data / "bad.json"
        bad.write_text("{")
        run.config.write_text(run.cfg.dump())
        argv = ["train", "--config-file", str(run.config), "--coco", NAME, str(bad), str(run.data / "images")]
        assert main([*argv, "--output", str(run.output)]) == 1
        DatasetCatalog.remove(NAME)
        MetadataCatalog.pop(NAME, None)
        check(capsys.readouterr().err, bad)


class TestConfig:
    def test_unknown_keys(self, run):
        text = run("SOLVER.BASE_LRR", 1, "MODEL.ROI_HEAD.NUM_CLASSES", 2)
        check(text, "2 problems", "'SOLVER.BASE_LRR': did you mean 'SOLVER.BASE_LR'?")
        check(text, "'MODEL.ROI_HEAD.NUM_CLASSES': did you mean 'MODEL.ROI_HEADS.NUM_CLASSES'?")

    def test_unknown_key_in_a_file(self, run, tmp_path, capsys):
        (tmp_path / "typo.yaml").write_text("MODEL:\n  MASKON: True\nSOLVER:\n  MAX_ITERS: 3\n")
        assert main(["train", "--config-file", str(tmp_path / "typo.yaml")]) == 1
        check(capsys.readouterr().err, "typo.yaml", "MODEL.MASKON", "'MODEL.MASK_ON'", "SOLVER.MAX_ITERS")

    @pytest.mark.parametrize("split", ["TRAIN", "TEST"])
    def test_unknown_data_set(self, run, split):
        """The name of a test set is checked before training, too, not after."""
        check(
            run(f"DATASETS.{split}", f"('{NAME}s',)"), f"Dataset '{NAME}s' is not registered", f"Did you mean '{NAME}'"
        )

    def test_no_data_set(self, run):
        check(run("DATASETS.TRAIN", "()"), "No data set is named", "DATASETS.TRAIN")

    def test_unknown_part(self, run):
        check(
            run("MODEL.META_ARCHITECTURE", "GeneralizedRCN"),
            "MODEL.META_ARCHITECTURE is 'GeneralizedRCN'",
            "Did you mean 'GeneralizedRCNN'",
        )

    @pytest.mark.skipif(torch.cuda.is_available(), reason="tests what happens without a GPU")
    def test_no_gpu(self, cfg):
        cfg.MODEL.DEVICE = "cuda"
        with pytest.raises(ValueError, match=r"MODEL\.DEVICE is 'cuda', but .* no usable GPU; .* MODEL\.DEVICE cpu"):
            build_model(cfg)


class TestTools:
    """The published scripts, whose errors are exceptions."""

    @pytest.fixture(params=["train_net", "plain_train_net"])
    def script(self, request, repo_root, monkeypatch, restore_logging):
        path = str(repo_root / "tools" / f"{request.param}.py")

        def call(*argv):
            monkeypatch.setattr("sys.argv", [path, *map(str, argv)])
            runpy.run_path(path, run_name="__main__")

        return call

    @pytest.mark.skipif(torch.cuda.is_available(), reason="tests what happens without a GPU")
    def test_no_gpu(self, script, cfg, tmp_path, request):
        if request.node.callspec.params["script"] == "train_net":
            pytest.skip("the default trainer goes on with the CPU")
        (tmp_path / "config.yaml").write_text(cfg.dump())
        with pytest.raises(ValueError, match=r"MODEL\.DEVICE is 'cuda', but .* no usable GPU; .* MODEL\.DEVICE cpu"):
            script("--config-file", tmp_path / "config.yaml", "MODEL.DEVICE", "cuda")

    def test_no_config(self, script, capsys):
        with pytest.raises(SystemExit):
            script("SOLVER.MAX_ITER", 1)
        check(capsys.readouterr().err, "--config-file is needed")

    def test_missing_config(self, script):
        with pytest.raises(FileNotFoundError, match=r"/no/such\.yaml"):
            script("--config-file", "/no/such.yaml")


class Hostile:
    """Creates a file when it is unpickled the usual way."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.path}",)


class TestCheckpoints:
    def test_missing(self, run, tmp_path):
        DetectionCheckpointer(build_model(run.cfg), str(tmp_path)).save("there")
        text = run("MODEL.WEIGHTS", tmp_path / "not_there.pth")
        check(text, f"There is no checkpoint {tmp_path / 'not_there.pth'}", "holds there.pth", "Check the path")

    def test_another_architecture(self, run, tmp_path, tiny_config):
        other = tiny_config("COCO-Detection/retinanet_R_50_FPN_1x.yaml", "MODEL.RESNETS.RES2_OUT_CHANNELS", 32)
        other.MODEL.RESNETS.STEM_OUT_CHANNELS = 32
        DetectionCheckpointer(build_model(other), str(tmp_path)).save("other")
        check(
            run("MODEL.WEIGHTS", tmp_path / "other.pth"),
            tmp_path / "other.pth",
            "a model of another size",
            "Use the config",
        )

    @pytest.mark.parametrize("suffix", ["pth", "pkl"])
    def test_hostile(self, run, tmp_path, suffix):
        path, trace = tmp_path / f"hostile.{suffix}", tmp_path / "it_ran"
        if suffix == "pkl":
            path.write_bytes(pickle.dumps({"model": {"w": np.zeros(2)}, "extra": Hostile(trace)}))
        else:
            torch.save({"model": {"w": torch.zeros(2)}, "extra": Hostile(trace)}, path)
        check(run("MODEL.WEIGHTS", path), path, "was not loaded", "system", "could run code", "If you trust the file")
        assert not trace.exists()

    @pytest.mark.parametrize("suffix", ["pth", "pkl"])
    def test_cut_off(self, run, tmp_path, suffix):
        path = tmp_path / f"part.{suffix}"
        if suffix == "pkl":
            path.write_bytes(pickle.dumps({"model": {"w": np.zeros(2000)}})[:-1000])
        else:
            torch.save({"model": {"w": torch.zeros(2000)}}, path)
            path.write_bytes(path.read_bytes()[:-1000])
        check(run("MODEL.WEIGHTS", path), path, "not a readable checkpoint", "cut off", "fetch it again")

    def test_not_a_checkpoint(self, run, tmp_path):
        (tmp_path / "weights.pth").write_text("<html>404 Not Found</html>")
        check(run("MODEL.WEIGHTS", tmp_path / "weights.pth"), tmp_path / "weights.pth", "not a readable checkpoint")

    def test_resume_after_the_end(self, run):
        assert run.train()[0] == 0
        status, err = run.train(resume=True)
        assert status == 0, err
        status, err = run.train("SOLVER.MAX_ITER", 2, resume=True)
        assert status == 0, err

    def test_last_checkpoint_is_gone(self, run):
        assert run.train()[0] == 0
        (run.output / "model_final.pth").unlink()
        status, err = run.train(resume=True)
        assert status == 1
        check(err, "There is no checkpoint", run.output / "model_final.pth")


def test_loss_that_is_not_finite(run):
    """It stops training at once, and names the images."""
    status, err = run.train("SOLVER.BASE_LR", 1e30, "SOLVER.WARMUP_ITERS", 0, "SOLVER.MAX_ITER", 5)
    assert status == 1
    check(err, "NaN", "in iteration 1", "Learning rate: 1e+30", str(run.image.parent), "too high for the batch size")
