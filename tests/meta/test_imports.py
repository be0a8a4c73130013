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


HEAVY = (
    *("cv2", "tensorboard", "matplotlib", "pandas", "scipy", "onnx", "safetensors", "hydra", "cloudpickle"),
    *("fvcore.nn", "torch.utils.tensorboard", "torchvision.transforms.v2", "timm", "transformers"),
    *("detectron2.evaluation.analysis", "detectron2.export.api", "detectron2.inference.predictor"),
    *("detectron2.visualization.canvas", "detectron2.tracking"),
)
PACKAGES = ("layers", "structures", "modeling", "data", "checkpoint", "solver", "evaluation", "model_zoo", "engine")


def test_optional_and_heavy_packages_are_imported_only_where_used():
    loaded = run(
        f"""
        import importlib, sys
        for package in {PACKAGES}:
            importlib.import_module(f"detectron2.{{package}}")
            print(*(f"{{package}}:{{m}}" for m in {HEAVY} if m in sys.modules))
        import detectron2.utils.visualizer
        print(*(f"visualizer:{{m}}" for m in ("matplotlib", "cv2", "scipy") if m in sys.modules))
        """
    )
    assert loaded.split() == []


def test_names_that_are_imported_late_are_there():
    names = (Path(__file__).parent / "documented_names.txt").read_text().splitlines()
    documented = [n for n in names if n and not n.startswith("#")]
    missing = run(
        f"""
        import importlib, pickle
        import detectron2.evaluation as evaluation
        import detectron2.inference as inference
        assert evaluation.analysis.detections
        assert inference.predictor and inference.sources
        for package in (evaluation, inference):
            names = {{}}
            exec(f"from {{package.__name__}} import *", names)
            assert set(package.__all__) <= set(names)
            for name in package.__all__:
                assert pickle.loads(pickle.dumps(getattr(package, name))) is names[name]
            try:
                package.no_such_name
            except AttributeError as e:
                assert "no_such_name" in str(e)
            else:
                raise AssertionError

        def find(name):
            parent, _, attribute = name.rpartition(".")
            try:
                return getattr(importlib.import_module(parent), attribute)
            except ModuleNotFoundError:
                return getattr(find(parent), attribute)
        for name in {documented}:
            try:
                find(name)
            except (ImportError, AttributeError):
                print(name)
        """
    )
    assert missing.split() == []


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
