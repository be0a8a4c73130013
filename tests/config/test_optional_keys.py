"""Keys that a config does not have by default, but may have."""

import pytest

from detectron2.config import get_cfg
from detectron2.config.config import ConfigTypeError, UnknownConfigKeyError
from detectron2.config.optional_keys import OPTIONAL_KEYS


def read(cfg, path):
    *groups, key = path.split(".")
    for group in groups:
        cfg = cfg.get(group, {})
    return cfg.get(key)


@pytest.mark.parametrize("path", OPTIONAL_KEYS)
def test_are_not_there_by_default(path):
    assert read(get_cfg(), path) is None


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("DATALOADER.ON_BAD_IMAGE", "skip", "skip"),
        ("DATALOADER.RANDOM_SUBSET_RATIO", "0.25", 0.25),
        ("DATALOADER.RANDOM_SUBSET_RATIO", "1", 1.0),
        ("DATALOADER.DATASET_WEIGHTS", "[1, 2.5]", (1, 2.5)),
        ("DATASETS.TRAIN_REPEAT_FACTOR", "[['a', 2.0]]", [["a", 2.0]]),
        ("TRAIN.COMPILE", "True", True),
        ("SOLVER.EMA_DECAY", "0.5", 0.5),
        ("SOLVER.OPTIMIZER", "AdamW", "AdamW"),
        ("WRITERS", "['json', 'csv']", ("json", "csv")),
    ],
)
def test_can_be_set_everywhere(tmp_path, path, text, value):
    from_list = get_cfg()
    from_list.merge_from_list([path, text])
    *groups, key = path.split(".")
    nested = f"{key}: {text}"
    for group in reversed(groups):
        nested = f"{group}: {{{nested}}}"
    (tmp_path / "a.yaml").write_text(nested)
    from_file = get_cfg()
    from_file.merge_from_file(str(tmp_path / "a.yaml"))
    copied = get_cfg()
    copied.merge_from_other_cfg(from_file)
    for cfg in (from_list, from_file, copied):
        assert read(cfg, path) == value and type(read(cfg, path)) is type(value)
    # What is written down can be read again, and set a second time.
    (tmp_path / "b.yaml").write_text(from_file.dump())
    from_file.merge_from_file(str(tmp_path / "b.yaml"))
    assert read(from_file, path) == value


def test_wrong_type_changes_nothing():
    cfg = get_cfg()
    with pytest.raises(ConfigTypeError, match=r"DATALOADER\.RANDOM_SUBSET_RATIO must be float"):
        cfg.merge_from_list(["DATALOADER.ON_BAD_IMAGE", "skip", "DATALOADER.RANDOM_SUBSET_RATIO", "half"])
    assert cfg == get_cfg()


def test_misspelt():
    with pytest.raises(UnknownConfigKeyError, match=r"did you mean 'DATALOADER\.ON_BAD_IMAGE'"):
        get_cfg().merge_from_list(["DATALOADER.ON_BAD_IMAGES", "skip"])


def test_misspelt_in_a_group_that_is_not_there():
    cfg = get_cfg()
    with pytest.raises(UnknownConfigKeyError, match=r"did you mean 'TRAIN\.COMPILE'"):
        cfg.merge_from_list(["TRAIN.CHANNELS_LAST", "True", "TRAIN.COMPILED", "True"])
    assert cfg == get_cfg()
