"""What is published about the models of the model zoo: accuracy, speed, weights.

The numbers are those of the published system (`published_results.json`), measured on 8 V100 GPUs in training and one
in inference; AP and PQ are percentages on the validation split of the data set of each config.
"""

import json
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from detectron2.model_zoo.checkpoints import WEIGHTS_LICENSE
from detectron2.model_zoo.model_zoo import NotInModelZooError, get_checkpoint_url, get_config_file

__all__ = ["WEIGHTS_LICENSE", "ZooModel", "find_model", "list_models"]

_TORCHVISION = "torchvision://"  # in configs of its models
_TASKS = (  # what the name of a config says; the first that fits holds
    ("keypoint", "keypoints"),
    ("panoptic", "panoptic"),
    ("semantic", "semantic"),
    ("mask", "masks"),
    ("rpn_", "proposals"),
    ("imagenet", "image classes"),
)


@dataclass(frozen=True)
class ZooModel:
    """A config of the model zoo, and what is published about it.

    Args:
        name: name of the config file, such as `COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml`.
        task: `boxes`, `masks`, `keypoints`, `panoptic`, `semantic`, `proposals` or `image classes`.
        url: address of the trained weights, `torchvision://` for those of torchvision; empty if there are none.
        results: name -> number, such as `"box AP"` -> 37.9 or `"seconds per image"` -> 0.038; `schedule` is a text.
    """

    name: str
    task: str
    url: str = ""
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """How the config is written, `YAML` or `LazyConfig`."""
        return "YAML" if self.name.endswith(".yaml") else "LazyConfig"

    @property
    def license_of_weights(self) -> str | None:
        """Licence of the weights, as far as it is recorded."""
        return WEIGHTS_LICENSE if self.url and not self.url.startswith(_TORCHVISION) else None


def list_models(words: str = "") -> list[ZooModel]:
    """List the models of the zoo.

    Args:
        words: only models whose name, task and kind contain all of these words, in any case.

    Returns:
        The models that have trained weights, in alphabetical order, then the others.

    Example:
        >>> [m.name for m in list_models("retinanet R_101")]
        ['COCO-Detection/retinanet_R_101_FPN_3x.yaml']
    """
    wanted = words.lower().split()
    models = [m for m in _all_models() if all(w in f"{m.name} {m.task} {m.kind}".lower() for w in wanted)]
    return sorted(models, key=lambda m: not m.url)


def find_model(name: str) -> ZooModel:
    """Return the model of a config name, which may lack its ending, or of the path of its file.

    A `NotInModelZooError` names near ones.
    """
    models = {m.name: m for m in _all_models()}
    end = "/".join(Path(name).parts[-2:])
    found = next((n for n in (name, f"{name}.yaml", f"{name}.py", end) if n in models), None)
    if found is None:
        path = get_config_file(name)  # raises the error with the nearest names, but for the parts of configs
        if not Path(path).is_relative_to(Path(get_config_file("Base-RCNN-FPN.yaml")).parent):
            raise NotInModelZooError(f"{path} is a file of yours, not of the zoo: 'detectron2 config show' prints it.")
        raise NotInModelZooError(f"{name!r} is a part that other configs are made of, not a model: {path}")
    return models[found]


@cache
def _all_models() -> tuple[ZooModel, ...]:
    results = json.loads(Path(__file__).with_name("published_results.json").read_text(encoding="utf-8"))
    folder = Path(get_config_file("Base-RCNN-FPN.yaml")).parent
    models = []
    for path in sorted(p for p in folder.glob("*/*.*") if p.suffix in (".yaml", ".py")):
        name = path.relative_to(folder).as_posix()
        if path.parent.name == "common" or path.name.startswith("Base-"):
            continue
        try:
            url = get_checkpoint_url(name)
        except NotInModelZooError:
            found = re.search(rf"{_TORCHVISION}\w+", path.read_text(encoding="utf-8"))
            url = found[0] if found and "_torchvision_" in path.stem else ""  # elsewhere it is a backbone's
        task = next((task for word, task in _TASKS if word in path.stem), "boxes")
        twin = path.with_suffix(".yaml").relative_to(folder).as_posix() if url else name  # of the same weights
        models.append(ZooModel(name, task, url, results.get(name) or results.get(twin) or {}))
    return tuple(models)
