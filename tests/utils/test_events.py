import json
import logging
import math

import numpy as np
import pytest
import torch

from detectron2.utils import events, writers
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
    has_event_storage,
)
from tests.waits import Waits


def test_without_a_storage_the_helpers_do_nothing_and_getting_one_raises():
    events.put_scalar("loss", 1.0)
    events.put_image("image", np.zeros((3, 2, 2)))
    events.put_histogram("weights", torch.ones(3))
    assert not has_event_storage()
    with pytest.raises(RuntimeError, match="with EventStorage"):
        get_event_storage()


def test_an_empty_storage():
    with EventStorage(7) as storage:
        assert storage.iter == storage.iteration == storage._iter == 7
        assert storage.latest() == {}
        assert storage.latest_with_smoothing_hint() == {}
        assert dict(storage.histories()) == {}
        assert storage.smoothing_hints() == {}
        assert storage.vis_data == storage._vis_data == storage.histograms == storage._histograms == []
        with pytest.raises(KeyError, match="nothing_here"):
            storage.history("nothing_here")


def test_storages_nest():
    with EventStorage() as outer:
        with EventStorage() as inner:
            assert get_event_storage() is inner
            events.put_scalar("x", 1)
        assert get_event_storage() is outer is events._CURRENT_STORAGE_STACK[-1]
    assert "x" in inner.latest()
    assert "x" not in outer.latest()
    assert not has_event_storage()


def test_the_storage_is_left_when_training_raises():
    with pytest.raises(ZeroDivisionError), EventStorage():
        _ = 1 / 0
    assert not has_event_storage()


@pytest.mark.parametrize(
    "value",
    [
        2.5,
        np.float32(2.5),
        np.array(2.5),
        torch.tensor(2.5),
        torch.tensor([2.5]),
        torch.tensor(2.5, dtype=torch.bfloat16),
        torch.tensor(2.5, requires_grad=True) * 1,
    ],
)
def test_scalars_of_all_kinds_become_plain_numbers(value):
    with EventStorage(3) as storage:
        storage.put_scalar("x", value)
        number, iteration = storage.latest()["x"]
    assert (number, iteration) == (2.5, 3)
    assert type(number) is float


def test_a_tensor_with_several_elements_is_refused():
    with EventStorage() as storage, pytest.raises(ValueError, match=r"'x'.*\(3,\)"):
        storage.put_scalar("x", torch.zeros(3))


def test_putting_tensors_reads_none_of_them_and_reading_takes_one_transfer():
    values = [torch.tensor(float(index)) for index in range(10)]
    with EventStorage() as storage, Waits() as waits:
        for index, value in enumerate(values):
            storage.put_scalar(f"x{index % 2}", value)
        assert waits.found == []
        assert [value for value, _ in storage.history("x1").values()] == [1.0, 3.0, 5.0, 7.0, 9.0]
        assert storage.latest()["x0"][0] == 8.0
    assert waits.found == ["tolist"]


def test_in_place_changes_after_a_put_do_not_reach_the_record():
    loss = torch.tensor(1.0)
    with EventStorage() as storage:
        storage.put_scalar("loss", loss)
        loss += 5
        assert storage.latest()["loss"][0] == 1.0


def test_large_counts_keep_every_digit():
    with EventStorage() as storage:
        storage.put_scalar("float", torch.tensor(0.5))
        storage.put_scalar("count", torch.tensor(2**24 + 1))
        assert storage.latest()["count"][0] == 2**24 + 1


def test_pending_tensors_are_bounded(monkeypatch):
    monkeypatch.setattr("detectron2.utils.events._MAX_PENDING", 4)
    with EventStorage() as storage:
        for _ in range(10):
            storage.put_scalar("x", torch.tensor(1.0))
        assert len(storage._pending) < 4


def test_order_of_numbers_and_tensors_is_kept():
    with EventStorage() as storage:
        for index, value in enumerate([1.0, torch.tensor(2.0), 3.0, torch.tensor(4)]):
            storage.iter = index
            storage.put_scalar("x", value)
        assert storage.history("x").values() == [(1.0, 0), (2.0, 1), (3.0, 2), (4.0, 3)]


def test_smoothing_takes_the_median_over_iterations():
    with EventStorage() as storage:
        for iteration, value in enumerate([100.0, 1.0, 2.0, 9.0]):
            storage.iter = iteration
            storage.put_scalars(noisy=value)
            storage.put_scalars(exact=value, smoothing_hint=False)
        smooth = storage.latest_with_smoothing_hint(3)
        assert smooth == {"noisy": (2.0, 3), "exact": (9.0, 3)}
        assert type(smooth["noisy"][0]) is float
        assert storage.smoothing_hints() == {"noisy": True, "exact": False}
        assert storage.count_samples("noisy", 3) == 3


