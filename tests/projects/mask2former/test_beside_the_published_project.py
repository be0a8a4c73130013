"""The published project registers the same names: it works while this package is not imported, and errors help."""

import re
import subprocess
import sys
import textwrap

import pytest

STAND_IN = """
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY

def add_maskformer2_config(cfg):
    cfg.MODEL.MASK_FORMER = type(cfg)({"NUM_OBJECT_QUERIES": 7})

class D2SwinTransformer: pass
class MSDeformAttnPixelDecoder: pass
class MaskFormerHead: pass
class MaskFormer:
    def __init__(self, cfg):
        self.queries = cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES
    def to(self, device):
        return self

BACKBONE_REGISTRY.register(D2SwinTransformer)
SEM_SEG_HEADS_REGISTRY.register(MSDeformAttnPixelDecoder)
SEM_SEG_HEADS_REGISTRY.register(MaskFormerHead)
META_ARCH_REGISTRY.register(MaskFormer)
"""
ALONE = """
import detectron2.engine, detectron2.projects, mask2former
from detectron2.config import get_cfg
from detectron2.modeling import build_model
cfg = get_cfg()
mask2former.add_maskformer2_config(cfg)
cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = "MaskFormer", "cpu"
assert build_model(cfg).queries == 7
"""
IN_COMMANDS = """
import mask2former  # as `--import mask2former` does
from detectron2.cli.train import _trainer_of
from detectron2.engine import DefaultTrainer
from detectron2.inference.loading import load_config
from detectron2.modeling import build_model
open("published.yaml", "w").write("MODEL: {META_ARCHITECTURE: MaskFormer, MASK_FORMER: {NUM_OBJECT_QUERIES: 9}}")
cfg = load_config("published.yaml", [], None, "cpu")
assert build_model(cfg).queries == 9
assert _trainer_of(cfg) is DefaultTrainer
"""
AFTER_OURS = "import detectron2.projects.mask2former, mask2former"
BEFORE_OURS = "import mask2former, detectron2.projects.mask2former"


def run(program, folder):
    (folder / "mask2former.py").write_text(STAND_IN)
    code = f"import sys; sys.path.insert(0, {str(folder)!r})\n{textwrap.dedent(program)}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)


@pytest.mark.parametrize("program", [ALONE, IN_COMMANDS])
def test_alone(tmp_path, program):
    done = run(program, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("program", "first", "second"),
    [
        (AFTER_OURS, "detectron2.projects.mask2former", "mask2former"),
        (BEFORE_OURS, "mask2former", "detectron2.projects.mask2former"),
    ],
)
def test_both(tmp_path, program, first, second):
    done = run(program, tmp_path)
    assert done.returncode == 1
    assert re.search(rf"It is {first}\.[\w.]+, and now {second}\.[\w.]+ comes\.", done.stderr)
    assert "import either package, not both" in done.stderr
