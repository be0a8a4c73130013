"""The moving average of the weights."""

import pytest
import torch

from detectron2.engine import hooks
from tests.engine.hooks.toy import Weight, weight_trainer


class TestWeightAverage:
    def test_by_hand(self, tmp_path):
        trainer, _ = weight_trainer(tmp_path)
        average = hooks.WeightAverage(trainer.model, 0.25, str(tmp_path))
        seen = []

        def evaluate():
            with average.in_place():
                seen.append(trainer.model.w.item())

        trainer.register_hooks([average, hooks.EvalHook(1, evaluate)])
        trainer.train(0, 3)
        value, expected = 0.0, []
        for t in range(3):
            d = min(0.25, (1 + t) / (10 + t))
            value = d * value + (1 - d) * (t + 1)
            expected.append(value)
        assert seen == pytest.approx(expected)
        assert trainer.model.w.item() == 3
        saved = torch.load(tmp_path / "model_final_ema.pth", weights_only=True)
        assert saved["model"]["w"].item() == pytest.approx(value)
        assert saved["iteration"] == 2
        assert set(average.state_dict()["average"]) == {
            "w", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"
        }  # fmt: skip

    def test_best_checkpoint_holds_what_was_evaluated(self, tmp_path):
        trainer, keeper = weight_trainer(tmp_path)
        average = hooks.WeightAverage(trainer.model, 0.5)
        best = hooks.BestCheckpointer(1, keeper, "a/b", average=average)
        trainer.register_hooks([average, hooks.EvalHook(1, lambda: {"a": {"b": 1.0}}), best])
        trainer.train(0, 2)
        saved = torch.load(tmp_path / "model_best.pth", weights_only=True)
        assert saved["model"]["w"].item() == pytest.approx(0.9)  # 0.1 * 0 + 0.9 * 1
        assert "trainer" not in saved and "trainer" in keeper.checkpointables

    @pytest.mark.parametrize("decay", [0.0, 1.0])
    def test_decay_is_checked(self, decay):
        with pytest.raises(ValueError, match=r"in \(0, 1\)"):
            hooks.WeightAverage(Weight(), decay)
