"""The kinds of input that are tried: for each, a function that makes the base files and returns a maker of cases."""

# ruff: noqa: E501 (tables of hostile texts read better in long lines)

import base64
import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from detectron2.data.datasets.synthetic import generate_shapes_dataset
from tests.fuzz.mutate import ODD_VALUES, changed, changed_text, damaged
from tests.fuzz.runner import Case, WrongAcceptError, run_command

Maker = Callable[[int, Path], Case]
LOCATE = "detectron2.utils.registry.locate"

# ------------------------------------------------------------------------------------------------------------ weights


def _layer() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.BatchNorm1d(5))


def _saved(suffix: str) -> bytes:
    from detectron2.checkpoint.files import write_weights
    from detectron2.utils.file_io import PathManager

    state = _layer().state_dict()
    buffer = io.BytesIO()
    if suffix == ".pkl":
        return pickle.dumps({"model": {k: v.numpy() for k, v in state.items()}, "__author__": "x"}, 2)
    if suffix == ".safetensors":
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/a.safetensors"
            write_weights(path, state, {}, PathManager)
            return Path(path).read_bytes()
    legacy = suffix == "legacy"
    torch.save({"model": state, "iteration": 3}, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def _load(path: Path) -> None:
    from detectron2.checkpoint import DetectionCheckpointer

    model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.BatchNorm1d(5))
    DetectionCheckpointer(model).load(str(path))
    if path.stem.startswith("checked"):
        for name, value in _layer().state_dict().items():
            got = model.state_dict()[name]
            if got.shape != value.shape or not torch.equal(got, value):
                raise WrongAcceptError(f"{name} was loaded with other values")


def damaged_weights(folder: Path) -> Maker:
    """Flipped, cut and spliced files of weights; what is accepted must hold the very same values, where it can tell."""
    kinds = {".pth": _saved(".pth"), "legacy": _saved("legacy"), ".pkl": _saved(".pkl"), "st": _saved(".safetensors")}

    def make(number: int, folder: Path) -> Case:
        rng = random.Random(number)
        kind = rng.choice(list(kinds))
        # A plain pickle and the legacy format have no sum of their bytes.
        stem = "checked" if kind in (".pth", "st") else "free"
        path = folder / (stem + {"legacy": ".pth", "st": ".safetensors"}.get(kind, kind))
        path.write_bytes(damaged(kinds[kind], rng))
        return Case(kind, lambda: _load(path), (path.name,))

    return make


class _Call:
    def __init__(self, function: Any, *args: Any):
        self.function, self.args = function, args

    def __reduce__(self) -> Any:
        return self.function, self.args


_CALLED_BY_ATTACKERS = (
    "os.system",
    "posix.system",
    "builtins.eval",
    "builtins.exec",
    "subprocess.Popen",
    "builtins.__import__",
    "nt.system",
    "builtins.getattr",
    "operator.attrgetter",
    "functools.partial",
    "torch.hub.load",
    "torch.load",
    "builtins.open",
    "pathlib.Path",
    "importlib.import_module",
    "pickle.loads",
    "numpy.load",
    "numpy.f2py",
    "torch.serialization.load",
    "shutil.rmtree",
    "webbrowser.open",
    "pty.spawn",
    "collections.OrderedDict.fromkeys",
)


