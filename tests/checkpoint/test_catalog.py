import pytest

import detectron2.checkpoint  # registers the handler
from detectron2.checkpoint.catalog import ModelCatalog
from detectron2.utils.file_io import HTTPURLHandler, PathManager


def test_names_lead_to_urls():
    prefix = "https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/"
    assert ModelCatalog.get("ImageNetPretrained/MSRA/R-50") == prefix + "MSRA/R-50.pkl"
    assert ModelCatalog.get("ImageNetPretrained/FAIR/R-50-GN") == prefix + "47261647/R-50-GN.pkl"


@pytest.mark.parametrize("name", ["", "ImageNetPretrained", "ImageNetPretrained/", "Other/MSRA/R-50", "MSRA/R-50"])
def test_unknown_names_list_the_known_ones(name):
    with pytest.raises(KeyError, match="ImageNetPretrained/MSRA/R-50"):
        ModelCatalog.get(name)


def test_paths_are_resolved_by_the_path_manager(monkeypatch, tmp_path):
    assert detectron2.checkpoint.ModelCatalog is ModelCatalog
    asked = []
    file = tmp_path / "weights"
    file.write_bytes(b"content")

    def fetch(self, path, force=False, cache_dir=None, **kwargs):
        asked.append(path)
        return str(file)

    monkeypatch.setattr(HTTPURLHandler, "_get_local_path", fetch)
    path = "catalog://ImageNetPretrained/MSRA/R-101"
    assert PathManager.get_local_path(path) == str(file)
    with PathManager.open(path, "rb") as opened:
        assert opened.read() == b"content"
    assert asked == [ModelCatalog.get("ImageNetPretrained/MSRA/R-101")] * 2


def test_every_catalog_path_of_the_model_zoo_is_known(shared_dir):
    import re

    text = (shared_dir / "facts" / "model_zoo_yaml.json").read_text()
    names = set(re.findall(r'"catalog://([^"]+)"', text))
    assert names
    for name in names:
        assert ModelCatalog.get(name).endswith(".pkl")
