import pytest
import torch

from detectron2.utils import tracing


class Asks(torch.nn.Module):
    """Remembers the answers that it got while it ran."""

    def forward(self, x):
        self.answers = (tracing.is_fx_tracing(), tracing.is_tracing())
        return x + 1


def test_eagerly_nothing_is_traced():
    module = Asks()
    module(torch.zeros(1))
    assert module.answers == (False, False)
    assert not tracing.is_compiling()


def test_fx():
    module = Asks()
    torch.fx.symbolic_trace(module)
    assert module.answers == (True, True)


def test_export_counts_as_compiling():
    class Branches(torch.nn.Module):
        def forward(self, x):
            return x + 1 if tracing.is_compiling() else x - 1

    exported = torch.export.export(Branches(), (torch.zeros(1),)).module()
    assert float(exported(torch.zeros(1))) == 1.0
    assert float(Branches()(torch.zeros(1))) == -1.0


def test_assert_fx_safe():
    tracing.assert_fx_safe(True, "fine")
    with pytest.raises(AssertionError, match="two boxes"):
        tracing.assert_fx_safe(False, "two boxes")

    class Checks(torch.nn.Module):
        def forward(self, x):
            tracing.assert_fx_safe(x is None, "cannot be decided in a trace")
            return x

    torch.fx.symbolic_trace(Checks())
