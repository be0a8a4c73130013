"""Time of a picture of predictions: objects with masks, boxes and labels on an image.

python benchmarks/bench_drawing.py                                   # 20 masks, 1920 x 1080
python benchmarks/bench_drawing.py --size 480 640 --objects 100 --save picture.png

Each part of the picture is also drawn alone. The table has the least of the rounds, of the clock and of the time that
the core worked; objects are blobs of 40 to 250 pixels, the larger ones beyond the edge in part.
"""

import argparse
import platform
import time

import numpy as np
import torch
from PIL import Image

from detectron2.data import Metadata
from detectron2.structures import BitMasks, Instances
from detectron2.visualization import Visualizer

PARTS = {
    "image only": (),
    "boxes": ("pred_boxes",),
    "boxes, labels": ("pred_boxes", "scores", "pred_classes"),
    "masks": ("pred_masks",),
    "boxes, labels, masks": ("pred_boxes", "scores", "pred_classes", "pred_masks"),
}
NAMES = ["person", "car", "dog", "cat", "bicycle"]


def make_scene(height: int, width: int, count: int) -> tuple[np.ndarray, Instances]:
    """Return an image of noise and objects with wavy outlines."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    y, x = np.ogrid[:height, :width]
    masks = []
    for _ in range(count):
        dx, dy = x - rng.uniform(0, width), y - rng.uniform(0, height)
        angle = np.arctan2(dy, dx)
        waves = sum(share * np.sin(k * angle + rng.uniform(0, 6)) for k, share in ((3, 0.25), (7, 0.12), (23, 0.04)))
        masks.append(np.hypot(dx, dy) < rng.uniform(40, 250) * (1 + waves))
    bits = BitMasks(torch.from_numpy(np.stack(masks)))
    instances = Instances((height, width), pred_boxes=bits.get_bounding_boxes(), pred_masks=bits.tensor)
    instances.scores, instances.pred_classes = torch.linspace(0.99, 0.5, count), torch.arange(count) % len(NAMES)
    return image, instances


def draw(image: np.ndarray, metadata: Metadata, instances: Instances) -> np.ndarray:
    visualizer = Visualizer(image, metadata)
    if instances.get_fields():
        visualizer.draw_instance_predictions(instances)
    return visualizer.get_output().get_image()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(1080, 1920), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--objects", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--save", metavar="FILE", help="write the picture there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    image, instances = make_scene(args.size[0], args.size[1], args.objects)
    metadata = Metadata(thing_classes=NAMES)
    print(f"{platform.machine()}, {args.size[0]} x {args.size[1]}, {args.objects} objects, {args.rounds} rounds\n")
    print("| drawn | ms | ms of the core |\n| --- | --- | --- |")
    for name, fields in PARTS.items():
        shown = Instances(instances.image_size, **{field: instances.get(field) for field in fields})
        best = [float("inf"), float("inf")]
        for i in range(args.rounds + 1):
            clock, core = time.perf_counter(), time.process_time()
            picture = draw(image, metadata, shown)
            took = time.perf_counter() - clock, time.process_time() - core
            if i:  # the first one warms up
                best = [min(pair) for pair in zip(best, took, strict=True)]
        print(f"| {name} | {1000 * best[0]:.0f} | {1000 * best[1]:.0f} |", flush=True)
    if args.save:
        Image.fromarray(picture).save(args.save)


if __name__ == "__main__":
    main()