def test_a_scalar_put_rarely_is_not_mixed_with_old_values():
    with EventStorage() as storage:
        for iteration in (0, 1000, 2000):
            storage.iter = iteration
            storage.put_scalar("AP", float(iteration))
        assert storage.count_samples("AP", 20) == 1
        assert storage.latest_with_smoothing_hint(20)["AP"] == (2000.0, 2000)


def test_changing_the_hint_is_refused():
    with EventStorage() as storage:
        storage.put_scalar("x", 1, smoothing_hint=False)
        with pytest.raises(ValueError, match="smoothing_hint"):
            storage.put_scalar("x", 1)


def test_step_and_explicit_iterations():
    with EventStorage() as storage:
        storage.step()
        storage.put_scalar("x", 1.0)
        storage.put_scalar("y", 1.0, cur_iter=40)
        assert (storage.latest()["x"][1], storage.latest()["y"][1]) == (1, 40)


def test_name_scope_prefixes_everything_and_ends():
    with EventStorage() as storage:
        with storage.name_scope("val/"):
            storage.put_scalar("loss", 1)
            storage.put_image("image", np.zeros((3, 1, 1)))
            storage.put_histogram("h", torch.zeros(2))
        storage.put_scalar("loss", 2)
        assert set(storage.latest()) == {"val/loss", "loss"}
        assert storage.vis_data[0][0] == "val/image"
        assert storage.histograms[0]["tag"] == "val/h"


@pytest.mark.parametrize("values", [[], [3.0], [0.0, 1.0, 1.0, 4.0]])
def test_histogram(values):
    with EventStorage(5) as storage:
        storage.put_histogram("h", torch.tensor(values), bins=4)
        (histogram,) = storage.histograms
        storage.clear_histograms()
        assert storage.histograms == []
    array = np.array(values)
    assert histogram["num"] == len(values)
    assert histogram["sum"] == pytest.approx(array.sum())
    assert histogram["sum_squares"] == pytest.approx((array**2).sum())
    assert len(histogram["bucket_limits"]) == len(histogram["bucket_counts"]) == 4
    assert sum(histogram["bucket_counts"]) == len(values)
    assert histogram["global_step"] == 5
    if len(values) > 1:
        assert histogram["bucket_counts"] == np.histogram(array, bins=4)[0].tolist()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("good", [[], [1.0, 2.0]])
