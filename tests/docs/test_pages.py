"""The tutorials that need no more than a folder to write to: their blocks run in order."""

from pathlib import Path

import pytest
import torch

import detectron2.projects.mask2former  # noqa: F401  # its names are registered before the pages, and stay
from detectron2.data import DatasetCatalog, MetadataCatalog
from tests.docs.pages import run_page
from tests.engine.conftest import restore_logging

__all__ = ["restore_logging"]

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = {  # page: files that it leaves
    "moving": ("resnet18.pth", "train.json"),
    "tutorials/augmentation": (),
    "tutorials/configs": ("whole.yaml", "lazy.yaml"),
    "tutorials/custom_datasets": ("output/lawns_separated/model_final.pth", "output/rotated/model_final.pth"),
    "tutorials/data_loading": (),
    "tutorials/drawing": ("truth.png", "found.png", "labels.png", "panoptic.png", "by_hand.svg"),
    "tutorials/extend": ("output/own/model_final.pth",),
    "tutorials/install": (),
    "tutorials/mask_transformers": (),
    "tutorials/models": ("output/untrained.pth",),
}


@pytest.fixture(autouse=True)
def _own_folder_and_datasets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = [(catalog, set(catalog.list())) for catalog in (DatasetCatalog, MetadataCatalog)]
    yield
    for catalog, names in before:
        for name in set(catalog.list()) - names:
            catalog.remove(name)


@pytest.fixture(autouse=True)
def _registries_as_before():
    """Classes that a page registers are gone when it is over."""
    from detectron2 import modeling

    registries = [value for name, value in vars(modeling).items() if name.endswith("_REGISTRY")]
    before = [(registry._obj_map, dict(registry._obj_map)) for registry in registries]
    yield
    for current, old in before:
        current.clear()
        current.update(old)


@pytest.mark.usefixtures("restore_logging")
@pytest.mark.parametrize("page", PAGES)
def test_page(page):
    torch.manual_seed(0)
    run_page(DOCS / f"{page}.md")
    for name in PAGES[page]:
        assert Path(name).stat().st_size > 0
