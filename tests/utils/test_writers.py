"""The writers that are chosen by name: a table, services, a line on the terminal."""

import csv
import errno
import io
import logging
import sys
import types

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from detectron2.config import CfgNode
from detectron2.utils.events import (
    DEFAULT_WRITERS,
    CommonMetricPrinter,
    CSVWriter,
    EventStorage,
    JSONWriter,
    MLflowWriter,
    ProgressLine,
    TensorboardXWriter,
    WandbWriter,
    make_writers,
)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_without_scalars_is_not_made(tmp_path):
    writer = CSVWriter(tmp_path / "metrics.csv")
    with EventStorage():
        writer.write()
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_a_table_gets_a_column_for_each_scalar_whenever_it_comes(tmp_path):
    path = tmp_path / "metrics.csv"
    writer = CSVWriter(path)
    with EventStorage() as storage:
        storage.put_scalar("loss", torch.tensor(2.5))
        writer.write()
        writer.write()
        storage.iter = 1
        storage.put_scalars(loss=1.5, accuracy=0.5)
        writer.write()
        storage.iter = 2
        storage.put_scalar('odd, "name"', 7.0)
        writer.write()
    assert rows_of(path) == [
        {"iteration": "0", "loss": "2.5", "accuracy": "", 'odd, "name"': ""},
        {"iteration": "1", "loss": "2.0", "accuracy": "0.5", 'odd, "name"': ""},  # a median of 2.5 and 1.5
        {"iteration": "2", "loss": "", "accuracy": "", 'odd, "name"': "7.0"},
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_table_is_continued_and_a_cut_row_removed(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("iteration,b,a\n0,1.0,2.0\n1,3.")
    with EventStorage(1) as storage:
        storage.put_scalars(a=5.0, c=6.0)
        CSVWriter(path).write()
    assert path.read_text() == "iteration,b,a,c\n0,1.0,2.0,\n1,,5.0,6.0\n"


def test_another_table_is_not_written_to(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("name,age\n")
    with EventStorage() as storage, pytest.raises(ValueError, match=r"metrics\.csv.*iteration.*name"):
        storage.put_scalar("x", 1.0)
        CSVWriter(path).write()


class StandInForWandb(types.ModuleType):
    """Keeps what is sent."""

    def __init__(self, run=None):
        super().__init__("wandb")
        self.run, self.step, self.log_calls, self.started, self.finished = run, 0, [], [], 0

    def init(self, **arguments):
        self.started.append(arguments)
        return self

    def log(self, data, step):
        self.log_calls.append((step, data))

    def finish(self):
        self.finished += 1

    @staticmethod
    def Image(array):
        return ("image", array.shape, array.dtype, int(array.max()))


@pytest.fixture
def wandb(monkeypatch):
    module = StandInForWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.mark.parametrize("call", ["__init__", "add_scalar", "close"])
def test_tensorboard_on_a_full_disk(tmp_path, monkeypatch, call):
    """The error may be that of its thread, which comes with a later call."""
    import torch.utils.tensorboard as module

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    fake = {name: lambda *args, **kwargs: None for name in ("__init__", "add_scalar", "close")} | {call: fail}
    monkeypatch.setattr(module, "SummaryWriter", type("SummaryWriter", (), fake))
    writer = TensorboardXWriter(str(tmp_path))
    with EventStorage(0) as storage, pytest.raises(OSError, match=f"{tmp_path} cannot be written, the disk is full"):
        writer.write()  # nothing yet
        storage.put_scalar("loss", 1.0)
        writer.write()
        writer.close()


def test_wandb(wandb):
    writer = WandbWriter(config={"a": 1}, project="p")
    assert wandb.started == []
    with EventStorage(4) as storage:
        writer.write()
        assert wandb.started == []  # nothing to show: no run
        storage.put_scalar("loss", torch.tensor(1.5))
        storage.put_image("image", torch.full((3, 2, 5), 0.5))
        writer.write()
        storage.put_scalar("AP", 30.0, cur_iter=2)
        writer.write()
        assert len(storage.vis_data) == 1  # left for others
    writer.close()
    writer.close()
    assert wandb.started == [{"config": {"a": 1}, "project": "p"}]
    picture = ("image", (2, 5, 3), np.uint8, 128)
    assert wandb.log_calls[0] == (4, {"iteration": 4, "loss": 1.5, "image": picture})
    # An older iteration goes to the newest step: wandb's steps only rise.
    assert (4, {"iteration": 2, "AP": 30.0}) in wandb.log_calls
    assert wandb.finished == 1


def test_a_run_of_wandb_that_is_open_is_used_and_left_open(monkeypatch):
    run = StandInForWandb()
    run.step = 100
    module = StandInForWandb(run)
    monkeypatch.setitem(sys.modules, "wandb", module)
    writer = WandbWriter()
    with EventStorage() as storage:
        storage.put_scalar("loss", 1.0)
        writer.write()
    writer.close()
    assert run.log_calls == [(100, {"iteration": 0, "loss": 1.0})]
    assert (module.started, run.finished) == ([], 0)


class StandInForMLflow(types.ModuleType):
    """Keeps what is sent."""

    def __init__(self, active=None):
        super().__init__("mlflow")
        self.active, self.calls = active, []

    def active_run(self):
        return self.active

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self.calls.append((name, *args, kwargs))


@pytest.mark.parametrize("active", [None, "a run of the caller"])
def test_mlflow(monkeypatch, active):
    module = StandInForMLflow(active)
    monkeypatch.setitem(sys.modules, "mlflow", module)
    writer = MLflowWriter(config={"a": 1}, run_name="r")
    with EventStorage(3) as storage:
        writer.write()
        assert module.calls == []
        storage.put_scalar("bbox/AP-traffic light (red)", 1.5)
        storage.put_image("an image?", np.full((3, 2, 5), 9, np.uint8))
        writer.write()
    writer.close()
    writer.close()
    calls = {name: (args, kwargs) for name, *args, kwargs in module.calls}
    expected = ["log_dict", "log_metrics", "log_image"]
    assert [c[0] for c in module.calls] == (expected if active else ["start_run", *expected, "end_run"])
    assert calls["log_dict"] == ([{"a": 1}, "config.yaml"], {})
    assert calls["log_metrics"] == ([{"bbox/AP-traffic light _red_": 1.5}], {"step": 3})
    (array, name), _ = calls["log_image"]
    assert (array.shape, name) == ((2, 5, 3), "images/an image__0000003.png")
    if not active:
        assert calls["start_run"] == ([], {"run_name": "r"})


def test_configs_of_both_kinds_become_plain(wandb):
    cfg = CfgNode({"A": {"B": (1, 2.5)}, "C": None})
    lazy = OmegaConf.create({"a": {"b": [1, "x"]}, "c": "${a.b[0]}"})
    for config, expected in ((cfg, {"A": {"B": [1, 2.5]}, "C": None}), (lazy, {"a": {"b": [1, "x"]}, "c": 1})):
        writer = WandbWriter(config=config)
        with EventStorage() as storage:
            storage.put_scalar("x", 1.0)
            writer.write()
        assert wandb.started[-1]["config"] == expected
        assert type(next(iter(wandb.started[-1]["config"].values()))) is dict


@pytest.mark.parametrize(("cls", "package"), [(WandbWriter, "wandb"), (MLflowWriter, "mlflow")])
def test_a_package_that_is_missing_is_named_at_once(monkeypatch, cls, package):
    monkeypatch.setitem(sys.modules, package, None)  # importing it raises
    with pytest.raises(ImportError, match=rf"pip install 'detectron2\[{package}\]'"):
        cls()


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def screen(monkeypatch):
    """A terminal that the log also goes to."""
    stream = Terminal()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("detectron2")
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "level", logging.INFO)
    return stream


ERASE = "\r\x1b[K"


def test_progress_line(screen, monkeypatch):
    monkeypatch.setattr("shutil.get_terminal_size", lambda: types.SimpleNamespace(columns=150))
    handlers = list(logging.getLogger("detectron2").handlers)
    line = ProgressLine(100, images_per_iter=4, stream=screen)
    with EventStorage(24) as storage:
        storage.put_scalars(total_loss=1.25, loss_cls=0.5, time=0.5, data_time=0.25)
        storage.put_scalar("lr", 0.02, smoothing_hint=False)
        line.write()
        bar = "[######..................]  25% 25/100"
        known = "eta: 0:00:37  total_loss: 1.25  s/iter: 0.5  data: 50%  lr: 0.02  images/s: 8.0"
        expected = f"{ERASE}{bar}  {known}  loss_cls: 0.5"
        assert screen.getvalue() == expected
        # A message takes the place of the line, which is drawn again below it.
        logging.getLogger("detectron2.engine").info("saved")
        logging.getLogger("detectron2.engine").info("and more")
        assert screen.getvalue() == f"{expected}{ERASE}saved\nand more\n"
        line.write()
        assert screen.getvalue().endswith(f"more\n{expected}")
        storage.iter = 100
        line.write()  # training is over
        line.close()
    assert screen.getvalue().endswith(f"more\n{expected}\n")
    assert logging.getLogger("detectron2").handlers == handlers
    line.close()
    assert not screen.getvalue().endswith("\n\n")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (8, "[##...."),
        (23, "[##......]  25% 25/100"),
        (54, "[##......]  25% 25/100  eta: 0:00:37"),
        (55, "[##......]  25% 25/100  eta: 0:00:37  total_loss: 1.25"),
        (80, "[##......]  25% 25/100  eta: 0:00:37  total_loss: 1.25  s/iter: 0.5  lr: 0.02"),
        (93, "[##......]  25% 25/100  eta: 0:00:37  total_loss: 1.25  s/iter: 0.5  lr: 0.02  images/s: 8.0"),
        (
            120,
            "[######..................]  25% 25/100  eta: 0:00:37  total_loss: 1.25  s/iter: 0.5  lr: 0.02  "
            "images/s: 8.0",
        ),
    ],
)
def test_a_progress_line_leaves_out_what_has_no_room(screen, monkeypatch, columns, expected):
    monkeypatch.setattr("shutil.get_terminal_size", lambda: types.SimpleNamespace(columns=columns))
    line = ProgressLine(100, images_per_iter=4, stream=screen)
    with EventStorage(24) as storage:
        storage.put_scalars(total_loss=1.25, time=0.5)
        storage.put_scalar("lr", 0.02, smoothing_hint=False)
        line.write()
    line.close()
    assert screen.getvalue() == f"{ERASE}{expected}\n"


