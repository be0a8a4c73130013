from types import SimpleNamespace

import pytest
import torch

from detectron2.evaluation import flatten_results_dict, print_csv_format, verify_results


def config(expected):
    return SimpleNamespace(TEST=SimpleNamespace(EXPECTED_RESULTS=expected))


@pytest.mark.parametrize(
    ("results", "flat"),
    [
        ({}, {}),
        ({"loss": 1.0}, {"loss": 1.0}),
        ({"bbox": {"AP": 40.0, "AP50": 60.0}, "t": 1}, {"bbox/AP": 40.0, "bbox/AP50": 60.0, "t": 1}),
        ({"a": {"b": {"c": 2}}}, {"a/b/c": 2}),
        ({"a": {}}, {}),
        ({1: {2: 3.0}, 4: 5.0}, {"1/2": 3.0, "4": 5.0}),
    ],
)
def test_flatten(results, flat):
    assert flatten_results_dict(results) == flat


def test_csv_leaves_out_single_classes(caplog):
    with caplog.at_level("INFO", logger="detectron2.evaluation.testing"):
        print_csv_format({"bbox": {"AP": 40.125, "AP50": 60.0, "AP-person": 1.0}, "speed": 3})
        print_csv_format({})
        print_csv_format({0: {1: 2.0}})
        print_csv_format({"other": {"a": float("nan"), "b": torch.tensor(1.5), "c": None, "d": "text"}, "none": {}})
    assert caplog.messages == [
        "copypaste: Task: bbox",
        "copypaste: AP,AP50",
        "copypaste: 40.1250,60.0000",
        "copypaste: speed=3",
        "copypaste: Task: 0",
        "copypaste: 1",
        "copypaste: 2.0000",
        "copypaste: Task: other",
        "copypaste: a,b,c,d",
        "copypaste: nan,1.5000,None,text",
        "copypaste: Task: none",
        "copypaste: ",
        "copypaste: ",
    ]


def test_csv_needs_a_dictionary():
    with pytest.raises(TypeError, match="list"):
        print_csv_format([])


@pytest.mark.parametrize(
    "expected", [[], [["bbox", "AP", 40.0, 0.5]], [["bbox", "AP", 40.5, 0.5], ["bbox", "AP50", 60.0, 0]]]
)
def test_verification_passes(expected):
    assert verify_results(config(expected), {"bbox": {"AP": 40.2, "AP50": 60.0}}) is True


@pytest.mark.parametrize(
    "entry", [["bbox", "AP", 41.0, 0.5], ["bbox", "APs", 1.0, 0.5], ["segm", "AP", 1.0, 9.0], ["bbox", "APl", 1, 9]]
)
def test_verification_ends_the_process(entry, caplog):
    with pytest.raises(SystemExit) as ended:
        verify_results(config([entry]), {"bbox": {"AP": 40.2, "APl": float("nan")}})
    assert ended.value.code == 1
    assert f"{entry[0]}/{entry[1]}" in caplog.text


@pytest.mark.parametrize(
    ("results", "text"),
    [
        ({}, "there is no such result, only []"),
        ({"val": {"bbox": {"AP": 1.0}}}, "there is no such result, only ['val']"),
        ({"bbox": {"AP50": 1.0}}, "there is no such result, only ['AP50']"),
        ({"bbox": {"AP": 1.0}}, "bbox/AP: 1.0, expected 2.0 within 0.5"),
    ],
)
def test_what_is_wrong_is_said(results, text, caplog):
    with pytest.raises(SystemExit):
        verify_results(config([["bbox", "AP", 2.0, 0.5]]), results)
    assert text in caplog.text
