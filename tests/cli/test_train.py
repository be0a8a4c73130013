"""``detectron2 train`` with configs of both kinds and data sets in both formats."""

import json
import socket
import subprocess
import sys

import pytest
import torch
import yaml
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from detectron2.cli import train
from detectron2.config import LazyConfig
from detectron2.data.datasets.synthetic import SHAPE_CLASSES
from detectron2.distributed.rendezvous import MeetingError


def check_output(folder):
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    assert json.loads((folder / "metadata.json").read_text())["thing_classes"] == list(SHAPE_CLASSES)
    losses = [r["total_loss"] for r in map(json.loads, (folder / "metrics.json").read_text().splitlines()) if "lr" in r]
    assert len(losses) == 1
    assert "Starting training" in (folder / "log.txt").read_text()
    return torch.load(folder / "model_final.pth", weights_only=True)


def test_yaml(trained):
    assert check_output(trained)["iteration"] == 1
    saved = yaml.safe_load((trained / "config.yaml").read_text())
    assert saved["OUTPUT_DIR"] == str(trained)


def test_lazy(lazy_trained):
    assert check_output(lazy_trained)["iteration"] == 1
    assert LazyConfig.load(str(lazy_trained / "config.yaml")).train.output_dir == str(lazy_trained)


def test_machines_that_do_not_meet_are_one_line(command, tmp_path, monkeypatch):
    """The cause is in a process that the command has started, or in the command itself."""
    with socket.create_server(("127.0.0.1", 0)) as busy:
        address = f"tcp://127.0.0.1:{busy.getsockname()[1]}"
        machines = ("--num-machines", 2, "--dist-url", address)
        status, out, err = command("train", "--config-file", "x.yaml", *machines, "--output", tmp_path / "o")
        assert status == 1 and "Cannot listen at" in err and "Traceback (most" not in out + err

    def missing(*_, **__):
        raise ProcessRaisedException("Traceback (most", 0, 12) from MeetingError("Missing: rank 1")

    monkeypatch.setattr(train, "launch", missing)
    status, out, err = command("train", "--config-file", "x.yaml", *machines, "--output", tmp_path / "o")
    assert status == 1 and "detectron2 train: MeetingError: Missing: rank 1" in err and "Traceback (most" not in err
    with pytest.raises(ProcessRaisedException):
        command("train", "--config-file", "x.yaml", *machines, "--traceback")
    assert not (tmp_path / "o").exists()


def test_killed_processes_are_reported_without_a_traceback(command, yaml_file, monkeypatch):
    def killed(*args, **kwargs):
        raise ProcessExitedException("Process of rank 1 was killed by SIGKILL", 1, 12, -9, "SIGKILL")

    monkeypatch.setattr(train, "launch", killed)
    status, _, err = command("train", "--config-file", yaml_file)
    assert status == 1 and "Process of rank 1 was killed by SIGKILL" in err
    assert "Traceback" not in err


def test_changes_and_resume(command, yaml_file, coco, tmp_path):
    """Changes stand wherever they like among the options; resuming continues where the run had ended."""
    base = ["train", "--config-file", yaml_file, *coco]
    status, _, err = command(*base, "SOLVER.MAX_ITER", 1, "SOLVER.BASE_LR", "5e-4", "--output", tmp_path)
    assert status == 0, err
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["SOLVER"]["BASE_LR"] == 5e-4
    status, out, err = command(*base, "--output", tmp_path, "--resume", "SOLVER.MAX_ITER", "2")
    assert status == 0, err
    assert "Starting training from iteration 1" in out
    status, out, err = command(*base, "--output", tmp_path, "--resume", "SOLVER.MAX_ITER", "2")
    assert status == 0, err
    assert "has had 2 iterations and is to have 2: none is left" in out
    assert "bbox/AP" in (tmp_path / "metrics.json").read_text().splitlines()[-1]


