import io

import pytest
import torch
from torch import nn

import detectron2.evaluation.evaluator as evaluator_module
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_context, inference_on_dataset
from detectron2.evaluation.evaluator import explain_weights
from detectron2.layers import Conv2d
from detectron2.structures import Instances


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


class Failing(DatasetEvaluator):
    def process(self, inputs, outputs):
        raise KeyError("sem_seg")


@pytest.mark.parametrize(
    ("model", "evaluator", "error", "text"),
    [
        (lambda x: 1 / 0, None, ZeroDivisionError, "The model failed on batch 0, "),
        (lambda x: x, Failing(), KeyError, "Failing failed on batch 0, "),
        (lambda x: x, [Recorder(), Failing()], KeyError, "Recorder, Failing failed on batch 0, "),
    ],
)
def test_a_failure_names_the_images(caplog, model, evaluator, error, text):
    batch = [{"file_name": "a/b.jpg", "image_id": 7}, {"file_name": "c.jpg", "image_id": "x"}]
    with pytest.raises(error):
        inference_on_dataset(model, [batch], evaluator)
    assert text + "a/b.jpg (image_id 7), c.jpg (image_id 'x'): " + error.__name__ in caplog.text


def test_a_failure_on_batches_of_another_kind(caplog):
    with pytest.raises(ZeroDivisionError):
        inference_on_dataset(lambda x: 1 / x, [1, 0], None)
    assert "The model failed on batch 1: ZeroDivisionError: division by zero" in caplog.text


@pytest.mark.parametrize("evaluator", ["coco", DatasetEvaluator, 3])
def test_things_that_are_no_evaluator(evaluator):
    with pytest.raises(TypeError, match="needs a DatasetEvaluator, several, or None"):
        inference_on_dataset(lambda x: x, [], evaluator)


def test_a_loader_without_length_is_an_error():
    with pytest.raises(TypeError, match="needs a data loader with a length, and generator has none"):
        inference_on_dataset(lambda x: x, (x for x in [1]), None)


def test_parts_of_a_data_set():
    """What insists on all images can be asked for some."""

    class Whole(DatasetEvaluator):
        def evaluate(self):
            raise ValueError("images are missing")

        def evaluate_part(self):
            return {"part": {"AP": 1.0}}

    class Foreign:
        def evaluate(self):
            return {"other": {"AP": 2.0}}

    assert DatasetEvaluator().evaluate_part() is None
    assert DatasetEvaluators([Whole(), Foreign()]).evaluate_part() == {"part": {"AP": 1.0}, "other": {"AP": 2.0}}
    with pytest.raises(ValueError, match="missing"):
        DatasetEvaluators([Whole()]).evaluate()


# --- a model that finds nothing --------------------------------------------------------------------------------------


class Detector(nn.Module):
    """Finds an object where the score is above a threshold."""

    def __init__(self, score, threshold=0.5):
        super().__init__()
        self.score = nn.Parameter(torch.tensor([score]))
        self.test_score_thresh = threshold
        self.calls = 0

    def forward(self, batch):
        self.calls += 1
        scores = self.score.detach()[self.score.detach() > self.test_score_thresh]
        return [{"instances": Instances((4, 4), scores=scores)} for _ in batch]


def warnings_of(caplog, model, batches, evaluator=None):
    caplog.clear()
    inference_on_dataset(model, batches, evaluator)
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


def test_why_nothing_is_found(caplog):
    model = Detector(0.03)
    (text,) = warnings_of(caplog, model, [[0], [0, 0]])
    assert "found nothing on any of 3 images" in text
    assert "highest score is 0.03; the threshold is 0.5" in text and "Scores without it: 0.01 to 0.05: 1" in text
    assert "No checkpoint was loaded" in text
    assert model.calls == 3 and model.test_score_thresh == 0.5


@pytest.mark.parametrize(
    ("loaded", "text"),
    [(0, "Of its weights 0.0% were loaded from w.pth"), (999, "99.9% were loaded"), (1000, "All of its weights were")],
)
def test_share_of_weights_that_were_loaded(caplog, loaded, text):
    model = Detector(0.03)
    model._weights_record = {"source": "w.pth", "loaded": loaded, "total": 1000}
    assert text in warnings_of(caplog, model, [[0]])[0]


