import pytest
import torch
from torch import nn

from detectron2.export.operations import count_exported_operations
from detectron2.utils.analysis import FlopCountAnalysis

SIZE = (24, 40)


class Layers(nn.Module):
    """Each kind of operator that counts, with the inputs of an exported model."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, stride=2, groups=1)
        self.grouped = nn.Conv2d(8, 8, 3, groups=4)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.linear = nn.Linear(4, 6)

    def forward(self, images, image_sizes):
        x = self.up(self.grouped(self.conv(images)))
        rows = x.flatten(2).transpose(1, 2)
        return self.linear(rows.mean(1)) + (rows.transpose(1, 2) @ rows).sum() + image_sizes.sum()


def products(height, width):
    h, w = height // 2, width // 2
    conv = h * w * 8 * 27
    grouped = (h - 2) * (w - 2) * 8 * 18
    up = (h - 2) * (w - 2) * 8 * 4 * 4
    pixels = 4 * (h - 2) * (w - 2)
    return {"conv": conv + grouped, "transposed": up, "linear": 4 * 6, "matmul": 4 * pixels * 4}


def exported(**options):
    inputs = (torch.zeros(1, 3, *SIZE), torch.tensor([SIZE]))
    return torch.export.export(Layers().eval(), inputs, strict=False, **options)


def test_pt2(tmp_path):
    torch.export.save(exported(), str(tmp_path / "model.pt2"))
    counts = count_exported_operations(tmp_path / "model.pt2", SIZE)
    want = products(*SIZE)
    assert counts["conv"] == want["conv"] + want["transposed"]
    assert counts.total() == sum(want.values())
    inputs = (torch.zeros(1, 3, *SIZE), torch.tensor([SIZE]))
    assert counts == FlopCountAnalysis(Layers().eval(), inputs).by_operator()


def write_onnx(path, dynamic=True):
    pytest.importorskip("onnxruntime")
    shapes = ({2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}, {}) if dynamic else None
    inputs = (torch.zeros(1, 3, *SIZE), torch.tensor([SIZE]))
    torch.onnx.export(
        Layers().eval(),
        inputs,
        str(path),
        dynamo=True,
        input_names=["images", "image_sizes"],
        dynamic_shapes=shapes,
        verbose=False,
    )
    return path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_onnx_of_any_size(tmp_path):
    path = write_onnx(tmp_path / "model.onnx")
    for size in (SIZE, (32, 16)):
        counts, want = count_exported_operations(path, size), products(*size)
        assert counts["Conv"] == want["conv"] and counts["ConvTranspose"] == want["transposed"]
        assert counts["Gemm"] + counts["MatMul"] == want["linear"] + want["matmul"]


@pytest.mark.filterwarnings("ignore")
def test_onnx_of_one_size(tmp_path):
    path = write_onnx(tmp_path / "model.onnx", dynamic=False)
    assert count_exported_operations(path, SIZE).total() == sum(products(*SIZE).values())
    with pytest.raises(ValueError, match="images of 24 x 40 pixels"):
        count_exported_operations(path, (32, 16))


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.onnx and \.pt2"):
        count_exported_operations("model.xml", SIZE)
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    value = onnx.helper.make_tensor_value_info
    nodes = [onnx.helper.make_node("MatMul", ["prompt", "prompt"], ["y"])]
    graph = onnx.helper.make_graph(nodes, "g", [value("prompt", 1, [3, 3])], [value("y", 1, [3, 3])])
    opsets = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), str(tmp_path / "model.onnx"))
    with pytest.raises(ValueError, match="an input 'prompt'"):
        count_exported_operations(tmp_path / "model.onnx", SIZE)
