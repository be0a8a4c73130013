"""Records to check, and the findings about them."""

import pytest

from detectron2.data.validation import DatasetError, inspect_dataset_dicts, validate_dataset_dicts
from detectron2.structures import BoxMode

POLYGON = [0, 0, 4, 0, 4, 4]


def annotation(**changes):
    return {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, **changes}


def record(*annotations, **changes):
    return {
        "file_name": "a.jpg",
        "height": 20,
        "width": 30,
        "image_id": 7,
        "annotations": list(annotations),
        **changes,
    }


def check(*records, **arguments):
    arguments = {"name": "test_validation", "check_files": False, **arguments}
    return validate_dataset_dicts(list(records), **arguments)


def findings(*records, **arguments):
    with pytest.raises(DatasetError) as e:
        check(*records, **arguments)
    assert isinstance(e.value, ValueError) and "Dataset 'test_validation' has" in str(e.value)
    return e.value.findings


def inspect(*records, **arguments):
    return inspect_dataset_dicts(list(records), **{"name": "test_validation", "check_files": False, **arguments})


def kinds(report):
    return {f.kind: f.count for f in report.findings}