@pytest.mark.parametrize("kind", ["yaml", "lazy"])
def test_a_folder_with_an_earlier_training(command, request, coco, tmp_path, kind):
    """The command offers to continue, to train anew, or another folder, and nothing is touched before."""
    change = ["SOLVER.MAX_ITER", 1] if kind == "yaml" else ["train.max_iter=1"]
    base = ["train", "--config-file", request.getfixturevalue(f"{kind}_file"), *coco, "--output", tmp_path / "o"]
    assert command(*base, *change)[0] == 0
    (tmp_path / "o_2").mkdir()
    before = {p.name: p.read_bytes() for p in (tmp_path / "o").iterdir() if p.is_file()}
    status, _, err = command(*base, *change)
    assert status == 1
    assert "holds the results of an earlier training (metrics.json, last_checkpoint, model_final.pth)" in err
    assert "--resume" in err and "--overwrite" in err and f"--output {tmp_path / 'o_3'}" in err
    assert {p.name: p.read_bytes() for p in (tmp_path / "o").iterdir() if p.is_file()} == before
    status, _, err = command(*base, "--overwrite", *change)
    assert status == 0, err
    assert (tmp_path / "o" / "metrics.earlier_1.json").read_bytes() == before["metrics.json"]
    lock = (tmp_path / "o" / ".training.lock").open("w")
    lock.write("process 7 on elsewhere")
    lock.flush()
    code = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, lock.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    other.stdout.readline()
    status, _, err = command(*base, "--resume", *change)
    other.communicate("\n")
    assert status == 1 and "Another training runs in" in err and "process 7 on elsewhere" in err


def test_lazy_changes_and_resume(command, lazy_file, coco, tmp_path):
    base = ["train", "--config-file", lazy_file, *coco, "--output", tmp_path / "with space=x"]
    status, _, err = command(*base, "train.max_iter=1", "~dataloader.evaluator")
    assert status == 0, err
    assert LazyConfig.load(str(tmp_path / "with space=x" / "config.yaml")).train.max_iter == 1
    status, out, err = command(*base, "--resume", "train.max_iter=1")
    assert status == 0, err
    assert "has had 1 iterations and is to have 1: none is left" in out


def test_yaml_that_a_lazy_run_saved(command, lazy_trained, coco, tmp_path):
    config = lazy_trained / "config.yaml"
    status, _, err = command("train", "--config-file", config, *coco, "--output", tmp_path, "train.max_iter=1")
    assert status == 0, err
    assert (tmp_path / "model_final.pth").is_file()


def test_all_is_shown_where_that_is_wanted(command, yaml_file, coco, tmp_path):
    (tmp_path / "none.pth").write_bytes(b"no weights")
    words = ("train", "--config-file", yaml_file, *coco, "--output", tmp_path)
    for extra, is_shown in ((["--verbose"], True), ([], False)):
        _, out, _ = command(*words, *extra, "MODEL.WEIGHTS", tmp_path / "none.pth")
        assert all((text in out) == is_shown for text in ("Environment:", "Contents of", "Model:"))