def _hostile_pickle(rng: random.Random) -> bytes:
    kind = rng.randrange(9)
    if kind == 0:  # a call of something
        module, _, attribute = rng.choice(_CALLED_BY_ATTACKERS).rpartition(".")
        argument = rng.choice([b"X\x04\x00\x00\x00true", b"K\x01", b"]", b"}", b"N"])
        opcode = rng.choice([b"R", b"\x81", b"R", b"b"])
        return b"\x80\x02c" + module.encode() + b"\n" + attribute.encode() + b"\n(" + argument + b"t" + opcode + b"."
    if kind == 1:  # values that repeat each other
        value: Any = 1
        for _ in range(rng.randrange(3, 30)):
            value = rng.choice([tuple, list])([value] * rng.randrange(2, 11))
        return pickle.dumps({"model": {"w": value}}, 2)
    if kind == 2:  # claimed sizes
        size = rng.choice([2**31 - 1, 2**33, 2**40, 2**62])
        opcode = rng.choice([b"\x96", b"\x8e", b"\x8d"])
        return b"\x80\x05" + opcode + struct.pack("<Q", size) + b"abc."
    if kind == 3:  # constructors with large arguments
        name = rng.choice(["set", "list", "bytearray", "bytes", "tuple", "frozenset", "range", "dict", "complex"])
        count = rng.choice([10**6, 10**10, 10**12])
        inner = f"c__builtin__\nrange\n(I0\nI{count}\ntR" if rng.random() < 0.5 else f"I{count}\n"
        return f"c__builtin__\n{name}\n({inner}tR.".encode()
    if kind == 4:  # frames and long numbers
        return rng.choice(
            [
                b"\x80\x04\x95" + struct.pack("<Q", rng.choice([2**63 - 1, 2**40, 5])) + b"N.",
                b"\x80\x02\x8b" + struct.pack("<i", rng.choice([-1, 2**31 - 1, 10**6])) + b"a.",
                b"I" + b"9" * rng.choice([10, 5000, 10**6]) + b"\n.",
                b"(" * rng.choice([10, 10**5]) + b"t.",
                b"]" * 10**5 + b"a" * 10**5 + b".",
                b"cx\n" + b"y" * 10**5 + b"\n.",
                b"\x80\x02}q\x00.",
                b".",
                b"",
                b"N.",
                b"0.",
                b"2.",
                b"\x80\xff.",
                b"h\x05.",
                b"\x82\x01.",
                b"P1\n.",
                b"Q.",
            ]
        )
    if kind == 5:  # memo tricks
        return b"\x80\x02" + rng.choice([b"]q\x00h\x00a.", b"}q\x00(h\x00h\x00u.", b"(lp0\ng0\na.", b"(q\x00t."])
    data = pickle.dumps({"model": {"a": np.zeros(3), "b": _layer().state_dict()}}, rng.choice([0, 1, 2, 4, 5]))
    return damaged(data, rng)


def hostile_weights(folder: Path) -> Maker:
    """Pickles that call, repeat, claim and nest, plain and inside `torch.save`'s archive; headers of safetensors."""

    def make(number: int, folder: Path) -> Case:
        rng = random.Random(number)
        data, suffix = _hostile_pickle(rng), ".pkl"
        form = rng.randrange(4)
        if form == 1:
            suffix, buffer = ".pth", io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                archive.writestr("a/data.pkl", data)
                archive.writestr("a/version", "3\n")
                if rng.random() < 0.5:
                    archive.writestr("a/data/0", b"\0" * 140)
            data = buffer.getvalue()
        elif form == 2:
            suffix = ".safetensors"
            header = rng.choice(
                [
                    b"[" * rng.choice([10, 10**6]),
                    b'{"a":' * 10**4,
                    json.dumps(
                        changed(
                            {
                                "x": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
                                "__metadata__": {"a": "b"},
                            },
                            rng,
                        )
                    ).encode(),
                    rng.randbytes(40),
                ]
            )
            length = rng.choice([len(header), len(header), 2**62, 0, 2**31])
            data = struct.pack("<Q", length) + header + b"\0" * rng.choice([0, 16, 160])
        elif form == 3 and rng.random() < 0.5:
            suffix = ".pth"
        path = folder / f"hostile{suffix}"
        path.write_bytes(data)
        return Case(suffix, lambda: _load(path), (path.name,))

    return make


# ------------------------------------------------------------------------------------------------------------ configs


def _hostile_call(rng: random.Random, depth: int = 0) -> Any:
    targets = [
        "torch.nn.Linear", "torch.nn.Identity", "torch.nn.Sequential", "torchvision.ops.misc.ConvNormActivation", "os.system",
        "torchvision.models._api.WeightsEnum.get_state_dict", "torchvision.models.resnet50", "torchvision.models.get_model",
        "torch.hub.load_state_dict_from_url", "torch.nn.cpp.OrderedDictWrapper", "detectron2.layers.get_norm", LOCATE,
        "detectron2.config.lazy_text.make_partial", "builtins.dict", "builtins.eval", "builtins.__import__", "subprocess.run",
        "detectron2.modeling.FPN", "detectron2.data.DatasetMapper", "detectron2.model_zoo.get", "torch.load", "functools.partial",
        "detectron2.engine.launch", "detectron2.config.instantiate.instantiate", "fvcore.nn.FlopCountAnalysis", "torch.nn",
        "detectron2.checkpoint.DetectionCheckpointer", "torch.nn.Module.apply", "torch.nn.init._no_grad_fill_", "pathlib.Path",
        "detectron2.utils.env.import_file", "detectron2.data.transforms.ColorTransform", "torch.nn.ReLU.__class__", "", "a..b",
        "torch.nn.functional.relu", "torch.nn.functional.handle_torch_function", "torchvision.models.detection.ssd300_vgg16",
    ]  # fmt: skip
    keys = [
        "in_features",
        "out_features",
        "func",
        "args",
        "keywords",
        "name",
        "command",
        "weights",
        "url",
        "progress",
        "self",
        "fn",
    ]
    if depth > 3 or rng.random() < 0.3:
        return rng.choice(
            [
                1,
                "os.system",
                "${oc.env:HOME}",
                "${model}",
                "http://localhost:1/x",
                "/etc/passwd",
                [],
                {},
                None,
                "touch /tmp/x",
            ]
        )
    call: dict[str, Any] = {"_target_": rng.choice(targets) if rng.random() < 0.9 else _hostile_call(rng, depth + 1)}
    for _ in range(rng.randrange(4)):
        call[rng.choice(keys)] = _hostile_call(rng, depth + 1)
    return call


