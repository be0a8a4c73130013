"""Compilation of the parts of a model."""

import torch

from detectron2.modeling.compilation import compile_parts, uncompiled


def test_compiled_parts(monkeypatch):
    """In place, and put aside where hooks have to see every layer."""
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: function)  # whose import takes seconds
    model = torch.nn.Module()
    model.backbone, model.head = torch.nn.Linear(2, 2), torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    names = list(model.state_dict())
    compile_parts(model)
    assert model.backbone._compiled_call_impl and model.head[0]._compiled_call_impl and not model._compiled_call_impl
    assert list(model.state_dict()) == names
    with uncompiled(model):
        assert model.backbone._compiled_call_impl is None
    assert model.backbone._compiled_call_impl
    whole = torch.nn.Linear(1, 1)
    compile_parts(whole)
    assert whole._compiled_call_impl
