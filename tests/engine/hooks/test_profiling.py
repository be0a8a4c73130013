"""Profiles and memory statistics."""

import json

from detectron2.engine import hooks
from tests.engine.hooks.toy import trainer


class TestProfilers:
    def test_traces_are_written(self, tmp_path):
        t = trainer()
        t.register_hooks([hooks.AutogradProfiler(lambda t: t.iter == 1, str(tmp_path), use_cuda=False)])
        t.train(0, 3)
        assert "traceEvents" in json.loads((tmp_path / "profiler-trace-iter1.json").read_text())
        assert sorted(p.name for p in tmp_path.iterdir()) == ["profiler-summary-iter1.txt", "profiler-trace-iter1.json"]

    def test_trace_for_tensorboard(self, tmp_path):
        t = trainer()
        t.register_hooks([hooks.TorchProfiler(lambda t: t.iter == 0, str(tmp_path))])
        t.train(0, 1)
        assert list((tmp_path / "log").rglob("*.json"))

    def test_memory_without_cuda(self):
        t = trainer()
        t.register_hooks([hooks.TorchMemoryStats(period=1)])
        t.train(0, 2)