_FORBIDDEN = (
    "os.system",
    "torch.hub",
    "torch.load",
    "subprocess",
    "builtins.eval",
    "WeightsEnum",
    "launch",
    "model_zoo",
    "pathlib",
)


def lazy_configs(folder: Path) -> Maker:
    """Configs of calls in a file of weights: refused, or harmless when they are carried out."""
    import sys

    seen: list[str] = []

    def watch(event: str, args: Any) -> None:
        if event in (
            "os.system",
            "subprocess.Popen",
            "socket.connect",
            "os.posix_spawn",
            "os.exec",
            "os.remove",
            "shutil.rmtree",
        ):
            seen.append(event)

    sys.addaudithook(watch)

    def run(path: Path, text: str) -> None:
        from omegaconf import DictConfig

        from detectron2.checkpoint import read_description
        from detectron2.config import instantiate
        from detectron2.config.trusted_calls import refuse_foreign_config

        description = read_description(str(path))
        cfg = description.load_config() if description else None
        if not isinstance(cfg, DictConfig):
            raise ValueError(f"no config in {path.name}")
        refuse_foreign_config(cfg, path.name)
        try:
            with torch.device("meta"):
                instantiate(cfg.model)
        except Exception:  # calls that make no sense
            pass
        if seen:
            raise WrongAcceptError(f"{seen} by {text[:200]}")

    def make(number: int, folder: Path) -> Case:
        rng = random.Random(number)
        model = _hostile_call(rng)
        text = yaml.safe_dump(
            {"model": model, "train": {"device": "cpu"}, "dataloader": {"test": {"mapper": _hostile_call(rng)}}}
        )
        if rng.random() < 0.3:
            text = changed_text(text, rng)
        elif rng.random() < 0.1:
            levels = rng.randrange(4, 12)
            text = (
                "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else '1'] * 9)}]\n" for i in range(levels))
                + "model: *a3\n"
            )
        path = folder / "lazy.pth"
        torch.save({"model": {}, "description": {"config": text, "config_kind": "lazy"}}, path)
        return Case("lazy", lambda: run(path, text))

    return make


def _expression(rng: random.Random) -> str:
    return rng.choice(
        [
            "sum([[0]*9999]*9999,[])", "[0]*10**9", "2**10**9", "'a'*10**10", "[x for x in range(10**9)]", "1/0", "().__class__",
            "(1).__class__.__bases__", "open('/etc/passwd')", "__import__('os')", "[[1]*1000]*1000", "range(10**12)", "max([])", "1<<10**6",
            "'%999999999d' % 1", "f'{1:>999999999}'", "[y for x in [[0]*999]*999 for y in x]", "tuple(range(10**8))", "abs('a')", "-'a'",
            "[1,2][5]", "{}['a']", "lambda: 1", "1 if", "(" * 500, "not" * 300, "int('9'*10**6)", "round(1, 10**9)", "[2 ** x for x in range(5)]",
        ]
    )  # fmt: skip


