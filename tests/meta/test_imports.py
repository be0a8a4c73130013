"""What importing costs and touches."""

import subprocess
import sys
import textwrap
from pathlib import Path


def run(code: str, **env: str) -> str:
    import os

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env={**os.environ, **env}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_touches_no_dataset_folder(tmp_path: Path):
    touched = run(
        f"""
        import sys
        seen = []
        root = {str(tmp_path)!r}
        def note(event, args):
            if args and root in str(args[0]):
                seen.append((event, str(args[0])))
        sys.addaudithook(note)
        import detectron2.data, detectron2.data.datasets, detectron2.engine, detectron2.evaluation, detectron2.model_zoo
        from detectron2.data import DatasetCatalog
        assert "coco_2017_train" in DatasetCatalog.list()
        print(seen)
        """,
        DETECTRON2_DATASETS=str(tmp_path),
    )
    assert touched.strip() == "[]"


def test_importing_the_package_imports_no_torch():
    assert run("import detectron2, sys; print('torch' in sys.modules)").strip() == "False"


def test_optional_and_heavy_packages_are_imported_only_where_used():
    loaded = run(
        """
        import sys
        import detectron2.engine, detectron2.data, detectron2.evaluation, detectron2.utils.visualizer
        heavy = ("cv2", "tensorboard", "matplotlib", "pandas", "scipy", "onnx", "safetensors")
        print([m for m in heavy if m in sys.modules])
        """
    )
    assert loaded.strip() == "[]"


def test_sub_packages_are_reachable_as_attributes():
    run(
        """
        import detectron2
        from detectron2.modeling import build_model
        detectron2.config.get_cfg
        detectron2.layers.batch_norm.FrozenBatchNorm2d
        detectron2.modeling.backbone
        detectron2.structures.Boxes
        """
    )
