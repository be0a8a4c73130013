"""`detectron2 push`: a folder with weights and model card, which loads by itself, and what goes to the hub."""

import json

import numpy as np
import pytest
import torch
import yaml

from detectron2.checkpoint import CheckpointDescription, read_description
from detectron2.checkpoint.files import read_weights
from detectron2.cli.push import model_card, without_local_weights
from detectron2.data.datasets.synthetic import SHAPE_CLASSES
from detectron2.inference import Predictor


def facts_of(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_card_of_weights_that_say_nothing():
    card = model_card("me/none", "MIT", CheckpointDescription(), {}, "hf://me/none")
    assert facts_of(card)["license"] == "mit" and 'Predictor("hf://me/none")' in card
    assert "Results" not in card and "Classes" not in card


def test_names_in_a_card_are_no_markup():
    description = CheckpointDescription(metadata={"thing_classes": ["a|b", "<b>", *map(str, range(120))]})
    card = model_card("x", "mit", description, {"bbox/AP_50": 1.0}, "x")
    assert r"a\|b, \<b\>, 0," in card and "and 22 more." in card and r"| bbox/AP\_50 | 1.00 |" in card


@pytest.mark.parametrize(
    ("config", "kind", "expected"),
    [
        ("", "yaml", ""),
        ("MODEL: {DEVICE: cpu}", "yaml", "MODEL: {DEVICE: cpu}"),
        ("MODEL: {WEIGHTS: detectron2://a.pkl}", "yaml", "MODEL: {WEIGHTS: detectron2://a.pkl}"),
        (
            "MODEL: {WEIGHTS: /home/me/a.pth, X: [1, 2]}\nSEED: 1",
            "yaml",
            {"MODEL": {"WEIGHTS": "", "X": [1, 2]}, "SEED": 1},
        ),
        ("train: {init_checkpoint: a.pth}", "lazy", {"train": {"init_checkpoint": ""}}),
        ("train: {init_checkpoint: a.pth}", "yaml", "train: {init_checkpoint: a.pth}"),
    ],
)
def test_no_path_of_a_machine_is_published(config, kind, expected):
    found = without_local_weights(config, kind)
    assert (found if isinstance(expected, str) else yaml.safe_load(found)) == expected


def test_folder(command, trained, tmp_path):
    words = ["push", "--weights", trained / "model_final.pth", "--licence", "cc-by-4.0"]
    status, out, err = command(*words, "--folder", tmp_path / "shapes")
    assert status == 0, err
    assert f"Folder: {tmp_path / 'shapes'}" in out
    assert sorted(p.name for p in (tmp_path / "shapes").iterdir()) == ["README.md", "model.safetensors"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shapes"]
    card = (tmp_path / "shapes" / "README.md").read_text()
    assert facts_of(card) == {
        "license": "cc-by-4.0",
        "library_name": "detectron2",
        "pipeline_tag": "object-detection",
        "tags": ["detectron2"],
    }
    assert ", ".join(SHAPE_CLASSES) in card and "# shapes" in card
    saved = torch.load(trained / "model_final.pth", weights_only=True)
    weights, _ = read_weights(str(tmp_path / "shapes" / "model.safetensors"))
    assert weights.keys() == saved["model"].keys()
    assert all(torch.equal(value, saved["model"][key]) for key, value in weights.items())
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    options = {"device": "cpu", "score_threshold": 0.0}
    own = Predictor(tmp_path / "shapes", **options)
    assert list(own.metadata.thing_classes) == list(SHAPE_CLASSES)
    found, expected = own(image).instances, Predictor(trained / "model_final.pth", **options)(image).instances
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_results_of_an_evaluation_are_in_the_card(command, trained, tmp_path):
    run = tmp_path / "run"
    (run / "eval").mkdir(parents=True)
    (run / "model_final.pth").write_bytes((trained / "model_final.pth").read_bytes())
    results = run / "eval" / "results.json"
    results.write_text(json.dumps({"bbox": {"AP": 12.345, "AP50": float("nan")}}))
    words = ["push", "--weights", run / "model_final.pth", "--licence", "mit", "--folder", tmp_path / "out"]
    status, _, err = command(*words)
    assert status == 0, err
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| bbox/AP | 12.35 |" in card or "| bbox/AP | 12.34 |" in card
    assert "AP50" not in card
    results.write_text("{")
    status, _, err = command(*words[:-1], tmp_path / "out2")
    assert status == 1 and "results.json is not JSON" in err and not (tmp_path / "out2").exists()


def test_a_lazy_config_goes_along(command, lazy_trained, tmp_path):
    weights = lazy_trained / "model_final.pth"
    status, _, err = command("push", "--weights", weights, "--licence", "mit", "--folder", tmp_path / "lazy")
    assert status == 0, err
    description = read_description(str(tmp_path / "lazy" / "model.safetensors"))
    assert description is not None and description.config_kind == "lazy"
    Predictor(tmp_path / "lazy", device="cpu")


def test_mistakes(command, trained, tmp_path, monkeypatch):
    words = ["push", "--weights", trained / "model_final.pth", "--licence", "mit"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").touch()
    monkeypatch.setenv("DETECTRON2_OFFLINE", "1")
    for more, what in (
        ((), "give --folder DIR, or --to OWNER/NAME"),
        (("--folder", tmp_path / "full"), "is not an empty folder"),
        (("--to", "name"), "--to is OWNER/NAME"),
        (("--to", "me/name"), "which DETECTRON2_OFFLINE or HF_HUB_OFFLINE forbids"),
        (("--folder", tmp_path / "x", "--licence", "my own"), "an identifier of SPDX"),
    ):
        status, _, err = command(*words, *more)
        assert status == 1 and what in err
    with pytest.raises(SystemExit):  # there is no licence
        command(*words[:3], "--folder", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_what_goes_to_the_hub(command, trained, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    calls = []

    class Api:
        endpoint = "https://hub.test"

        def __init__(self, endpoint):
            pass

        def create_repo(self, repo, **options):
            calls.append((repo, options))

        def upload_folder(self, repo_id, folder_path, commit_message):
            calls.append((repo_id, {p.name: p.read_bytes() for p in folder_path.iterdir()}))

    monkeypatch.setattr(hub, "HfApi", Api)
    for name in ("DETECTRON2_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    words = ["push", "--weights", trained / "model_final.pth", "--licence", "mit", "--to", "me/shapes", "--private"]
    status, out, err = command(*words)
    assert status == 0, err
    assert "Sent:   https://hub.test/me/shapes" in out
    (_, options), (repo, files) = calls
    assert options == {"private": True, "exist_ok": True} and repo == "me/shapes"
    assert files.keys() == {"README.md", "model.safetensors"} and b'Predictor("hf://me/shapes")' in files["README.md"]


@pytest.mark.parametrize(("is_kept", "later"), [(True, "hf upload me/shapes"), (False, "--folder DIR writes it")])
def test_a_model_that_cannot_be_sent_stays_in_its_folder(command, trained, tmp_path, monkeypatch, is_kept, later):
    pytest.importorskip("huggingface_hub")
    for name in ("DETECTRON2_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    words = ["push", "--weights", trained / "model_final.pth", "--licence", "mit", "--to", "me/shapes"]
    folder = tmp_path / "shapes"
    status, out, err = command(*words, *(["--folder", folder] if is_kept else []))
    assert status == 1 and "me/shapes was not written: " in err and "Check the network" in err and later in err
    assert "Traceback" not in err and folder.exists() == is_kept and (f"Folder: {folder}" in out) == is_kept
    if is_kept:
        assert sorted(p.name for p in folder.iterdir()) == ["README.md", "model.safetensors"]
        assert Predictor(folder, device="cpu").metadata.thing_classes == list(SHAPE_CLASSES)
    assert sorted(p.name for p in tmp_path.iterdir()) == (["shapes"] if is_kept else [])