def yaml_configs(folder: Path) -> Maker:
    """YAML of both kinds of config: odd values, tags, aliases, nesting, and values of keys of the defaults."""
    from detectron2.config import CfgNode, LazyConfig, get_cfg
    from detectron2.config.merge import iter_leaves

    keys = [key for key, _ in iter_leaves(get_cfg())]
    lines = get_cfg().dump()

    def make(number: int, folder: Path) -> Case:
        rng = random.Random(number)
        kind = rng.randrange(5)
        path = folder / ("lazy.yaml" if kind == 1 else "config.yaml")
        if kind == 0:
            pairs = [
                rng.choice(keys),
                rng.choice([*map(str, ODD_VALUES), "()", "(5,)", "[]", "''", "None", "10**30", "[[]]"]),
            ]
            return Case(f"key {pairs}", lambda: get_cfg().merge_from_list(pairs))
        if kind == 2:
            text = rng.choice(
                [
                    f'A: !!python/object/apply:eval ["{_expression(rng)}"]\n', "a: !!bool x\n", "a: !!int ''\n", "a: !!timestamp x\n",
                    "a: 2020-13-45\n", "a: " + "9" * 10**6 + "\n", "[" * 10**4, "a: !!float x\n", "a: !!binary '@'\n", "a: !!set [1]\n",
                    "a: !!omap [1]\n", "a: !!pairs x\n", "a: !!python/name:os.system\n", "a: !!python/object/new:os.system [true]\n", "? {}\n: 1\n",
                    "a: &a [*a]\n", "a: &a {b: *a}\n", "<<: 1\n", "<<: [1]\n", "a: 1:2:3:4\n", "a: 0b\n", "a: 0x\n", "a: .inf\n", "a: ~\n? [1]\n: 2",
                    "%YAML 9.9\n---\na: 1\n", "a: 1\n---\nb: 2\n", "\x00", "a: \x1b[2J\n", "\ufeffa: 1\n", "a: !<x> 1\n", "a: !!python/tuple 1\n",
                    "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else '1'] * 9)}]\n" for i in range(rng.randrange(3, 12))),
                    "".join(f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' if i else f'k{j}: 1' for j in range(9))}}}\n" for i in range(rng.randrange(3, 12))),
                ]
            )  # fmt: skip
            path.write_bytes(text.encode())
        elif kind == 1:
            path.write_text(
                yaml.safe_dump({"model": changed({"_target_": "torch.nn.ReLU", "a": [1, {"b": "${model.a}"}]}, rng)})
            )
            return Case("lazy", lambda: LazyConfig.load(str(path)), (path.name,))
        else:
            path.write_bytes(changed_text(lines, rng).encode(errors="replace"))
        if rng.random() < 0.5:
            return Case("merge", lambda: get_cfg().merge_from_file(str(path)))
        return Case("load", lambda: CfgNode.load_yaml_with_base(str(path)), (path.name,))

    return make


# --------------------------------------------------------------------------------------------------------------- data


def _coco_base(folder: Path) -> dict[str, Any]:
    base = json.loads(generate_shapes_dataset(folder / "shapes", 3, size_hw=(48, 64), seed=1).read_text())
    for i, annotation in enumerate(base["annotations"]):
        annotation["keypoints"], annotation["num_keypoints"] = [10, 10, 2, 20, 20, 1, 0, 0, 0], 2
        if i % 3 == 0:
            annotation["segmentation"] = {"size": [48, 64], "counts": [1000, 200, 1872]}
    for category in base["categories"]:
        category["keypoints"], category["skeleton"] = ["a", "b", "c"], [[1, 2]]
    return base


