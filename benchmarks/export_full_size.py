"""Export models of the zoo at full size with random weights, and check what is written: once in a while, by hand.

The logits of each model are brought to the spread of trained ones, and most regions to the background: otherwise
thousands of boxes with a score near 1 compete, and the last digit decides which of them stays.

python benchmarks/export_full_size.py                            # five models, 800 x 1333, one size
python benchmarks/export_full_size.py --models "Mask R-CNN R-50 FPN" --dynamic --format pt2

Prints for each model the size of the file, how long the export with its checks took, and the largest differences.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from bench_export import model_of
from torch import nn

from detectron2 import model_zoo
from detectron2.data.datasets.synthetic import generate_shapes_dataset
from detectron2.data.detection_utils import read_image
from detectron2.export.api import export_model, megabytes_of
from detectron2.export.formats import FORMATS
from detectron2.export.verify import VerificationError

MODELS = {
    "Mask R-CNN R-50 FPN": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml",
    "RetinaNet R-50 FPN": "COCO-Detection/retinanet_R_50_FPN_3x.yaml",
    "Cascade Mask R-CNN R-50 FPN": "Misc/cascade_mask_rcnn_R_50_FPN_3x.yaml",
    "Panoptic FPN R-50": "COCO-PanopticSegmentation/panoptic_fpn_R_50_3x.yaml",
    "Keypoint R-CNN R-50 FPN": "COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x.yaml",
}
LOGITS = ("cls_score", "predictor", "objectness_logits", "score_lowres")
SPREAD, BACKGROUND = 2.0, 6.0


def spread_logits(model: nn.Module, images: list[torch.Tensor]) -> None:
    """Give the logits of a model a standard deviation of 2, and those of the background, where it is a class, 6 more.

    Heads that work on each other's results are scaled one after another.
    """
    heads = [m for path, m in model.named_modules() if path.rpartition(".")[2] in LOGITS and hasattr(m, "weight")]
    inputs = [{"image": image} for image in images]
    for head in heads:
        seen: list[torch.Tensor] = []
        handle = head.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output))
        with torch.no_grad():
            model(inputs)
            handle.remove()
            head.weight *= SPREAD / torch.cat([output.flatten() for output in seen]).std()
            if isinstance(head, nn.Linear):
                head.bias[-1] += BACKGROUND


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1333), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--format", default="onnx", choices=list(FORMATS))
    parser.add_argument("--dynamic", action="store_true", help="leave batch and size open")
    args = parser.parse_args()
    print(
        "| model | format | sizes | MB | written and checked in | largest differences | detections, of which swapped |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as temporary:
        pictures = generate_shapes_dataset(temporary, 2, size_hw=tuple(args.size)).with_name("images")
        images = [
            torch.from_numpy(read_image(str(p), "BGR").copy()).permute(2, 0, 1).float() for p in pictures.iterdir()
        ]
        for name in args.models:
            model = model_of(MODELS[name], images)
            spread_logits(model, images[:1])
            folder = Path(temporary) / name.replace(" ", "_")
            start = time.perf_counter()
            dynamic = ("batch", "size") if args.dynamic else ()
            cfg = model_zoo.get_config(MODELS[name])
            row = f"| {name} | {args.format} | {'any' if args.dynamic else f'{args.size[0]} x {args.size[1]}'} |"
            try:
                report = export_model(model, folder, args.format, cfg=cfg, size=tuple(args.size), dynamic=dynamic)
            except (ValueError, VerificationError) as error:
                print(row, f" | {time.perf_counter() - start:.0f} s | {error} | |", flush=True)
                continue
            worst: dict[str, float] = {}
            for comparison in report.comparisons:
                for kind, value in comparison.differences.items():
                    worst[kind] = max(worst.get(kind, 0.0), value)
            found = sum(c.expected for c in report.comparisons)
            swapped = sum(c.swapped for c in report.comparisons)
            differences = ", ".join(f"{kind} {value:.1e}" for kind, value in worst.items())
            seconds = time.perf_counter() - start
            print(
                row, f"{megabytes_of(folder):.0f} | {seconds:.0f} s | {differences} | {found}, {swapped} |", flush=True
            )


if __name__ == "__main__":
    main()
