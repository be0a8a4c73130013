"""Every example runs as it stands, in a folder of its own, and is short enough to be read."""

import runpy
from pathlib import Path

import pytest

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY
from tests.engine.conftest import restore_logging

__all__ = ["restore_logging"]

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("[0-9]*.py"))


@pytest.fixture
def clean_registries():
    """What an example registers is gone when it is over."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    BACKBONE_REGISTRY._obj_map.pop("SmallBackbone", None)


def test_there_are_examples_in_order():
    assert [int(path.name[:2]) for path in EXAMPLES] == list(range(1, len(EXAMPLES) + 1)) and EXAMPLES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example(path, tmp_path, monkeypatch, capsys, restore_logging, clean_registries):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(path)])
    text = path.read_text()
    assert f"python examples/{path.name}" in text and text.count("\n") < 65
    runpy.run_path(str(path), run_name="__main__")
    out = capsys.readouterr().out
    for word in out.split():  # pictures that it says it drew
        if word.startswith("output/") and word.endswith(".png"):
            assert Path(word).stat().st_size > 0
    assert out


@pytest.mark.parametrize("path", sorted(EXAMPLES[0].parent.glob("*.py")), ids=lambda p: p.stem)
def test_help_is_the_docstring_and_nothing_runs(path, tmp_path, monkeypatch, capsys, clean_registries):
    if path.name.startswith("ray_"):
        pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0 and f"python examples/{path.name}" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