def coco(folder: Path) -> Maker:
    """Annotations in COCO format: loaded and mapped, checked, repaired, converted, and used as ground truth."""
    base = _coco_base(folder)
    images = folder / "shapes" / "images"

    def load(path: Path, mask_format: str) -> None:
        from detectron2.data import DatasetMapper
        from detectron2.data.datasets import load_coco_json

        mapper = DatasetMapper(
            is_train=True,
            augmentations=[],
            image_format="BGR",
            use_instance_mask=True,
            instance_mask_format=mask_format,
        )
        for record in load_coco_json(str(path), str(images))[:3]:
            found = mapper(record)["instances"]
            if not torch.isfinite(found.gt_boxes.tensor).all():
                raise WrongAcceptError("a box that is not finite")

    def repair(path: Path) -> None:
        fixed = path.with_name("fixed.json")
        fixed.unlink(missing_ok=True)
        run_command("data", "check", path, "--image-root", images, "--fix", fixed)
        left = json.loads(fixed.read_text())
        if not left["annotations"]:
            raise WrongAcceptError("nothing is left and the check passes")

    def evaluate(path: Path) -> None:
        from detectron2.data import DatasetCatalog, MetadataCatalog
        from detectron2.data.datasets import register_coco_instances
        from detectron2.evaluation import COCOEvaluator
        from detectron2.structures import Boxes, Instances

        for catalog in (DatasetCatalog, MetadataCatalog):
            if "fuzz" in catalog:
                catalog.remove("fuzz")
        register_coco_instances("fuzz", {}, str(path), str(images))
        evaluator = COCOEvaluator("fuzz", tasks=("bbox",))
        evaluator.reset()
        found = Instances(
            (48, 64),
            pred_boxes=Boxes(torch.tensor([[1.0, 1, 9, 9]])),
            scores=torch.ones(1),
            pred_classes=torch.zeros(1).long(),
        )
        evaluator.process([{"image_id": 1, "height": 48, "width": 64}], [{"instances": found}])
        evaluator.evaluate()

    def make(number: int, folder: Path) -> Case:
        rng = random.Random(number)
        path = folder / "a.json"
        text = json.dumps(changed(base, rng))
        path.write_text(changed_text(text, rng) if rng.random() < 0.05 else text, errors="replace")
        runs: dict[str, Callable[[], Any]] = {
            "load": lambda: load(path, "polygon"),
            "load bitmasks": lambda: load(path, "bitmask"),
            "check": lambda: run_command("data", "check", path, "--image-root", images, "--num-classes", 6),
            "fix": lambda: repair(path),
            "to voc": lambda: run_command(
                "data", "convert", path, folder / f"voc{number}", "--to", "voc", "--image-root", images
            ),
            "to yolo": lambda: run_command(
                "data", "convert", path, folder / f"yolo{number}", "--to", "yolo", "--image-root", images
            ),
            "evaluate": lambda: evaluate(path),
        }
        kind = rng.choice(list(runs))
        return Case(kind, runs[kind])

    return make


def voc(folder: Path) -> Maker:
    """Annotations in Pascal VOC format: loaded, checked, converted; entities and depth."""
    root = folder / "voc"
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / part).mkdir(parents=True)
    Image.new("RGB", (64, 48)).save(root / "JPEGImages" / "a.jpg")
    (root / "ImageSets/Main/train.txt").write_text("a\n")
    item = (
        "<object>\n<name>cat</name>\n<difficult>0</difficult>\n<truncated>0</truncated>\n<bndbox>\n<xmin>5</xmin>\n<ymin>6</ymin>\n"
        "<xmax>40</xmax>\n<ymax>30</ymax>\n</bndbox>\n</object>\n"
    )
    text = f"<annotation>\n<filename>a.jpg</filename>\n<size>\n<width>64</width>\n<height>48</height>\n<depth>3</depth>\n</size>\n{item}{item}</annotation>\n"
    laughs = '<!DOCTYPE x [<!ENTITY a "' + "x" * 1000 + '">' + "".join(
        f'<!ENTITY a{i} "{f"&a{i - 1};" * 10 if i else "&a;" * 10}">' for i in range(8)
    ) + "]>"  # fmt: skip

    def make(number: int, folder: Path) -> Case:
        rng = random.Random(number)
        body = changed_text(text, rng)
        special = rng.randrange(20)
        if special == 0:
            body = laughs + body.replace("cat", "&a7;")
        elif special == 1:
            body = '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>' + body.replace("cat", "&e;")
        elif special == 2:
            body = "<a>" * 10**5
        if special == 3:
            (root / "ImageSets/Main/train.txt").write_text(
                rng.choice(["a\na\n", "b\n", "\n", "a -1\n", "../../etc/passwd\n", "a\tb c\n", "\x00\n"])
            )
        else:
            (root / "ImageSets/Main/train.txt").write_text("a\n")
        (root / "Annotations/a.xml").write_bytes(body.encode(errors="replace"))

        def load() -> None:
            from detectron2.data.datasets import load_voc_instances

            load_voc_instances(str(root), "train", ("cat", "dog"))

        runs = {
            "load": load,
            "check": lambda: run_command("data", "check", root),
            "convert": lambda: run_command("data", "convert", root, folder / f"c{number}.json"),
        }
        kind = rng.choice(list(runs))
        return Case(kind, runs[kind])

    return make


