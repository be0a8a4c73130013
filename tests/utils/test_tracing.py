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


@pytest.mark.filterwarnings("ignore")
def test_other_forms_of_functions():
    def form(x, factor=1):
        return x * factor + 10

    @tracing.when_compiled(form)
    def compiled_otherwise(x, factor=1):
        """Double."""
        return x * factor

    @tracing.when_traced(form)
    def traced_otherwise(x, factor=1):
        return x * factor

    x = torch.ones(1)
    for function in (compiled_otherwise, traced_otherwise):
        assert float(function(x, factor=3)) == 3
    assert compiled_otherwise.__doc__ == "Double."
    assert float(torch.compile(compiled_otherwise, backend="eager", fullgraph=True)(x, factor=3)) == 13
    assert float(torch.compile(traced_otherwise, backend="eager", fullgraph=True)(x, factor=3)) == 3
    graph = torch.jit.trace(lambda x: (compiled_otherwise(x), traced_otherwise(x)), x, check_trace=False)
    assert [float(y) for y in graph(x)] == [1, 11]
