"""The published project registers the same names: it works while this package is not imported, and errors help."""

import subprocess
import sys
import textwrap

STAND_IN = """
from torch import nn
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY

def add_maskformer2_config(cfg):
    cfg.MODEL.MASK_FORMER = type(cfg)({"NUM_OBJECT_QUERIES": 7})

class D2SwinTransformer: pass
class MSDeformAttnPixelDecoder: pass
class MaskFormerHead: pass
class MaskFormer(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.queries = cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES

BACKBONE_REGISTRY.register(D2SwinTransformer)
SEM_SEG_HEADS_REGISTRY.register(MSDeformAttnPixelDecoder)
SEM_SEG_HEADS_REGISTRY.register(MaskFormerHead)
META_ARCH_REGISTRY.register(MaskFormer)
"""
OURS_LATER = """
import detectron2.engine, detectron2.projects, mask2former  # as `--import mask2former` does
from detectron2.config import get_cfg
from detectron2.modeling import build_model
cfg = get_cfg()
mask2former.add_maskformer2_config(cfg)
cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = "MaskFormer", "cpu"
assert build_model(cfg).queries == 7

from detectron2.cli.train import trainer_of
from detectron2.engine import DefaultTrainer
from detectron2.inference.loading import load_config
open("published.yaml", "w").write("MODEL: {META_ARCHITECTURE: MaskFormer, MASK_FORMER: {NUM_OBJECT_QUERIES: 9}}")
cfg = load_config("published.yaml", [], None, "cpu")
assert build_model(cfg).queries == 9
assert trainer_of(cfg) is DefaultTrainer
import detectron2.projects.mask2former
"""
OURS_FIRST = "import detectron2.projects.mask2former, mask2former"


def run(program, folder):
    (folder / "mask2former.py").write_text(STAND_IN)
    code = f"import sys; sys.path.insert(0, {str(folder)!r})\n{textwrap.dedent(program)}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)


def test_alone_it_works_and_ours_says_that_the_name_is_taken(tmp_path):
    done = run(OURS_LATER, tmp_path)
    ours = "detectron2.projects.mask2former.mask_former_model.MaskFormer"
    assert f"It is mask2former.MaskFormer, and now {ours} comes." in done.stderr
    assert "import either package, not both" in done.stderr


def test_after_ours_it_is_told_the_same(tmp_path):
    done = run(OURS_FIRST, tmp_path)
    assert done.returncode == 1
    ours = "detectron2.projects.mask2former.swin.D2SwinTransformer"
    assert f"It is {ours}, and now mask2former.D2SwinTransformer comes." in done.stderr