def yolo(folder: Path) -> Maker:
    """Labels and `data.yaml` of YOLO."""
    root = folder / "yolo"
    (root / "images/train").mkdir(parents=True)
    (root / "labels/train").mkdir(parents=True)
    Image.new("RGB", (64, 48)).save(root / "images/train/a.png")
    labels = "0 0.5 0.5 0.2 0.3\n1 0.2 0.2 0.1 0.1\n0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n"
    base = {"path": str(root), "train": "images/train", "val": "images/train", "nc": 2, "names": ["a", "b"]}

    def make(number: int, folder: Path) -> Case:
        rng = random.Random(number)
        data = dict(base)
        text = labels
        if rng.random() < 0.5:
            text = changed_text(labels, rng)
        else:
            data = changed(base, rng)
            if rng.random() < 0.3 and isinstance(data, dict):
                data["names"] = rng.choice(
                    [
                        5,
                        [1, 2.5, None, ["x"]],
                        {"a": 0},
                        {0: "a", 5: "b"},
                        "a",
                        {"0": "a", "1": "b"},
                        [[[]]],
                        ["a"],
                        ["a", "a"],
                    ]
                )
            if rng.random() < 0.1 and isinstance(data, dict):
                data["train"] = rng.choice(["../../..", "/", "/proc", ".", "", 5, ["images/train", "x"], "http://x/y"])
        body = (
            yaml.safe_dump(data)
            if rng.random() < 0.95
            else rng.choice(["[" * 3000, "a: *b", "\x00", "- 1", "", "names: &a [*a]"])
        )
        (root / "data.yaml").write_text(body)
        (root / "labels/train/a.txt").write_bytes(text.encode(errors="replace"))
        command = rng.choice(["check", "convert"])
        words = [] if command == "check" else [folder / f"y{number}.json"]
        return Case(command, lambda: run_command("data", command, root / "data.yaml", *words))

    return make


def predictions(folder: Path) -> Maker:
    """Files of predictions that `analyze` reads."""
    base = _coco_base(folder)
    (folder / "truth.json").write_text(json.dumps(base))
    found = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.5}
        for a in base["annotations"]
    ]

    def make(number: int, folder: Path) -> Case:
        rng = random.Random(number)
        path = folder / "found.json"
        path.write_text(json.dumps(changed(found, rng)), errors="replace")
        words = ("--data", folder / "truth.json", "--resamples", 0, "--worst", 0, "--output", folder / "out")
        return Case("analyze", lambda: run_command("analyze", path, *words))

    return make


def images(folder: Path) -> Maker:
    """Image files: damaged ones of eight formats, arrays with odd headers, and things that are no image."""
    import os

    picture = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    files = {}
    for suffix in ("jpg", "png", "bmp", "gif", "tif", "webp", "ppm"):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
        files[suffix] = buffer.getvalue()
    buffer = io.BytesIO()
    np.save(buffer, picture)
    files["npy"] = buffer.getvalue()
    header = base64.b64decode("k05VTVBZAQB2AA==")

    def array_header(shape: str, kind: str) -> bytes:
        text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
        return header + text.ljust(117).encode() + b"\n" + b"\0" * 64

    def make(number: int, folder: Path) -> Case:
        from detectron2.data.detection_utils import read_image

        rng = random.Random(number)
        suffix = rng.choice(list(files))
        path = folder / f"image.{suffix}"
        path.unlink(missing_ok=True)
        kind = rng.randrange(12)
        if kind == 0:
            path = folder / "image.npy"
            shape = rng.choice(
                ["(100000, 100000, 30)", "(0, 0, 3)", "(-1, 2, 3)", "(2,)", "()", "(2, 2, 3)", "(4, 4)", "'x'", "(1,"]
            )
            path.write_bytes(array_header(shape, rng.choice(["|u1", "<f8", "|O", "<U9", "<c16", ">u2", "x"])))
        elif kind == 1:
            path = folder / "odd.png"
            path.unlink(missing_ok=True)
            special = rng.randrange(5)
            if special == 0:
                os.mkfifo(path)
            elif special == 1:
                path.symlink_to(path)
            elif special == 2:
                path.symlink_to("/dev/zero")
            elif special == 3:
                path.symlink_to("/dev/tty")
            else:
                path.write_bytes(b"")
        else:
            path.write_bytes(damaged(files[suffix], rng))
        return Case(suffix, lambda: read_image(str(path), rng.choice(["BGR", "RGB", "L", None])), (path.name,))

    return make


KINDS: dict[str, tuple[Callable[[Path], Maker], int]] = {
    "damaged weights": (damaged_weights, 4),
    "hostile weights": (hostile_weights, 4),
    "configs in weights": (lazy_configs, 3),
    "yaml": (yaml_configs, 3),
    "coco": (coco, 5),
    "voc": (voc, 2),
    "yolo": (yolo, 2),
    "predictions": (predictions, 1),
    "images": (images, 2),
}
