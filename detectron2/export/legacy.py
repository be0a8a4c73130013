"""The published names of export, on the graphs of `detectron2.export.graphs`.

Of new programs `export_model` is the better start: it checks what it writes, and writes more formats.

Letters: `N` images, `D` detections of all images, `K` keypoints, `H` and `W` height and width in pixels.
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from torch import nn

from detectron2.config import CfgNode
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess
from detectron2.structures import Boxes
from detectron2.structures.keypoints import heatmaps_to_keypoints
from detectron2.utils.file_io import PathManager

from .formats import need, write_artifact
from .graphs import ExportGraph, GraphOptions, build_graph
from .graphs.rcnn import instances_of_outputs

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["Caffe2Model", "Caffe2Tracer", "add_export_config", "dump_torchscript_IR", "scripting_with_instances"]


def add_export_config(cfg: CfgNode) -> CfgNode:
    """Add the options that `Caffe2Tracer` reads.

    Args:
        cfg: a config; it is changed.

    Returns:
        The same config.

    Example:
        >>> from detectron2.config import get_cfg
        >>> from detectron2.export import add_export_config
        >>> add_export_config(get_cfg()).EXPORT_CAFFE2.USE_HEATMAP_MAX_KEYPOINT
        False
    """
    was_frozen = cfg.is_frozen()
    cfg.defrost()
    cfg.EXPORT_CAFFE2 = CfgNode({"USE_HEATMAP_MAX_KEYPOINT": False})
    if was_frozen:
        cfg.freeze()
    return cfg


def dump_torchscript_IR(model: Any, dir: str | os.PathLike) -> None:
    """Write what a TorchScript program does into text files, to be read.

    Args:
        model: a traced or scripted module or function.
        dir: the folder, made if need be. It gets `model_ts_code.txt`, the code; `model_ts_IR.txt`, the graphs of all
            modules; `model_ts_IR_inlined.txt`, one graph with all calls put in; and of modules `model.txt`, their tree.

    Raises:
        TypeError: `model` is not a TorchScript program.

    Example::

        dump_torchscript_IR(torch.jit.trace(adapter, adapter.flattened_inputs), "output/traced")
    """
    is_function = isinstance(model, torch.jit.ScriptFunction)
    if not is_function and not isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"dump_torchscript_IR takes what torch.jit.trace or torch.jit.script made; got a {type(model).__name__}"
        )
    folder = os.fspath(dir)
    PathManager.mkdirs(folder)
    modules: list[tuple[str, Any]] = (
        [("", model)] if is_function else [(name, module) for name, module in model.named_modules()]
    )
    codes, graphs = [], []
    for name, module in modules:
        title = f"Module {name or '(the model)'}: {getattr(module, 'original_name', type(module).__name__)}"
        for method in (None,) if is_function else module._c._method_names():
            part = module if method is None else module._c._get_method(method)
            codes.append(f"# {title}\n{part.code}\n")
            graphs.append(f"# {title}\n{part.graph}\n")
    texts: dict[str, Any] = {"model_ts_code.txt": "\n".join(codes), "model_ts_IR.txt": "\n".join(graphs)}
    texts["model_ts_IR_inlined.txt"] = str(model.inlined_graph)
    if not is_function:
        texts["model.txt"] = str(model)
    for name, text in texts.items():
        with PathManager.open(os.path.join(folder, name), "w") as f:
            f.write(text)


class _Fields(nn.Module):
    """A detector's graph as a function from a batch to the fields of `Instances`, of all images, and their image."""

    def __init__(self, graph: ExportGraph):
        super().__init__()
        self.graph = graph

    def forward(self, images: torch.Tensor, image_sizes: torch.Tensor) -> dict[str, torch.Tensor]:
        """Predict; the arguments are those of the graph."""
        found = dict(zip(self.graph.output_names, self.graph(images, image_sizes), strict=True))
        fields = {
            "pred_boxes": found["boxes"],
            "scores": found["scores"],
            "pred_classes": found["classes"],
            "image_index": found["image_index"],
        }
        if "masks" in found:
            fields["pred_masks"] = found["masks"][:, None]
        if "keypoint_heatmaps" in found:
            keypoints = heatmaps_to_keypoints(found["keypoint_heatmaps"], found["boxes"])
            fields["pred_keypoints"] = keypoints[:, :, [0, 1, 3]]
            fields["pred_keypoint_heatmaps"] = found["keypoint_heatmaps"]
        return fields


