"""The failures that have cost users of such software the most time: what happens in their place.

Each test provokes one as a user does, by a command or by documented calls, and looks for what helps: the file, the
annotation, the value, the number and the cure.
"""

import contextlib
import dataclasses
import json
import logging
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch

from detectron2.checkpoint import DetectionCheckpointer, read_description
from detectron2.cli import main
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.distributed.layout import find_free_port
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.export import formats as export_formats
from detectron2.layers import paste_masks_in_image
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from tests.e2e.test_bad_input import NAME, check, run
from tests.engine.conftest import restore_logging

__all__ = ["restore_logging", "run"]


def python(repo_root: Path, code: str, *folders: Path) -> subprocess.CompletedProcess:
    """Run Python in a process of its own, with folders in front of the installed packages."""
    path = os.pathsep.join(map(str, (*folders, repo_root)))
    env = {**os.environ, "PYTHONPATH": path, "COLUMNS": "1000"}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)


def weights_of(cfg, folder: Path, name: str = "weights") -> str:
    DetectionCheckpointer(build_model(cfg), str(folder)).save(name)
    return str(folder / f"{name}.pth")


class TestInstallation:
    def test_no_torch_while_installing(self, repo_root):
        """A build reads no code of the library, which would need torch; and the command starts without it."""
        lines = (repo_root / "pyproject.toml").read_text(encoding="utf-8")
        build = lines.partition("[build-system]")[2].partition("\n[")[0]
        assert "hatchling" in build and "torch" not in build
        assert "dynamic" not in lines.partition("[project]")[2].partition("\n[")[0]  # such as a version from code
        code = "import sys; sys.modules['torch'] = None; from detectron2.cli import main; sys.exit(main(['--version']))"
        done = python(repo_root, code)
        assert done.returncode == 0 and done.stdout.strip()

    def test_builds_that_do_not_fit(self, repo_root, tmp_path):
        """Nothing is compiled here; of torchvision, which is, one line names both versions and the cure."""
        assert not [p for p in (repo_root / "detectron2").rglob("*") if p.suffix in {".so", ".pyd", ".cpp", ".cu"}]
        broken = tmp_path / "torchvision"
        broken.mkdir()
        (broken / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
        code = "import sys; from detectron2.cli import main; sys.exit(main(['eval', '--weights', 'model.pth']))"
        done = python(repo_root, code, tmp_path)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        check(done.stderr, version("torchvision"), torch.__version__, "torchvision::nms does not exist", "pip install")


class TestTraining:
    def test_label_beyond_the_classes(self, run):
        """No assertion on a device: the data set, file, annotation, label, number and key are named before training."""
        labels = [a["category_id"] - 1 for a in run.annotations["annotations"]]
        text = run("MODEL.ROI_HEADS.NUM_CLASSES", max(labels))
        check(text, NAME, f"MODEL.ROI_HEADS.NUM_CLASSES is {max(labels)}", f"NUM_CLASSES to {max(labels) + 1}")
        first = run.annotations["annotations"][labels.index(max(labels))]
        (image,) = [i for i in run.annotations["images"] if i["id"] == first["image_id"]]
        check(text, run.image.parent / image["file_name"], max(labels))

    def test_divergence(self, run):
        """The layer, iteration, rate, a better rate, and the images are named; the step can be repeated."""
        status, err = run.train("SOLVER.BASE_LR", 1e30, "SOLVER.WARMUP_ITERS", 0, "SOLVER.MAX_ITER", 5)
        assert status == 1
        check(err, "iteration 1", "first tensor that is not finite", "1e+30", "1.25e+29", "image_id", run.image.parent)
        (saved,) = run.output.glob("nonfinite_*.pth")
        check(err, f"python -m detectron2.engine.replay {saved}")
        assert len(torch.load(saved, weights_only=True)["batches"][0]) == 2

    def test_divergence_is_skipped(self, run):
        steps = ("SOLVER.BASE_LR", 1e30, "SOLVER.WARMUP_ITERS", 0, "SOLVER.MAX_ITER", 3)
        status, err = run.train(*steps, "TRAIN.ON_NONFINITE_LOSS", "skip", "TEST.TRY_EVALUATOR", False)
        assert status == 0, err
        records = [json.loads(line) for line in (run.output / "metrics.json").read_text().splitlines()]
        assert records[-1]["skipped_steps"] > 0

    def test_boxes_without_area(self, run):
        run.annotations["annotations"][0]["bbox"][2] = 0
        check(run(), "without area", "00000.png", "annotation 0", "data check")

    def test_weights_of_other_shapes(self, run, tmp_path):
        """Other classes are fine, and a table says so; else it is a warning, and an error where nothing is learnt."""
        run.cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
        weights = weights_of(run.cfg, tmp_path)
        run.cfg.MODEL.ROI_HEADS.NUM_CLASSES = 6
        status, err = run.train("MODEL.WEIGHTS", weights)
        assert status == 0, err
        log = (run.output / "log.txt").read_text()
        check(log, weights, "roi_heads.box_predictor.cls_score.weight", "(4, 32)", "(7, 32)")
        run.output = tmp_path / "another"
        other = ("MODEL.WEIGHTS", weights, "MODEL.ROI_BOX_HEAD.FC_DIM", 8)
        assert run.train(*other)[0] == 0
        check((run.output / "log.txt").read_text(), "NOT ALL WAS LOADED", "roi_heads.box_head.fc1.weight", "(32, 784)")
        argv = ["--config-file", str(run.config), str(run.image), "--output", str(tmp_path / "drawn")]
        assert main(["predict", *argv, *map(str, other)]) == 1
        check(run._capsys.readouterr().err, weights, "roi_heads.box_head.fc1.weight", "(32, 784) in the file")
        assert not (tmp_path / "drawn").exists()

    def test_nothing_left_to_train(self, run):
        """One warning with both numbers and both cures; files that are missing come back, and all ends well."""
        assert run.train("SOLVER.MAX_ITER", 2)[0] == 0
        (run.output / "model_final.pth").rename(run.output / "model_0000001.pth")
        (run.output / "last_checkpoint").write_text("model_0000001.pth")
        status, err = run.train("SOLVER.MAX_ITER", 2, resume=True)
        assert status == 0, err
        assert (run.output / "model_final.pth").is_file()
        log = (run.output / "log.txt").read_text()
        (warning,) = [line for line in log.splitlines() if "had 2 iterations" in line]
        check(warning, "is to have 2", "MAX_ITER", "another folder")
        check(log, "0.001 (SOLVER.BASE_LR)")  # where the learning rate is from

    @pytest.mark.parametrize("left_out", ["info", "area", "iscrowd", "licenses"])
    def test_missing_fields_of_annotations(self, run, left_out):
        """Evaluation fills them in."""
        run.annotations.pop(left_out, None)
        for annotation in run.annotations["annotations"]:
            annotation.pop(left_out, None)
        status, err = run.train("DATASETS.TEST", f"('{NAME}',)")
        assert status == 0, err

    def test_evaluator_that_would_fail(self, cfg):
        """It is tried on two images before the first step."""

        class Trainer(DefaultTrainer):
            @classmethod
            def build_evaluator(cls, cfg, dataset_name, output_folder=None):
                evaluator = super().build_evaluator(cfg, dataset_name, output_folder)
                evaluator.reset = lambda: 1 / 0
                return evaluator

        trainer = Trainer(cfg)
        with pytest.raises(ValueError, match=r"(?s)e2e_shapes.*two images before training.*TEST\.TRY_EVALUATOR False"):
            trainer.train()
        assert not list(Path(cfg.OUTPUT_DIR).glob("*.pth"))

    def test_no_evaluator_was_chosen(self, cfg, shapes_dir):
        """One is chosen by what the data set has, also where a function gives it."""
        records = DatasetCatalog.get("e2e_shapes")
        DatasetCatalog.register("own_function", lambda: records)
        MetadataCatalog.get("own_function").thing_classes = MetadataCatalog.get("e2e_shapes").thing_classes
        try:
            cfg.DATASETS.TEST, cfg.TEST.EVAL_PERIOD, cfg.SOLVER.MAX_ITER = ("own_function",), 1, 1
            trainer = DefaultTrainer(cfg)
            trainer.train()
            assert {"bbox/AP", "segm/AP"} <= set(trainer.storage.latest())
        finally:
            DatasetCatalog.remove("own_function")
            MetadataCatalog.remove("own_function")

    def test_masks_of_another_kind(self, run):
        """Run lengths train where polygons are expected; what is no mask at all is named."""
        masks = [a for a in run.annotations["annotations"] if a["image_id"] in (1, 2)]
        for annotation in masks:
            runs = mask_util.merge(mask_util.frPyObjects(annotation["segmentation"], 96, 128))
            annotation["segmentation"] = {"size": [96, 128], "counts": runs["counts"].decode()}
        status, err = run.train("INPUT.MASK_FORMAT", "polygon")
        assert status == 0, err
        masks[0]["segmentation"] = "a cat"
        run.output = run.output.parent / "again"
        check(run(), "annotations.json", f"annotation id {masks[0]['id']}", "segmentation", "a cat")

    def test_a_machine_that_does_not_answer(self, run, monkeypatch, capsys):
        """No hang, no traceback: the host, port, own and missing rank are named after a while."""
        monkeypatch.setenv("DETECTRON2_MEETING_TIMEOUT", "0.5")
        port = find_free_port()
        run.config.write_text(run.cfg.dump())
        argv = ["--config-file", str(run.config), "--num-machines", "2", "--machine-rank", "1", "--output", "nowhere"]
        assert main(["train", *argv, "--dist-url", f"tcp://127.0.0.1:{port}"]) == 1
        said = capsys.readouterr().err
        assert "Traceback" not in said
        check(said, "Process 1 of 2", "127.0.0.1", port, "Rank 0", "firewall")


class TestEvaluation:
    def argv(self, cfg, tmp_path, shapes_dir, *opts):
        (tmp_path / "config.yaml").write_text(cfg.dump())
        files = [str(shapes_dir / "annotations.json"), str(shapes_dir / "images")]
        data = ["--coco", "e2e_shapes", *files, "--output", str(tmp_path / "evaluated")]
        return ["eval", "--config-file", str(tmp_path / "config.yaml"), *data, *map(str, opts)]

    def test_nothing_is_found(self, cfg, tmp_path, shapes_dir, restore_logging):
        """What was loaded, the scores, and the threshold are told apart."""
        weights = weights_of(cfg, tmp_path)
        argv = self.argv(cfg, tmp_path, shapes_dir, "--weights", weights, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.99)
        assert main(argv) == 0
        log = (tmp_path / "evaluated" / "log.txt").read_text()
        check(log, "found nothing on any of 6 images", "the threshold is 0.99", "highest score", f"from {weights}")

    def test_random_weights(self, cfg, tmp_path, shapes_dir, capsys, restore_logging):
        assert main(self.argv(cfg, tmp_path, shapes_dir)) == 1
        check(capsys.readouterr().err, "No weights", "--weights")

    def test_no_annotated_object(self, cfg, tmp_path, shapes_dir, restore_logging):
        content = json.loads((shapes_dir / "annotations.json").read_text())
        (tmp_path / "annotations.json").write_text(json.dumps({**content, "annotations": []}))
        (tmp_path / "images").symlink_to(shapes_dir / "images")
        DatasetCatalog.remove("e2e_shapes"), MetadataCatalog.remove("e2e_shapes")
        assert main(self.argv(cfg, tmp_path, tmp_path, "--weights", weights_of(cfg, tmp_path))) == 0
        check((tmp_path / "evaluated" / "log.txt").read_text(), "ground truth has no objects")

    def test_masks_that_do_not_fit_into_memory(self):
        """An error with the size and the two forms that need less; the system does not end the process."""
        with pytest.raises(MemoryError, match=r"2 masks .* 4000000 x 4000000 .*GiB.*rle.*roi"):
            paste_masks_in_image(torch.ones(2, 4, 4), Boxes(torch.tensor([[0.0, 0, 5, 5]] * 2)), (4_000_000, 4_000_000))

    def test_a_class_that_the_data_set_does_not_have(self, cfg, caplog):
        """Said before the first step, not after an epoch."""
        cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.SOLVER.MAX_ITER = 9, 1
        trainer = DefaultTrainer(cfg)  # whose log goes elsewhere than to the root, where caplog listens
        logging.getLogger("detectron2").addHandler(caplog.handler)
        with contextlib.suppress(ValueError):  # of the evaluation
            trainer.train()
        texts = [record.getMessage() for record in caplog.records]
        (told,) = {text for text in texts if "The model has 9 classes" in text}
        check(told, "e2e_shapes 6", "NUM_CLASSES) to 6")
        first = next(i for i, text in enumerate(texts) if "eta" in text or "saving" in text.lower())
        assert texts.index(told) < first


class TestExport:
    def test_a_file_that_is_wrong(self, cfg, tmp_path, monkeypatch, capsys, restore_logging):
        """It is compared on other sizes, numbers of images and a blank one; the command fails, nothing is left."""
        right = export_formats.FORMATS["torchscript"]

        def write_wrongly(graph, *rest):
            weight = next(graph.model.roi_heads.box_predictor.parameters())
            with torch.no_grad():
                weight += 0.5 * torch.randn_like(weight)
            right.write(graph, *rest)
            with torch.no_grad():
                weight.copy_(kept)

        wrong = dataclasses.replace(right, write=write_wrongly)
        monkeypatch.setattr(export_formats, "FORMATS", {**export_formats.FORMATS, "torchscript": wrong})
        weights = weights_of(cfg, tmp_path)
        kept = torch.load(weights, weights_only=True)["model"]["roi_heads.box_predictor.cls_score.weight"]
        (tmp_path / "config.yaml").write_text(cfg.dump())
        argv = ["--config-file", str(tmp_path / "config.yaml"), "--weights", weights, "--size", "64", "96"]
        assert main(["export", *argv, "--format", "torchscript", "--output", str(tmp_path / "exported")]) == 1
        check(
            capsys.readouterr().err, "does not do what the model does", "another size", "blank image", "its translation"
        )
        assert not (tmp_path / "exported").exists()


class TestCatalogs:
    def test_registered_twice(self, shapes_dir, shapes):
        files = (str(shapes_dir / "annotations.json"), str(shapes_dir / "images"))
        register_coco_instances(shapes, {}, *files)  # a cell of a notebook that is run again
        with pytest.raises(ValueError, match=r"(?s)e2e_shapes.*other\.json.*DatasetCatalog\.remove"):
            register_coco_instances(shapes, {}, "other.json", files[1])

    def test_misspelt_key(self, shapes, caplog):
        metadata = MetadataCatalog.get(shapes)
        metadata.thing_clases = ["a"]
        check(caplog.text, "thing_clases", "did you mean 'thing_classes'")
        with pytest.raises(AttributeError, match=r"e2e_shapes.*stuff_color.*stuff_colors"):
            _ = metadata.stuff_color


class TestQualityThatIsLostInSilence:
    """Order of channels, number of detections, images without objects, labels: logged, and kept with the weights."""

    def test_what_training_says_and_keeps(self, run):
        run.annotations["annotations"] = [a for a in run.annotations["annotations"] if a["image_id"] > 2]
        status, err = run.train("INPUT.FORMAT", "RGB", "TEST.DETECTIONS_PER_IMAGE", 7)
        assert status == 0, err
        log = (run.output / "log.txt").read_text()
        check(log, "2 of 6 images are left out", "RGB (INPUT.FORMAT)", "7 of an image at most", "0 disc, 1 ")
        description = read_description(str(run.output / "model_final.pth"))
        assert description.image_format == "RGB" and len(description.metadata["thing_classes"]) == 6
        kept = description.load_config()
        assert kept.TEST.DETECTIONS_PER_IMAGE == 7 and kept.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        kept.MODEL.WEIGHTS = str(run.output / "model_final.pth")
        predictor = DefaultPredictor(kept)
        picture = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
        seen = []
        predictor.model.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]["image"]))
        predictor(picture)  # BGR
        assert torch.equal(seen[0], torch.from_numpy(picture[:, :, ::-1].transpose(2, 0, 1).astype(np.float32)))