def test_histogram_of_values_that_are_not_finite(bad, good, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    with EventStorage() as storage:
        storage.put_histogram("gradients", torch.tensor([bad, *good]), bins=2)
        (histogram,) = storage.histograms
    assert (histogram["num"], histogram["sum"]) == (len(good), sum(good))
    assert histogram["bucket_counts"] == ([1, 1] if good else [0, 0])
    assert f"1 of the {1 + len(good)} values of histogram 'gradients'" in caplog.text


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_json_writer_writes_one_line_per_iteration_and_nothing_twice(tmp_path):
    path = tmp_path / "metrics.json"
    writer = JSONWriter(str(path), window_size=2)
    with EventStorage() as storage:
        writer.write()
        assert path.read_text() == ""
        storage.put_scalar("loss", torch.tensor(4.0))
        storage.step()
        storage.put_scalar("loss", torch.tensor(2.0))
        storage.put_scalar("lr", 0.5, smoothing_hint=False)
        storage.put_scalar("AP", 30.0, cur_iter=0)
        writer.write()
        writer.write()
        storage.put_scalar("late", 1.0)  # after the write, at the same iteration
        writer.write()
    writer.close()
    assert read_lines(path) == [
        {"iteration": 0, "AP": 30.0},
        {"iteration": 1, "loss": 3.0, "lr": 0.5},
        {"iteration": 1, "late": 1.0},
    ]


def test_json_writer_appends_when_training_is_resumed(tmp_path):
    path = tmp_path / "metrics.json"
    for start in (0, 10):
        with EventStorage(start) as storage:
            writer = JSONWriter(path)
            storage.put_scalar("loss", float(start))
            writer.write()
            writer.close()
    assert [line["iteration"] for line in read_lines(path)] == [0, 10]


def test_tensorboard_writer(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "tb"
    writer = TensorboardXWriter(str(folder), window_size=20)
    assert not folder.exists()
    with EventStorage(2) as storage:
        writer.write()
        assert not folder.exists()
        storage.put_scalar("loss", torch.tensor(1.5))
        storage.put_image("image", np.zeros((3, 4, 5), np.uint8))
        storage.put_histogram("h", torch.arange(5.0))
        writer.write()
        assert storage.vis_data == storage.histograms == []
    writer.close()
    accumulator = EventAccumulator(str(folder)).Reload()
    assert [(event.step, event.value) for event in accumulator.Scalars("loss")] == [(2, 1.5)]
    assert accumulator.Images("image")[0].width == 5
    assert accumulator.Tags()["histograms"] == ["h"]


def test_closing_an_unused_tensorboard_writer_creates_nothing(tmp_path):
    TensorboardXWriter(str(tmp_path / "tb")).close()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def printed(caplog, monkeypatch):
    """The text of the lines that were logged, whatever loggers other tests have set up."""
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    caplog.set_level(logging.INFO, logger="detectron2.utils.events")
    return lambda: [record.getMessage() for record in caplog.records]


def test_printer_with_nothing_known(printed):
    with EventStorage():
        CommonMetricPrinter().write()
        CommonMetricPrinter(10).write()
    assert printed() == ["iter: 0  lr: N/A", "eta: N/A  iter: 0  lr: N/A"]


def test_printer_shows_losses_times_and_throughput(printed):
    printer = CommonMetricPrinter(100, images_per_iter=8)
    with EventStorage(49) as storage:
        storage.put_scalars(total_loss=torch.tensor(1.5), time=0.5, data_time=0.25)
        storage.put_scalar("lr", 0.02, smoothing_hint=False)
        printer.write()
        assert storage.latest()["eta_seconds"] == (25.0, 49)
        storage.iter = 100
        printer.write()  # training is over
    (line,) = printed()
    for field in ("eta: 0:00:25", "iter: 49", "total_loss: 1.5", "time: 0.5000", "data_time: 0.2500", "lr: 0.02"):
        assert field in line
    assert "images/s: 16.0" in line


def test_printer_shows_the_sum_of_the_validation_loss_once(printed):
    printer = CommonMetricPrinter(100)
    with EventStorage(9) as storage:
        storage.put_scalars(total_loss=1.5)
        storage.put_scalar("validation/total_loss", 2.5, smoothing_hint=False)
        storage.put_scalar("validation/loss_cls", 0.5, smoothing_hint=False)
        printer.write()
        storage.iter = 19
        storage.put_scalars(total_loss=1.25)
        printer.write()
    first, second = printed()
    assert "total_loss: 1.5  validation/total_loss: 2.5" in first
    assert "validation" not in second and "validation/loss_cls" not in first


def test_printer_measures_when_nobody_else_does(printed, monkeypatch):
    clock = iter([0.0, 20.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    printer = CommonMetricPrinter(101)
    with EventStorage() as storage:
        printer.write()
        storage.iter = 10  # 2 seconds per iteration, 90 to come
        printer.write()
    assert "eta: 0:03:00" in printed()[1]


def test_printer_survives_a_broken_clock(printed):
    with EventStorage() as storage:
        storage.put_scalar("time", math.nan)
        CommonMetricPrinter(10).write()
    assert "eta: N/A" in printed()[0]


def test_writers_share_the_base_class():
    for writer in (JSONWriter, TensorboardXWriter, CommonMetricPrinter):
        assert issubclass(writer, EventWriter)
    with pytest.raises(NotImplementedError):
        EventWriter().write()
    EventWriter().close()


def test_json_file_is_made_by_the_first_write(tmp_path):
    path = tmp_path / "metrics.json"
    JSONWriter(path).close()
    assert not path.exists()
    with EventStorage() as storage:
        writer = JSONWriter(path)
        storage.put_scalar("x", 1.0)
        writer.write()
        writer.close()
    assert path.read_text() == '{"iteration": 0, "x": 1.0}\n'


def test_writers_are_reachable_from_here():
    namespace = {}
    exec("from detectron2.utils.events import *", namespace)
    assert [name for name in writers.__all__ if namespace[name] is not getattr(writers, name)] == []
    assert namespace["_CURRENT_STORAGE_STACK"] is events._CURRENT_STORAGE_STACK
    with pytest.raises(AttributeError, match="NoSuchWriter"):
        _ = events.NoSuchWriter


def test_values_of_an_earlier_run_count_in_medians_and_are_not_shown_again():
    assert EventStorage().recent() == {}
    with EventStorage() as first:
        for i in range(30):
            first.iter = i
            first.put_scalar("loss", float(i))
            first.put_scalar("lr", 0.1, smoothing_hint=False)
    assert first.recent(3) == {"loss": [(27.0, 27), (28.0, 28), (29.0, 29)]}
    with EventStorage(30) as second:
        second.add_earlier({"loss": [[27.0, 27], [28.0, 28], [29.0, 29]]})
        assert second.latest() == {}
        second.put_scalar("loss", 0.0)
        assert second.latest_with_smoothing_hint(3) == {"loss": (28.0, 30)}
