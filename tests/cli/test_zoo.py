"""`detectron2 zoo`: what is listed, what is said about a model, and where a download lies."""

import json

import pytest

from detectron2.cli.zoo import describe, table_of
from detectron2.model_zoo import published
from detectron2.model_zoo.published import ZooModel, find_model
from detectron2.utils.file_io import HTTPURLHandler
from tests.utils.test_file_io import CONTENT, server

__all__ = ["server"]

NAME = "COCO-Detection/retinanet_R_50_FPN_1x"


@pytest.fixture
def weights(server, monkeypatch):
    """The published weights of one model on a server of this machine; a path on it."""
    monkeypatch.setattr("detectron2.model_zoo.model_zoo.URL_PREFIX", server.url)
    published._all_models.cache_clear()
    path = f"{NAME}/190397773/model_final_bfca0b.pkl"
    server.files[path] = CONTENT
    yield path
    published._all_models.cache_clear()


def test_list(command):
    status, out, err = command("zoo", "list", "no", "such", "model")
    assert (status, out) == (1, "") and "all of these words" in err and "no such model" in err
    status, out, _ = command("zoo", "list", "retinanet", "r_50")
    lines = [line.split() for line in out.splitlines()]
    assert status == 0 and lines[0] == ["config", "task", "box", "AP", "s/image", "weights"]
    assert [f"{NAME}.yaml", "boxes", "37.4", "0.041", "yes"] in lines
    assert "quick_schedules" not in out and "mask AP" not in lines[0]
    assert out.splitlines()[-1].startswith("4 configs.")
    status, out, _ = command("zoo", "list", "--json", "quick", "retinanet")
    assert {m["name"].partition("/")[0] for m in json.loads(out)} == {"quick_schedules"}


def test_list_without_words_has_all_but_the_tests_of_the_library(command):
    out = command("zoo", "list")[1]
    assert "new_baselines/" in out and "COCO-Keypoints/" in out and "quick_schedules/" not in out


def test_table_of_models_without_results():
    text = table_of([ZooModel("a/b.yaml", "boxes")])
    assert [line.split() for line in text.splitlines()[:3:2]] == [["config", "task", "weights"], ["a/b.yaml", "boxes"]]


def test_info(command):
    status, out, _ = command("zoo", "info", NAME, "COCO-Detection/fcos_R_50_FPN_1x.py")
    assert status == 0
    for text in ("box AP", "37.4 percent", "CC BY-SA 3.0", f"detectron2://{NAME}/190397773/model_final_bfca0b.pkl"):
        assert text in out
    assert f"detectron2 predict IMAGE.jpg --config-file {NAME}.yaml --weights detectron2://" in out
    assert "none published" in out and "(LazyConfig)" in out
    (model,) = json.loads(command("zoo", "info", "--json", NAME)[1])
    assert model["results"]["box AP"] == 37.4 and model["kind"] == "YAML" and model["license_of_weights"]
    status, _, err = command("zoo", "info", "COCO-Detection/retinanet_R_50_FPN_2x.yaml")
    assert status == 1 and "The nearest names are: COCO-Detection/retinanet" in err


def test_description_without_weights_offers_training_only():
    text = describe(find_model("COCO-Detection/fcos_R_50_FPN_1x.py"))
    assert "detectron2 train" in text and "detectron2 predict" not in text


def test_download_continues_and_says_where_the_file_is(command, server, weights, monkeypatch):
    server.cuts = [1000]  # the first answer breaks off
    status, out, err = command("zoo", "download", NAME)
    path = out.strip()
    assert status == 0 and path.endswith(weights)
    with open(path, "rb") as file:
        assert file.read() == CONTENT
    assert f"Continuing {server.url}{weights}" in err and f"{NAME}.yaml, 0.0 MB:" in err
    asked = [headers.get("Range") for method, _, headers in server.requests if method == "GET"]
    assert asked == [None, "bytes=1000-"]
    monkeypatch.setenv("DETECTRON2_OFFLINE", "1")  # now it is there
    assert command("zoo", "download", f"{NAME}.yaml")[:2] == (0, f"{path}\n")


def test_download_of_what_is_not_there(command, server, weights):
    status, out, err = command("zoo", "download", NAME, "COCO-Detection/fcos_R_50_FPN_1x")
    assert (status, out, server.requests) == (1, "", [])  # nothing is downloaded before the names are checked
    assert "no trained weights for COCO-Detection/fcos_R_50_FPN_1x.py" in err
    server.files.clear()
    status, out, err = command("zoo", "download", NAME)
    assert (status, out) == (1, "") and "404" in err


def test_weights_of_torchvision(command, monkeypatch, tmp_path):
    name = "Modern/faster_rcnn_torchvision_R_50_FPN"
    status, out, _ = command("zoo", "info", name)
    assert status == 0 and "torchvision://fasterrcnn_resnet50_fpn" in out and "CC BY-SA" not in out
    assert "licence of weights  not recorded" in out
    (tmp_path / "a.pth").touch()
    asked = []
    monkeypatch.setattr(
        HTTPURLHandler, "_get_local_path", lambda self, path, **_: asked.append(path) or str(tmp_path / "a.pth")
    )
    status, out, _ = command("zoo", "download", name)
    assert (
        status == 0 and out.strip() == str(tmp_path / "a.pth") and "fasterrcnn_resnet50_fpn_coco-258fb6c6" in asked[0]
    )
