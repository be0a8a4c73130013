"""The loss on data that are not trained on."""

import pytest
import torch

from detectron2.engine import hooks
from detectron2.engine.hooks import CallbackHook
from tests.engine.hooks.toy import weight_trainer


class TestValidationLoss:
    def test_leaves_no_trace(self):
        states = []
        for is_used in (False, True):
            trainer, _ = weight_trainer()
            trainer.model.drop.eval()  # what a project keeps in evaluation mode stays so
            draws = []
            hook = hooks.ValidationLoss(1, trainer.model, lambda: [torch.randn(4, 2)] * 3) if is_used else None
            trainer.register_hooks([hook, CallbackHook(after_step=lambda t, d=draws: d.append(torch.rand(()).item()))])
            trainer.train(0, 3)
            buffers = {n: b.clone() for n, b in trainer.model.named_buffers()}
            modes = [m.training for m in trainer.model.modules()]
            states.append((draws, buffers, {n: p.clone() for n, p in trainer.model.named_parameters()}, modes))
        without, with_it = states
        assert without[0] == with_it[0] and without[3] == with_it[3]
        for a, b in ((without[1], with_it[1]), (without[2], with_it[2])):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[n], b[n]) for n in a)

    def test_value(self):
        """Batch norm with mean 0 and variance 1 changes nothing; nothing is dropped out."""
        trainer, _ = weight_trainer()
        data = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 5.0]])]
        found = hooks.ValidationLoss(1, trainer.model, lambda: data).measure()
        assert found == {"loss": pytest.approx(5.5, rel=1e-4), "total_loss": pytest.approx(5.5, rel=1e-4)}

    def test_no_data(self, caplog):
        trainer, _ = weight_trainer()
        assert hooks.ValidationLoss(1, trainer.model, list).measure() == {}
        assert "no data" in caplog.text

    def test_is_recorded(self):
        trainer, _ = weight_trainer()
        trainer.register_hooks([hooks.ValidationLoss(2, trainer.model, lambda: [torch.zeros(1, 2)])])
        trainer.train(0, 5)
        assert [at for _, at in trainer.storage.history("validation/total_loss").values()] == [1, 3, 4]
