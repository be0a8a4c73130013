"""The pages that are written from the code: nothing public is missing, and each has its words."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference_pages", ROOT / "docs" / "hooks" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables(reference):
    assert reference._table(["a"], []) == ["| a |", "| --- |", ""]
    assert reference._row("a|b", "c\nd") == "| a\\|b | c d |"
    assert reference._prose("MODEL.RPN.* is <read>") == "`MODEL.RPN.*` is &lt;read>"


def test_every_page_is_in_the_navigation(reference):
    pages = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    named = re.findall(r"\S+\.md", (ROOT / "mkdocs.yml").read_text())
    assert len(named) == len(set(named))
    assert set(named) == pages | set(reference.pages())
    assert not pages & set(reference.pages())


def test_definitions(reference):
    find = reference.find_definition
    assert find("detectron2.structures", "pairwise_iou_rotated") == "detectron2.structures.rotated_boxes.pairwise_iou"
    assert find("detectron2.data.transforms", "HFlipTransform") is None  # of fvcore
    assert find("detectron2.modeling", "BACKBONE_REGISTRY") == "detectron2.modeling.backbone.build.BACKBONE_REGISTRY"
    assert find("detectron2.engine", "EvalHook").startswith("detectron2.engine.hooks.")
    assert reference.page_of("detectron2.data.transforms.blend") == "data_transforms"


def test_all_public_names_are_documented(reference):
    """Each has a place on one page, and words of ours."""
    texts = {page: reference.api_page(page) for page in reference.API_PAGES}
    headings = re.findall(r"^::: (\S+)$|^### \S+ \{ #(\S+) \}$", "\n".join(texts.values()), re.MULTILINE)
    homes = reference.homes()
    assert len(headings) == len(homes) > 1000
    assert {first or second for first, second in headings} <= set(homes) | set(homes.values())
    assert [name for name, value in reference.values().items() if not reference.about_value(*value)] == []


def test_all_config_keys_have_a_meaning(reference):
    from detectron2.config.key_meanings import config_keys

    page = reference.config_page()
    keys = config_keys()
    assert len(keys) > 300 and set(re.findall(r'<a id="([\w.]+)">', page)) == set(keys)
    rows = [line for line in page.splitlines() if line.startswith("| <a")]
    assert [row for row in rows if len(row.rsplit("|", 2)[1].strip()) < 15] == []


def test_all_commands_and_options(reference):
    from detectron2.cli.arguments import _COMMANDS

    page = reference.command_page()
    assert re.findall(r"^## (.+)$", page, re.MULTILINE)[:-2] == list(_COMMANDS)
    assert "`--config-file` `FILE` | a YAML or LazyConfig file, or its name in the model zoo" in page
    cells = [re.split(r"(?<!\\)\|", line) for line in page.splitlines() if line.startswith("| `")]
    assert len(cells) > 100 and [row for row in cells if not row[2].strip()] == []


def test_models_and_data_sets(reference):
    from detectron2.model_zoo.published import list_models

    zoo = reference.zoo_page()
    assert len(re.findall(r"^\| `", zoo, re.MULTILINE)) == len(list_models()) > 100
    row = (
        r"`faster_rcnn_R_50_FPN_1x.yaml` \| boxes \| 37.9 \| 0.038 \| \[weights\]\(https://\S+\) \| CC BY-SA 3.0 \| yes"
    )
    assert re.search(row, zoo)
    row = r"`faster_rcnn_torchvision_R_50_FPN.yaml` \| boxes \| `torchvision://\w+` \| not recorded \|  \|"
    assert re.search(row, zoo)
    assert re.search(r"`rt_detr_shapes.yaml` \| boxes \|  \|  \|  \|", zoo)
    assert {model.name for model in list_models()} > reference.COMPARED


def test_compared_models_are_those_recorded(reference, shared_dir):
    names = [path.name.removesuffix(".json.gz") for path in (shared_dir / "golden" / "data").glob("*.json.gz")]
    folders = {Path(name).parent.name for name in reference.COMPARED} - {"new_baselines"}
    stems = {name.replace("__", "/") for name in names if name.partition("__")[0] in folders}
    in_yaml = {name for name in reference.COMPARED if name.endswith(".yaml")}
    assert stems == {name.removesuffix(".yaml") for name in in_yaml}
    assert len(reference.COMPARED - in_yaml) == 4  # recorded under names of their own


def test_data_sets(reference):
    code = "import runpy, sys; sys.stdout.write(runpy.run_path(sys.argv[1])['datasets_page']())"
    command = [sys.executable, "-c", code, reference.__file__]  # here other tests may have changed the data sets
    datasets = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert "| `coco_2017_val` | 80 things | `coco` | `coco/annotations/instances_val2017.json`" in datasets
