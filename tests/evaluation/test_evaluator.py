import io

import pytest
import torch
from torch import nn

import detectron2.evaluation.evaluator as evaluator_module
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_context, inference_on_dataset


class Recorder(DatasetEvaluator):
    def __init__(self, task="count"):
        self.task = task
        self.seen = []
        self.resets = 0

    def reset(self):
        self.seen = []
        self.resets += 1

    def process(self, inputs, outputs):
        self.seen.append((inputs, outputs))

    def evaluate(self):
        return {self.task: {"n": len(self.seen)}}


class Double(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.modes = []

    def forward(self, x):
        self.modes.append((self.training, torch.is_grad_enabled()))
        return x * self.weight


@pytest.mark.parametrize("batches", [[], [1.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]])
def test_loop_feeds_every_batch_once(batches):
    recorder, model = Recorder(), Double()
    assert inference_on_dataset(model, batches, recorder) == {"count": {"n": len(batches)}}
    assert recorder.resets == 1
    assert [(i, float(o)) for i, o in recorder.seen] == [(x, 2 * x) for x in batches]
    assert model.modes == [(False, False)] * len(batches)


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_restored_after_an_error(training):
    model = Double().train(training)
    with pytest.raises(TypeError):
        inference_on_dataset(model, [None], None)
    assert model.training is training
    with pytest.raises(KeyError), inference_context(model):
        assert not model.training
        raise KeyError
    assert model.training is training
    assert torch.is_grad_enabled()


def test_functions_and_missing_evaluators_are_accepted():
    assert inference_on_dataset(lambda x: x, [1, 2], None) == {}
    both = inference_on_dataset(lambda x: x, [1, 2], [Recorder("a"), Recorder("b")])
    assert both == {"a": {"n": 2}, "b": {"n": 2}}


def test_an_evaluator_that_returns_none_gives_an_empty_result():
    assert inference_on_dataset(lambda x: x, [1], DatasetEvaluator()) == {}


def test_callbacks_run_in_order():
    calls = []
    names = ("on_start", "before_inference", "after_inference", "on_end")
    inference_on_dataset(
        lambda x: calls.append("model"),
        [0, 0],
        None,
        callbacks={name: lambda name=name: calls.append(name) for name in names},
    )
    step = ["before_inference", "model", "after_inference"]
    assert calls == ["on_start", *step, *step, "on_end"]


def test_unknown_callback_is_an_error():
    with pytest.raises(ValueError, match="on_begin"):
        inference_on_dataset(lambda x: x, [], None, callbacks={"on_begin": print})


def test_two_evaluators_may_not_report_the_same_task():
    evaluators = DatasetEvaluators([Recorder("bbox"), Recorder("bbox")])
    evaluators.reset()
    with pytest.raises(ValueError, match="'bbox'"):
        evaluators.evaluate()


def test_members_without_results_are_skipped():
    assert DatasetEvaluators([]).evaluate() == {}
    assert DatasetEvaluators([DatasetEvaluator(), Recorder()]).evaluate() == {"count": {"n": 0}}


def test_timing_is_logged(caplog):
    with caplog.at_level("INFO", logger="detectron2.evaluation.evaluator"):
        inference_on_dataset(lambda x: x, list(range(8)), None)
    assert "for 8 batches" in caplog.text
    assert "seconds per batch: data" in caplog.text


class _Clock:
    """A clock on which a second passes each time it is read."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        self.now += 1.0
        return self.now


class _Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_line_in_a_terminal_and_log_lines_elsewhere(monkeypatch, caplog, terminal):
    stream = _Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(evaluator_module, "time", _Clock())
    monkeypatch.setattr(evaluator_module.sys, "stderr", stream)
    with caplog.at_level("INFO", logger="detectron2.evaluation.evaluator"):
        inference_on_dataset(lambda x: x, [[0, 1]] * 12, None)
    logged = [r.getMessage() for r in caplog.records if "ETA" in r.getMessage()]
    drawn = stream.getvalue()
    assert bool(logged) is not terminal and bool(drawn) is terminal
    text = drawn if terminal else logged[-1]
    assert "/12 batches" in text and "images/s" in text
    if terminal:
        assert drawn.count("\r") > 3 and drawn.endswith("\x1b[K") and "\n" not in drawn


def test_nothing_is_drawn_when_the_log_is_off(monkeypatch, caplog):
    stream = _Terminal()
    monkeypatch.setattr(evaluator_module, "time", _Clock())
    monkeypatch.setattr(evaluator_module.sys, "stderr", stream)
    with caplog.at_level("WARNING", logger="detectron2.evaluation.evaluator"):
        inference_on_dataset(lambda x: x, [[0]] * 12, None)
    assert stream.getvalue() == ""


def test_the_line_is_taken_away_after_an_error(monkeypatch, caplog):
    stream = _Terminal()
    monkeypatch.setattr(evaluator_module, "time", _Clock())
    monkeypatch.setattr(evaluator_module.sys, "stderr", stream)
    with caplog.at_level("INFO", logger="detectron2.evaluation.evaluator"), pytest.raises(ZeroDivisionError):
        inference_on_dataset(lambda x: 1 / x[0], [[1]] * 9 + [[0]], None)
    assert stream.getvalue().endswith("\x1b[K")