def test_without_a_terminal_the_progress_is_logged(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("detectron2"), "handlers", [])  # a record is captured once
    caplog.set_level(logging.INFO, logger="detectron2.utils.events")
    stream = io.StringIO()
    line = ProgressLine(10, stream=stream)
    with EventStorage():
        line.write()
    line.close()
    assert stream.getvalue() == ""
    assert [r.getMessage() for r in caplog.records] == ["eta: N/A  iter: 0  lr: N/A"]


def test_writers_by_name(tmp_path, wandb):
    writers = make_writers(DEFAULT_WRITERS, str(tmp_path), 10, 2)
    assert [type(w) for w in writers] == [CommonMetricPrinter, JSONWriter, TensorboardXWriter]
    # TensorBoard drops the images that it has shown, so it comes last in any case.
    writers = make_writers(["tensorboard", "wandb", "csv", "progress"], str(tmp_path))
    assert [type(w) for w in writers] == [ProgressLine, CSVWriter, WandbWriter, TensorboardXWriter]
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_the_files_is_made(tmp_path):
    folder = tmp_path / "a" / "b"
    with EventStorage() as storage:
        storage.put_scalar("x", 1.0)
        for writer in make_writers(["json", "csv"], str(folder)):
            writer.write()
            writer.close()
    assert sorted(p.name for p in folder.iterdir()) == ["metrics.csv", "metrics.json"]


def test_without_tensorboard_images_do_not_pile_up(tmp_path):
    with EventStorage() as storage:
        storage.put_image("image", np.zeros((3, 2, 2)))
        storage.put_histogram("h", torch.zeros(3))
        for writer in make_writers([], str(tmp_path)):
            writer.write()
            writer.close()
        assert storage.vis_data == storage.histograms == []


@pytest.mark.parametrize("names", [["json", "jsno"], "json"])
def test_unknown_writers_are_refused(tmp_path, names):
    with pytest.raises(ValueError, match=r"jsno.*tensorboard|'json'"):
        make_writers(names, str(tmp_path))


def test_the_printed_line_shows_metrics_and_needs_no_last_iteration(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    with caplog.at_level(logging.INFO, logger="detectron2.utils.events"), EventStorage(7) as storage:
        storage.put_scalars(**{"[metric]bar": 4.0, "total_loss": 1.0, "other": 9.0})
        CommonMetricPrinter().write()
    (line,) = {message for message in caplog.messages if "iter: 7" in message}  # once for each handler
    assert "[metric]bar: 4" in line and "total_loss: 1" in line
    assert "other" not in line and "eta" not in line