class _Scripted(nn.Module):
    """The inputs of the models of this library around a traced function of a batch; scripted itself."""

    def __init__(self, traced: Any, device: torch.device):
        super().__init__()
        self.traced = traced
        self.device = device

    def forward(self, batched_inputs: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        return self.inference(batched_inputs, do_postprocess=False)

    @torch.jit.export
    def inference(
        self, batched_inputs: list[dict[str, torch.Tensor]], do_postprocess: bool = False
    ) -> list[dict[str, torch.Tensor]]:
        if do_postprocess:
            raise ValueError("A scripted model does not post-process; pass do_postprocess=False.")
        images: list[torch.Tensor] = []
        for item in batched_inputs:
            images.append(item["image"].to(self.device, torch.float32))
        if len(images) == 0:
            raise ValueError("The batch is empty.")
        sizes = torch.tensor([[image.shape[1], image.shape[2]] for image in images])
        height, width = int(sizes[:, 0].max()), int(sizes[:, 1].max())
        batch = torch.zeros([len(images), images[0].shape[0], height, width], device=self.device)
        for i, image in enumerate(images):
            batch[i, :, : image.shape[1], : image.shape[2]] = image
        found: dict[str, torch.Tensor] = self.traced(batch, sizes.to(self.device))
        image_index = found["image_index"]
        results: list[dict[str, torch.Tensor]] = []
        for i in range(len(images)):
            rows = (image_index == i).nonzero()[:, 0]
            result: dict[str, torch.Tensor] = {}
            for name, values in found.items():
                if name != "image_index":
                    result[name] = values[rows]
            result["image_size"] = sizes[i]
            results.append(result)
        return results


def scripting_with_instances(model: nn.Module, fields: Mapping[str, Any]) -> torch.jit.ScriptModule:
    """Make a script module of a detector, with its documented inputs.

    PyTorch's script compiler is not asked to read the model's Python code: the model is traced as a graph whose shapes
    do not depend on values, and code that takes batches is scripted around it. So models of every exportable kind, also
    Cascade R-CNN, can be scripted; code that must not be traced needs a form registered with `register_exportable`.

    Args:
        model: a detector in evaluation mode, with its weights.
        fields: names and types of the attributes of `Instances` that the model uses; those of its results must be
            among them, `Boxes` for boxes and `torch.Tensor` for the rest.

    Returns:
        The module. It takes any number of images of any sizes, as `list[dict[str, Tensor]]` with "image", and returns
        for each a `dict[str, Tensor]` of these fields (of boxes the tensor), and "image_size", `(height, width)`, in
        the frame of the network input: like `model.inference(inputs, do_postprocess=False)`, which it has too. It is
        loaded without this library; torchvision's operators are needed.

    Raises:
        ValueError: the model is in training mode, is not a detector, or has a field that is missing here.
        NotExportableError: a part of the model has no exportable form.

    Example::

        fields = {"proposal_boxes": Boxes, "objectness_logits": torch.Tensor, "pred_boxes": Boxes,
                  "scores": torch.Tensor, "pred_classes": torch.Tensor, "pred_masks": torch.Tensor}
        scripted = scripting_with_instances(model, fields)
        detections = scripted.inference([{"image": image}], do_postprocess=False)[0]
    """
    graph = build_graph(model, GraphOptions(outputs="flat", nms="torchvision"))
    if "boxes" not in graph.output_names or graph.task not in ("instances", "keypoints"):
        raise ValueError(
            f"scripting_with_instances takes detectors; {type(model).__name__} gives {', '.join(graph.output_names)}. "
            "Use export_model(model, path, format='torchscript')."
        )
    functions, example = _Fields(graph).eval(), graph.example_inputs()[:2]
    with torch.no_grad():
        _check_fields(functions(*example), fields)
        traced = torch.jit.trace(functions, example, strict=False, check_trace=False)
    return torch.jit.script(_Scripted(traced, example[0].device).eval())


def _check_fields(found: Mapping[str, torch.Tensor], fields: Mapping[str, Any]) -> None:
    """Refuse fields that do not describe the results."""
    for name in found:
        if name == "image_index":
            continue
        kind: Any = Boxes if name == "pred_boxes" else torch.Tensor
        if name not in fields:
            raise ValueError(f"The model's Instances have {name!r}; add it to fields: {name!r}: {kind.__name__}.")
        if fields[name] is not kind:
            raise ValueError(f"The field {name!r} of the model's Instances is a {kind.__name__}, not {fields[name]}.")


class _RawOutputs(nn.Module):
    """A graph with the published inputs `data`, one image, and `im_info`; its outputs are those of the graph."""

    input_names = ("data", "im_info")

    def __init__(self, graph: ExportGraph):
        super().__init__()
        self.traced = graph  # the name "graph" is taken in what torch.export makes of a module
        self.output_names = tuple(name for name in graph.output_names if name != "image_index")

    def forward(self, data: torch.Tensor, im_info: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Predict."""
        found = self.traced(data, im_info[:, :2].to(torch.int64))
        named = dict(zip(self.traced.output_names, found, strict=True))
        return tuple(named[name] for name in self.output_names)

    def dynamic_shapes(self, dynamic: Sequence[str]) -> tuple[Any, ...]:
        """The height and the width may change; the batch is one image."""
        sizes = dict.fromkeys((2, 3), torch.export.Dim.DYNAMIC) if "size" in dynamic else {}
        return sizes, {}


class Caffe2Tracer:
    """Exports a model of one image without post-processing, in the published form.

    PyTorch has removed Caffe2. What remains is the form of the graph, now of operators that every runtime has. It takes
    `data`, float32 `Tensor[1, C, H, W]` of values from 0 to 255 in the model's order of channels; and `im_info`,
    float32 `Tensor[1, 3]` of `(height, width, 1.0)`, the size of the image in pixels before padding. It returns raw
    outputs: of detectors "boxes" `(D, 4)`, "scores", "classes" and, where the model has such heads, "masks"
    `(D, M, M)`, probabilities in the box, and "keypoint_heatmaps" `(D, K, S, S)`; of semantic heads "sem_seg".

    Args:
        cfg: a config with `add_export_config`.
        model: the model of this config, with its weights; it is put into evaluation mode.
        inputs: sample inputs of the model, `list[dict]` with one image; results do not depend on them.

    Raises:
        ValueError: there is more than one image, or an option has gone with Caffe2.
        NotExportableError: a part of the model has no exportable form.

    Example::

        tracer = Caffe2Tracer(add_export_config(cfg), model, [{"image": image}])
        tracer.export_torchscript().save("model.ts")
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, inputs: list[dict[str, Any]]):
        options = cfg.get("EXPORT_CAFFE2")
        if options is None:
            raise ValueError("The config has no EXPORT_CAFFE2: call cfg = add_export_config(cfg) first.")
        if options.USE_HEATMAP_MAX_KEYPOINT:
            raise ValueError(
                "EXPORT_CAFFE2.USE_HEATMAP_MAX_KEYPOINT asks for an operator of Caffe2, which PyTorch has removed. Set "
                "it to False: heat maps come out raw, and detectron2.structures.heatmaps_to_keypoints finds the peaks."
            )
        if len(inputs) != 1:
            raise ValueError(f"Caffe2Tracer takes one image; got {len(inputs)}. For batches use export_model.")
        self.cfg, self.model, self.inputs = cfg, model.eval(), inputs

    def _raw(self, nms: str) -> tuple[_RawOutputs, tuple[torch.Tensor, torch.Tensor]]:
        graph = build_graph(self.model, GraphOptions(outputs="flat", nms=nms))
        if graph.task == "mask_classification":
            raise ValueError(
                f"Caffe2Tracer has no form for the queries of {type(self.model).__name__}; use "
                "export_model(model, path, format='onnx')."
            )
        image = self.inputs[0]["image"].to(graph.model.device, torch.float32)
        size = torch.tensor([[*image.shape[1:], 1.0]], device=image.device)
        return _RawOutputs(graph).eval(), (image[None], size)

    def export_onnx(self) -> "ModelProto":
        """Export to ONNX, for images of any size.

        Returns:
            The model, an `onnx.ModelProto` of standard operators only; `Caffe2Model` runs it.

        Raises:
            ImportError: the packages of the extra `onnx` are missing.
        """
        need("onnx", "onnxscript", extra="onnx")
        import onnx

        raw, example = self._raw("operator")
        description = {"task": raw.traced.task, "inputs": raw.input_names, "outputs": raw.output_names}
        merge = ("combine_overlap_thresh", "combine_stuff_area_thresh", "combine_instances_score_thresh")
        if all(hasattr(self.model, name) for name in merge):
            description["panoptic"] = {name: getattr(self.model, name) for name in merge}
        with tempfile.TemporaryDirectory() as folder:
            path = write_artifact("onnx", raw, example, ("size",), Path(folder), description)
            return onnx.load(str(path))

    def export_torchscript(self) -> torch.jit.ScriptModule:
        """Export to TorchScript, for images of any size; torchvision's operators are needed to run it."""
        raw, example = self._raw("torchvision")
        with torch.no_grad():
            traced: Any = torch.jit.trace(raw, example, check_trace=False)
        return traced

    def export_caffe2(self) -> NoReturn:
        """Raise an error: there is no Caffe2 to export to.

        Raises:
            NotImplementedError: always; the message names what to use.
        """
        raise NotImplementedError(
            "PyTorch has removed Caffe2, so there is nothing that could run such a file. Use export_onnx(), whose "
            "result Caffe2Model runs and saves, or detectron2.export.export_model(model, path, format='onnx')."
        )


class Caffe2Model(nn.Module):
    """What `Caffe2Tracer.export_onnx` made, with the inputs and outputs of the model it was made of.

    Args:
        predict_net: the ONNX model.
        init_net: its parameters, where `predict_net` comes without them.

    Example::

        exported = Caffe2Model(tracer.export_onnx())
        instances = exported([{"image": image, "height": 480, "width": 640}])[0]["instances"]
    """

    def __init__(self, predict_net: "ModelProto", init_net: Any = None):
        super().__init__()
        need("onnx", "onnxruntime", extra="onnx")
        self._net = predict_net
        known = {tensor.name for tensor in predict_net.graph.initializer}
        self._net.graph.initializer.extend(tensor for tensor in init_net or () if tensor.name not in known)
        self._run: Any = None

    @property
    def predict_net(self) -> "ModelProto":
        """The ONNX model."""
        return self._net

    @property
    def init_net(self) -> list[Any]:
        """Its parameters, `TensorProto`s."""
        return list(self._net.graph.initializer)

    def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Predict with onnxruntime.

        Args:
            inputs: those of the model: for each image a dictionary with "image", and possibly "height" and "width".

        Returns:
            For each image what the model returns, with whole masks.
        """
        return [self._predict(item) for item in inputs]

    def _predict(self, item: Mapping[str, Any]) -> dict[str, Any]:
        image = torch.as_tensor(item["image"]).cpu().float()
        size = (image.shape[1], image.shape[2])
        height, width = int(item.get("height", size[0])), int(item.get("width", size[1]))
        found = self._outputs(image)
        result: dict[str, Any] = {}
        if "sem_seg" in found:
            result["sem_seg"] = sem_seg_postprocess(found.pop("sem_seg")[0], size, height, width)
        if "boxes" in found:
            found["image_index"] = torch.zeros(len(found["boxes"]), dtype=torch.int64)
            raw = instances_of_outputs(found, torch.tensor([size]))[0]
            result["instances"] = detector_postprocess(raw, height, width)
        if "panoptic" in self._description():
            thresholds = self._description()["panoptic"].values()
            labels = result["sem_seg"].argmax(dim=0)
            result["panoptic_seg"] = combine_semantic_and_instance_outputs(result["instances"], labels, *thresholds)
        return result

    def _description(self) -> dict[str, Any]:
        return next((json.loads(p.value) for p in self._net.metadata_props if p.key == "detectron2"), {})

    def _outputs(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        if self._run is None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            self._run = onnxruntime.InferenceSession(
                self._net.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        feed = {"data": image[None].numpy(), "im_info": np.array([[*image.shape[1:], 1]], dtype=np.float32)}
        names = [output.name for output in self._run.get_outputs()]
        return {name: torch.from_numpy(np.array(x)) for name, x in zip(names, self._run.run(names, feed), strict=True)}

    def save_protobuf(self, output_dir: str | os.PathLike) -> None:
        """Write the model.

        Args:
            output_dir: the folder. It gets `model.pb`, an ONNX model that takes its parameters from `model_init.pb`
                beside it, and `model.pbtxt`, the graph without parameters, to be read.
        """
        import onnx

        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model_init.pb").unlink(missing_ok=True)  # onnx would append to it
        options = {"save_as_external_data": True, "location": "model_init.pb", "size_threshold": 0}
        onnx.save_model(self._copy(), str(folder / "model.pb"), **options)
        graph = self._copy()
        del graph.graph.initializer[:]
        (folder / "model.pbtxt").write_text(onnx.printer.to_text(graph), encoding="utf-8")

    def _copy(self) -> "ModelProto":
        import onnx

        copy = onnx.ModelProto()
        copy.CopyFrom(self._net)
        return copy

    @staticmethod
    def load_protobuf(dir: str | os.PathLike) -> "Caffe2Model":
        """Read what `save_protobuf` wrote.

        Args:
            dir: the folder with `model.pb` and `model_init.pb`.

        Returns:
            The model.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not an ONNX model.
        """
        need("onnx", extra="onnx")
        import onnx

        path = Path(dir) / "model.pb"
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: give the folder that save_protobuf wrote")
        try:
            model = onnx.load(str(path))
            is_onnx = model.ir_version > 0 and len(model.graph.output) > 0
        except Exception as error:
            raise ValueError(_not_onnx(path)) from error
        if not is_onnx:
            raise ValueError(_not_onnx(path))
        return Caffe2Model(model)

    def save_graph(self, output_file: str | os.PathLike, inputs: list[dict[str, Any]] | None = None) -> None:
        """Draw the graph as an SVG file: one row for each operator, in the order in which they run.

        Args:
            output_file: the file.
            inputs: inputs of the model; the shapes that tensors have for the first of them are shown too.
        """
        import onnx

        net = self._copy()
        if inputs is not None:
            for value, shape in zip(net.graph.input, ((1, *inputs[0]["image"].shape), (1, 3)), strict=True):
                for dimension, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
                    dimension.dim_value = size
            net = onnx.shape_inference.infer_shapes(net, data_prop=True)
        shapes = {v.name: _shape_text(v) for v in (*net.graph.input, *net.graph.value_info, *net.graph.output)}
        rows = [f"input {value.name} {shapes[value.name]}" for value in net.graph.input]
        for node in net.graph.node:
            results = ", ".join(f"{name} {shapes.get(name, '') if inputs else ''}".strip() for name in node.output)
            rows.append(f"{node.op_type}({', '.join(node.input)}) = {results}")
        rows += [f"output {value.name}" for value in net.graph.output]
        Path(output_file).write_text(_svg_of_rows(rows), encoding="utf-8")


def _not_onnx(path: Path) -> str:
    return (
        f"{path} is not an ONNX model with its parameters. Files of Caffe2 cannot be run any more, since PyTorch has "
        "removed it: export the checkpoint again, with Caffe2Tracer.export_onnx() or `detectron2 export`."
    )


def _shape_text(value: Any) -> str:
    sizes = [
        str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in value.type.tensor_type.shape.dim
    ]
    return f"[{', '.join(sizes)}]"


def _svg_of_rows(rows: Sequence[str]) -> str:
    line = 16
    texts = [f'<text x="8" y="{line * (i + 1)}">{escape(row)}</text>' for i, row in enumerate(rows)]
    width, height = 16 + 7 * max(map(len, rows), default=0), line * (len(rows) + 1)
    size = f'width="{width}" height="{height}" font-family="monospace" font-size="11"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    return "\n".join([head, *texts, "</svg>", ""])