def test_a_model_that_diverged(caplog):
    (text,) = warnings_of(caplog, Detector(float("nan")), [[0]])
    assert "Even without the score threshold (0.5) nothing is found" in text
    assert "1 of its tensors hold NaN or infinite values, such as score" in text


def test_scores_that_cannot_be_seen(caplog):
    class Full(Detector):
        def forward(self, batch):
            if self.test_score_thresh == 0:
                raise RuntimeError("out of memory")
            return super().forward(batch)

    model = Full(0.1)
    assert "cannot be seen: out of memory" in warnings_of(caplog, model, [[0]])[0]
    assert model.test_score_thresh == 0.5


@pytest.mark.parametrize("batches", [[], [[0]], [[0], [0]]])
def test_nothing_is_said_where_something_is_found(caplog, batches):
    assert not warnings_of(caplog, Detector(0.9), batches)


@pytest.mark.parametrize(
    ("output", "is_silent"),
    [
        ({"panoptic_seg": (torch.zeros(2, 2), [])}, True),
        ({"panoptic_seg": (torch.zeros(2, 2), [{"id": 1}])}, False),
        ({"panoptic_seg": (torch.zeros(2, 2), None)}, False),
        ({"sem_seg": torch.zeros(1, 2, 2)}, False),
        ("text", False),
    ],
)
def test_other_outputs(caplog, output, is_silent):
    assert bool(warnings_of(caplog, lambda batch: [output for _ in batch], [[0]])) is is_silent


def test_a_function_has_no_weights(caplog):
    nothing = Instances((4, 4), scores=torch.zeros(0))
    texts = warnings_of(caplog, lambda batch: [{"instances": nothing}], [[0]])
    assert texts == ["The model found nothing on any of 1 images."]


def test_the_checkpointer_says_what_it_loaded(caplog, tmp_path):
    model = nn.ModuleDict({"head": nn.Linear(1, 3, bias=False), "body": nn.Linear(1, 1, bias=False)})
    torch.save({"model": {"head.weight": torch.ones(3, 1)}}, tmp_path / "w.pth")
    DetectionCheckpointer(model).load(str(tmp_path / "w.pth"))
    assert f"Of its weights 75.0% were loaded from {tmp_path / 'w.pth'}" in explain_weights(model)


class Seen(DatasetEvaluator):
    """Keeps what the model returned."""

    def reset(self):
        self.outputs = []

    def process(self, inputs, outputs):
        self.outputs.append(outputs.clone())

    def evaluate(self):
        return {"outputs": self.outputs}


def test_a_model_of_this_package_runs_in_its_optimized_form(monkeypatch):
    torch.manual_seed(0)
    model = Conv2d(3, 4, 3, norm=nn.BatchNorm2d(4)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    batches = [torch.rand(1, 3, 5, 6) for _ in range(2)]
    with torch.no_grad(), inference_context(model):
        expected = [model(batch) for batch in batches]
    monkeypatch.setattr(nn.BatchNorm2d, "forward", lambda *args: pytest.fail("the norm was run"))
    found = inference_on_dataset(model, batches, Seen())["outputs"]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert model.training and model.norm is not None
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_changes_between_batches_count():
    model, batches = Conv2d(1, 1, 1, bias=False), [torch.ones(1, 1, 1, 1)] * 3

    def double():
        model.weight.data.mul_(2)

    model.weight.data.fill_(1)
    outputs = inference_on_dataset(model, batches, Seen(), {"after_inference": double})["outputs"]
    assert [output.item() for output in outputs] == [1, 2, 4]


def test_what_a_model_of_another_package_keeps_is_on_the_model_itself():
    class Counting(nn.Module):
        calls = 0

        def forward(self, batch):
            self.calls += 1
            return batch

    model = Counting()
    inference_on_dataset(model, [torch.zeros(1)] * 3, Seen())
    assert model.calls == 3
