"""Precise statistics of batch norm."""

import pytest
import torch

from detectron2.data.build import build_batch_data_loader
from detectron2.engine import hooks
from tests.engine.hooks.toy import trainer


class TestPreciseBN:
    def test_statistics_are_the_average_over_batches(self):
        t = trainer(norm=True, lr=0.0)
        batches = [torch.randn(64, 2, generator=torch.Generator().manual_seed(i)) for i in range(4)]
        t.register_hooks([hooks.PreciseBN(0, t.model, batches, 4)])
        t.train(0, 1)
        outputs = t.model.layer[0](torch.cat(batches)).detach()
        norm = t.model.layer[1]
        assert norm.running_mean.item() == pytest.approx(outputs.mean().item(), abs=1e-5)
        assert norm.running_var.item() == pytest.approx(outputs.var().item(), rel=2e-2)
        assert set(t.storage.latest()) == {"data_time", "total_loss", "loss"}

    def test_training_draws_the_same_random_numbers(self):
        t = trainer(norm=True)
        loader = build_batch_data_loader([torch.randn(2) for _ in range(8)], range(8), 4, collate_fn=torch.stack)
        t.register_hooks([hook := hooks.PreciseBN(0, t.model, loader, 1)])
        state = torch.get_rng_state()
        hook.update_stats()
        assert torch.equal(torch.get_rng_state(), state)

    def test_model_without_norm(self, caplog):
        caplog.set_level("INFO")
        t = trainer()
        t.register_hooks([hooks.PreciseBN(1, t.model, [], 4)])
        t.train(0, 2)
        assert "PreciseBN does nothing" in caplog.text
