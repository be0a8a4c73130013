"""Speed of training steps and of inference for models of the zoo, on random images.

python benchmarks/bench_models.py                      # on the CPU: small images, batch 2
python benchmarks/bench_models.py --device cuda --size 800 1216 --batch 8 --amp

Prints the median of the repetitions after a warm-up.  Weights are random, so that the number of detections is set by
TEST.DETECTIONS_PER_IMAGE alone (the score threshold is 0).
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from detectron2 import model_zoo
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

MODELS = [
    "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
    "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
]


def batch(n: int, height: int, width: int) -> list[dict]:
    """Random images with eight square objects each."""
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for _ in range(n):
        corner = torch.rand(8, 2, generator=generator) * torch.tensor([width * 0.7, height * 0.7])
        boxes = torch.cat([corner, corner + 0.25 * min(height, width)], dim=1)
        polygons = [[box[[0, 1, 2, 1, 2, 3, 0, 3]].double().numpy()] for box in boxes]
        instances = Instances((height, width), gt_boxes=Boxes(boxes), gt_classes=torch.arange(8))
        instances.gt_masks = PolygonMasks(polygons)
        inputs.append({"image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8), "instances": instances})
    return inputs


def median_seconds(function: Callable[[], object], repetitions: int, device: str) -> float:
    """Return the median time of a call, including the work of the device."""
    times = []
    for i in range(repetitions + 2):
        start = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        if i >= 2:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, nargs=2, default=(320, 480), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    args = parser.parse_args()
    inputs = batch(args.batch, *args.size)
    print(
        f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads, batch {args.batch}, {args.size}"
    )
    print(f"{'model':55s} {'train img/s':>12s} {'infer img/s':>12s}")
    for name in MODELS:
        cfg = model_zoo.get_config(name)
        cfg.merge_from_list(["MODEL.DEVICE", args.device, "MODEL.WEIGHTS", "", "SOLVER.BASE_LR", 1e-6])
        cfg.merge_from_list(["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0])
        torch.manual_seed(0)
        model = build_model(cfg)
        optimizer = build_optimizer(cfg, model)

        def train(model=model, optimizer=optimizer):
            with torch.autocast(args.device, torch.bfloat16, enabled=args.amp), EventStorage():
                loss = sum(model.train()(inputs).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        def infer(model=model):
            with torch.inference_mode(), torch.autocast(args.device, torch.bfloat16, enabled=args.amp):
                model.eval()(inputs)

        speeds = [args.batch / median_seconds(f, args.repetitions, args.device) for f in (train, infer)]
        print(f"{name:55s} {speeds[0]:12.2f} {speeds[1]:12.2f}", flush=True)


if __name__ == "__main__":
    main()
