"""Labels that never occur and pixels that do not count are said, in evaluation and before training."""

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.checks.label_maps import label_map_findings
from detectron2.evaluation import SemSegEvaluator


def _record(tmp_path, labels):
    Image.fromarray(np.zeros((60, 90, 3), np.uint8)).save(tmp_path / "a.png")
    truth = np.repeat(np.array(labels, np.uint8), 30)[None].repeat(60, 0)
    Image.fromarray(truth).save(tmp_path / "labels.png")
    paths = {"file_name": str(tmp_path / "a.png"), "sem_seg_file_name": str(tmp_path / "labels.png")}
    return {**paths, "image_id": 0, "height": 60, "width": 90}, truth


CASES = [
    ((0, 255, 255), ["67%", "2 of 3"], True),
    ((0, 1, 255), ["33%", "1 of 3"], True),
    ((0, 1, 2), [], False),
]


@pytest.mark.parametrize(("labels", "said", "is_said"), CASES)
def test_evaluation(names, tmp_path, caplog, labels, said, is_said):
    record, truth = _record(tmp_path, labels)
    name = names()
    DatasetCatalog.register(name, lambda: [record])
    MetadataCatalog.get(name).set(stuff_classes=["sky", "road", "tree"], ignore_label=255)
    evaluator = SemSegEvaluator(name, distributed=False)
    scores = torch.nn.functional.one_hot(torch.from_numpy(truth.astype(int).clip(0, 2)), 3).permute(2, 0, 1)
    evaluator.process([record], [{"sem_seg": scores.float()}])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] > 0
    assert all(text in caplog.text for text in said)
    assert ("never occur" in caplog.text) == is_said


@pytest.mark.parametrize(("labels", "said", "is_said"), CASES)
def test_check(tmp_path, labels, said, is_said):
    found = label_map_findings([_record(tmp_path, labels)[0]], None, num_labels=3)
    assert [f.level for f in found] == ["warning"] * is_said
    assert all(text in found[0].text for text in said)


def test_label_that_is_the_number_of_classes_is_refused(names, tmp_path):
    record, _ = _record(tmp_path, (1, 2, 3))
    name = names()
    DatasetCatalog.register(name, lambda: [record])
    MetadataCatalog.get(name).set(stuff_classes=["sky", "road", "tree"], ignore_label=255)
    with pytest.raises(ValueError, match="labels from 1 to 3; expected 0 to 2"):
        SemSegEvaluator(name, distributed=False).process([record], [{"sem_seg": torch.zeros(3, 60, 90)}])
