"""The page of the service: it needs nothing from elsewhere, and its run lengths are those of COCO."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as mask_util

import detectron2.serving

PAGE = Path(detectron2.serving.__file__).with_name("page.html")


def test_nothing_comes_from_elsewhere():
    text = PAGE.read_text()
    assert not re.search(r"https?://|src=|@import|url\(", text)
    assert "innerHTML" not in text and "eval(" not in text  # names of classes are text


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
def test_run_lengths():
    generator = np.random.default_rng(0)
    masks = [np.zeros((5, 7), bool), np.ones((5, 7), bool), np.zeros((300, 200), bool)]
    masks[2][100:250, 20:150] = True
    masks += [
        generator.random((height, width)) < share for height, width, share in [(1, 1, 1), (40, 30, 0.5), (600, 3, 0.01)]
    ]
    texts = [mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode() for mask in masks]
    function = re.search(r"function runsOf.*?\n}\n", PAGE.read_text(), re.DOTALL)[0]
    program = f"{function}\nconsole.log(JSON.stringify({json.dumps(texts)}.map(runsOf)))"
    run = subprocess.run(["node", "-e", program], capture_output=True, text=True, check=True, timeout=120)
    for mask, runs in zip(masks, json.loads(run.stdout), strict=True):
        columns = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        np.testing.assert_array_equal(columns.reshape(mask.shape, order="F"), mask)