def test_name_in_the_model_zoo(command, coco, tmp_path):
    """It goes as far as the weights, which are taken from a file that holds none."""
    (tmp_path / "none.pth").write_bytes(b"no weights")
    status, out, err = command(
        *("train", "--config-file", "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", *coco, "--output", tmp_path),
        *("DATASETS.TRAIN", "('cli_shapes',)", "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"),
        *("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "MODEL.WEIGHTS", tmp_path / "none.pth"),
    )
    assert status == 1
    log = (tmp_path / "log.txt").read_text()
    for text in ("Environment:", "Command line:", "Contents of", "Model:"):  # of a hundred lines and more
        assert text in log and text not in out
    assert "The full config is in" in out
    assert "none.pth" in err


@pytest.mark.parametrize("classes", [None, "star, disc,square,triangle,cross,moon"])
def test_voc(command, yaml_file, voc, tmp_path, classes):
    status, _, err = command(
        *(
            "train",
            "--config-file",
            yaml_file,
            *voc,
            *(["--classes", classes] if classes else []),
            "--output",
            tmp_path,
        ),
        *(
            "DATASETS.TRAIN",
            "('cli_voc_train',)",
            "DATASETS.TEST",
            "()",
            "MODEL.MASK_ON",
            "False",
            "SOLVER.MAX_ITER",
            "1",
        ),
    )
    assert status == 0, err
    found = json.loads((tmp_path / "metadata.json").read_text())["thing_classes"]
    if classes is None:
        assert found == sorted(found)
        assert set(found) <= set(SHAPE_CLASSES)
    else:
        assert found == ["star", "disc", "square", "triangle", "cross", "moon"]


@pytest.mark.parametrize("kind", ["file", "module"])
def test_import(command, yaml_file, data, tmp_path, monkeypatch, kind):
    """A data set that is registered by a module of the user's."""
    (tmp_path / "cli_my_data.py").write_text(
        "from detectron2.data import DatasetCatalog\n"
        "from detectron2.data.datasets import register_coco_instances\n"
        f"register_coco_instances('cli_mine', {{}}, {str(data / 'annotations.json')!r}, {str(data / 'images')!r})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "cli_my_data" if kind == "module" else str(tmp_path / "cli_my_data.py")
    status, _, err = command(
        *("train", "--config-file", yaml_file, "--import", name, "--output", tmp_path / "out"),
        *("DATASETS.TRAIN", "('cli_mine',)", "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "1"),
    )
    sys.modules.pop("cli_my_data", None)
    assert status == 0, err
    assert (tmp_path / "out" / "model_final.pth").is_file()


def test_no_gpu(command, lazy_file, coco, tmp_path, monkeypatch):
    """The default device is a GPU; without one, the CPU is used, and that is said."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, _, err = command("train", "--config-file", lazy_file, *coco, "--output", tmp_path, "train.max_iter=1")
    assert status == 0, err
    assert LazyConfig.load(str(tmp_path / "config.yaml")).train.device == "cpu"


class TestErrors:
    """What goes wrong on the command line itself; data and weights are in ``tests/e2e/test_bad_input.py``."""

    @pytest.mark.parametrize(
        ("args", "messages"),
        [
            (["--config-file", "COCO-Detection/faster_rcnn_R_50_FPN_1.yaml"], ["faster_rcnn_R_50_FPN_1x.yaml"]),
            (["--config-file", "/no/such/file.yaml"], ["no config file '/no/such/file.yaml'", "working directory"]),
            (["--config-file", "{yaml}", "SOLVER.BASE_LRR", "1"], ["SOLVER.BASE_LRR", "did you mean 'SOLVER.BASE_LR'"]),
            (["--config-file", "{yaml}", "SOLVER.BASE_LR"], ["key and value", "['SOLVER.BASE_LR']"]),
            (["--config-file", "{yaml}", "SOLVER.BASE_LR", "fast"], ["SOLVER.BASE_LR must be float", "'fast'"]),
            (["--config-file", "{lazy}", "train.max_itr=3"], ["train.max_itr=3", "did you mean 'max_iter'"]),
            (["--config-file", "{lazy}", "train.max_iter", "3"], ["'train.max_iter'", "KEY=VALUE"]),
            (["--config-file", "{yaml}", "--coco", "n", "no.json", "d"], ["--coco n: no such file or folder: no.json"]),
            (
                ["--config-file", "{yaml}", "--voc", "n", "no", "train"],
                ["--voc n: there is no", "train.txt; splits: none"],
            ),
            (["--config-file", "{yaml}", "--voc", "n", "{voc}", "trian"], ["trian.txt; splits: test, train."]),
            (
                ["--config-file", "{yaml}", "DATASETS.TRAIN", "('mine',)"],
                ["'mine' is not registered", "--coco NAME JSON IMAGES, --voc NAME ROOT SPLIT"],
            ),
            (["--config-file", "{yaml}", "--classes", "a,b"], ["--classes", "there is no --voc"]),
            (["--config-file", "{yaml}", "--import", "no_such_module"], ["No module named 'no_such_module'"]),
            (["--config-file", "{yaml}", "--import", "no_such.py"], ["no_such.py"]),
        ],
        ids=lambda x: " ".join(x)[:50],
    )
    def test_one_message(self, command, data, yaml_file, lazy_file, tmp_path, args, messages):
        args = [a.format(yaml=yaml_file, lazy=lazy_file, voc=data / "voc") for a in args]
        status, out, err = command("train", "--output", tmp_path / "out", *args)
        assert status == 1 and not (tmp_path / "out").exists()
        for message in ("detectron2 train: ", *messages, "--traceback"):
            assert message in err
        assert "Traceback (most" not in out + err

    def test_traceback_on_request(self, command, yaml_file):
        with pytest.raises(KeyError, match=r"did you mean 'SOLVER\.BASE_LR'"):
            command("train", "--config-file", yaml_file, "--traceback", "SOLVER.BASE_LRR", "1")

    def test_class_that_is_not_named(self, command, yaml_file, voc, tmp_path):
        args = ["--config-file", yaml_file, *voc, "--classes", "disc", "--output", tmp_path]
        status, _, err = command(
            "train", *args, "DATASETS.TRAIN", "('cli_voc_train',)", "DATASETS.TEST", "()", "MODEL.MASK_ON", "False"
        )
        assert status == 1
        assert "which is not among the class names ['disc']" in err
        assert ".xml: object" in err

    def test_voc_without_objects(self, command, yaml_file, tmp_path):
        (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
        (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("")
        status, _, err = command("train", "--config-file", yaml_file, "--voc", "cli_none", tmp_path, "train")
        assert status == 1
        assert "name the classes with --classes" in err

    def test_lazy_test_set_that_is_not_registered(self, command, lazy_file, coco, tmp_path):
        args = ["--config-file", lazy_file, *coco, "--output", tmp_path, "dataloader.test.dataset.names=cli_shape"]
        status, _, err = command("train", *args)
        assert status == 1
        assert "'cli_shape' is not registered" in err
        assert "'cli_shapes'" in err
        assert not list(tmp_path.glob("*.pth"))

    def test_lazy_file_that_is_not_python(self, command, tmp_path):
        (tmp_path / "bad.py").write_text("train = dict(\n")
        status, _, err = command("train", "--config-file", tmp_path / "bad.py")
        assert status == 1
        assert f"{tmp_path / 'bad.py'}, line 1: " in err

    def test_lazy_file_without_sections(self, command, tmp_path):
        (tmp_path / "part.py").write_text("model = dict()\n")
        status, _, err = command("train", "--config-file", tmp_path / "part.py")
        assert status == 1
        assert "part.py does not define dataloader, train." in err

    def test_file_that_is_not_yaml(self, command, tmp_path):
        (tmp_path / "bad.yaml").write_text("a: [\n")
        status, _, err = command("train", "--config-file", tmp_path / "bad.yaml")
        assert status == 1
        assert "bad.yaml is not valid YAML" in err

    def test_no_config(self, capsys, command):
        with pytest.raises(SystemExit) as exit_:
            command("train")
        assert exit_.value.code == 2
        assert "--config-file" in capsys.readouterr().err


def test_the_largest_batch_needs_a_gpu(command, yaml_file, coco, tmp_path):
    base = ["train", "--config-file", yaml_file, *coco, "--output", tmp_path / "o"]
    status, _, err = command(*base, "--auto-batch", "MODEL.DEVICE", "cpu")
    assert status == 1 and "--auto-batch finds the largest batch that fits into the memory of a GPU" in err
    status, _, err = command(*base, "--scale-lr")
    assert status == 1 and "give both" in err
    status, _, err = command(*base, "--auto-batch", "--resume")
    assert status == 1 and "leave it out" in err
    assert not (tmp_path / "o" / "config.yaml").exists()


def test_a_training_that_torchrun_restarts_keeps_its_batch(command, yaml_file, coco, tmp_path, monkeypatch):
    def choose(cfg, scale_lr, trainer):
        cfg.defrost()
        cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR = 3, 0.25
        return "chosen"

    monkeypatch.setattr(train, "set_largest_batch", choose)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    base = ["train", "--config-file", yaml_file, *coco, "--output", tmp_path, "--auto-batch", "SOLVER.MAX_ITER", 1]
    assert command(*base)[0] == 0
    monkeypatch.setattr(train, "set_largest_batch", None)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    status, out, err = command(*base[:-1], 2)
    assert status == 0, err
    assert "SOLVER.IMS_PER_BATCH is 3, as when this training was started." in out
    assert "(restart 1): it goes on from its last checkpoint." in out and "Starting training from iteration 1" in out
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["SOLVER"]["BASE_LR"] == 0.25
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    status, _, err = command(*base)
    assert status == 1 and "holds the results of an earlier training" in err
