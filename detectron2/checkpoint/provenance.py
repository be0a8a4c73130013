"""Where weights come from and under which licence they are, as far as that is recorded."""

import re
from pathlib import Path
from typing import Any

import yaml

from detectron2.checkpoint.catalog import ModelCatalog
from detectron2.checkpoint.timm_weights import TIMM_PREFIX, timm_licence
from detectron2.utils.file_io import Detectron2Handler
from detectron2.utils.hub_files import MODEL_FILE, cached_or_fetched, repository_of

__all__ = ["licence_of_card", "weights_origin"]

_UNKNOWN = "their licence is not recorded"


def weights_origin(path: str) -> str | None:
    """Say where weights come from, and their licence.

    Args:
        path: of the weights, as `DetectionCheckpointer.load` takes it.

    Returns:
        A sentence; None for files of which nothing is known.

    Example:
        >>> from detectron2.checkpoint.provenance import weights_origin
        >>> weights_origin("detectron2://ImageNetPretrained/MSRA/R-50.pkl")
        'The weights are published with Detectron2; their licence is not recorded.'
    """
    path = path.partition("?")[0]
    published = path.replace(Detectron2Handler.PREFIX, Detectron2Handler.S3_DETECTRON2_PREFIX, 1)
    if published.startswith(Detectron2Handler.S3_DETECTRON2_PREFIX):
        return f"The weights are published with Detectron2; {_of_the_zoo(published)}."
    if path.startswith(("catalog://", ModelCatalog.S3_C2_DETECTRON_PREFIX)):
        return f"The weights are published with the first Detectron; {_UNKNOWN}."
    if path.startswith("torchvision://"):
        return f"The weights are published with torchvision; {_of_torchvision(path.removeprefix('torchvision://'))}."
    if path.startswith(TIMM_PREFIX):
        licence = timm_licence(path)
        return f"The weights are published with timm; {f'licence: {licence}' if licence else _UNKNOWN}."
    if (repository := repository_of(path)) is not None:
        card = cached_or_fetched(f"hf://{repository}/README.md")
        licence = licence_of_card(card) if card else None
        said = f"licence on their card: {licence}" if licence else "their card, if there is one, names no licence"
        return f"The weights are from {repository} on the Hugging Face hub; {said}."
    card = Path(path).parent / "README.md"
    if Path(path).name == MODEL_FILE and (licence := licence_of_card(str(card))) is not None:
        return f"The weights are from {card.parent}; licence on their card: {licence}."
    return None


def _of_the_zoo(url: str) -> str:
    from detectron2.model_zoo.checkpoints import CHECKPOINTS, WEIGHTS_LICENSE

    name = url.removeprefix(Detectron2Handler.S3_DETECTRON2_PREFIX)
    folder, _, rest = name.partition("/")
    model, _, file = rest.partition("/")
    return f"licence: {WEIGHTS_LICENSE}" if CHECKPOINTS.get(folder, {}).get(model) == file else _UNKNOWN


def _of_torchvision(name: str) -> str:
    from torchvision.models import get_model_weights

    model, _, weights = name.partition("/")
    licence = get_model_weights(model).__members__[weights or "DEFAULT"].meta.get("license")
    return f"licence: {licence}" if licence else _UNKNOWN


def licence_of_card(path: str) -> str | None:
    """Read the licence in a model card.

    Args:
        path: of a Markdown file, with facts in YAML between lines of dashes at its beginning.

    Returns:
        Its entry `license`, with name or link of one that has none of the usual identifiers; None where there is none.

    Example:
        >>> licence_of_card("README.md")  # doctest: +SKIP
        'apache-2.0'
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        head = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
        facts: Any = yaml.safe_load(head[1]) if head else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
    if not isinstance(facts, dict) or not facts.get("license"):
        return None
    more = [str(facts[key]) for key in ("license_name", "license_link") if facts.get(key)]
    text = " ".join([str(facts["license"]), *([f"({', '.join(more)})"] if more else [])])
    return text[:200] if text.isprintable() else None
