"""Every small model as an ONNX file in memory, exported once, with onnxruntime to run it."""

import functools
import io
import warnings

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from detectron2.export.graphs import onnx_translations
from tests.export.graphs.models import graph_of

DEFORM_CONV = 19  # the first version of ONNX that has it
# The exporter of PyTorch cannot tell that their maps of any size are made of whole windows.
ONE_SIZE = ("Faster R-CNN, Swin", "Faster R-CNN, MViT")


class Exported:
    """An exported model: `graph` in PyTorch, `proto` in ONNX, and the same function of tensors in onnxruntime."""

    def __init__(self, name, options=None):
        import onnx
        import onnxruntime

        self.graph = graph_of(name, options)
        # In another form of attention the exporter of PyTorch meets a view that it cannot translate.
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
            warnings.simplefilter("ignore")  # of the exporter, about its own future
            program = torch.onnx.export(
                self.graph,
                self.graph.example_inputs(),
                dynamo=True,
                verbose=False,
                opset_version=DEFORM_CONV if "deformable" in name else 18,
                input_names=self.graph.input_names,
                output_names=self.graph.output_names,
                dynamic_shapes=self.graph.dynamic_shapes(
                    ["batch"] if name in ONE_SIZE else ["batch", "size"], named=True
                ),
                custom_translation_table=onnx_translations(),
            )
        file = io.BytesIO()
        program.save(file)
        self.proto = onnx.load_from_string(file.getvalue())
        self.session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])

    def __call__(self, images, sizes, threshold=None):
        feed = {"images": images.numpy(), "image_sizes": sizes.numpy()}
        if self.graph.score_threshold is not None:
            wanted = self.graph.score_threshold if threshold is None else threshold
            feed["score_threshold"] = torch.tensor(wanted, dtype=torch.float32).numpy()
        return [torch.from_numpy(x) for x in self.session.run(list(self.graph.output_names), feed)]


exported = functools.lru_cache(maxsize=None)(Exported)
