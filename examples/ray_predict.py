#!/usr/bin/env python
"""Predict on a folder of images with Ray Data: on this machine, or on all machines of a Ray cluster.

python examples/ray_predict.py [checkpoint] [folder]

Needs `pip install 'detectron2[ray]'`. Without a checkpoint the model is a random one, which finds nonsense.
"""

import argparse
import sys

try:
    import ray
except ModuleNotFoundError:
    sys.exit("This example needs Ray: pip install 'detectron2[ray]'")

from detectron2 import Predictor
from detectron2.data.datasets.synthetic import generate_shapes_dataset
from detectron2.inference import read_shards

OUTPUT = "output/examples/ray_predict"


def model(checkpoint: str | None) -> dict:
    """What makes the Predictor of each worker."""
    if checkpoint is not None:
        return {"weights": checkpoint}
    changes = ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "INPUT.MIN_SIZE_TEST", 160]
    changes += ["MODEL.WEIGHTS", "", "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 5]
    name = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
    return {"weights": name, "device": "cpu", "overrides": changes, "allow_random_weights": True}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("folder", nargs="?", default=f"{OUTPUT}/images")
    args = parser.parse_args()
    generate_shapes_dataset(OUTPUT, 6)

    # Two workers with a model, and two processors for what reads and writes. In a cluster: ray.init().
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    images = ray.data.read_binary_files(args.folder, include_paths=True)
    found = images.map_batches(
        Predictor.for_batches,
        fn_constructor_kwargs={**model(args.checkpoint), "as_table": True},
        compute=ray.data.ActorPoolStrategy(size=2),  # with GPUs also num_gpus=1
        batch_size=16,
    )
    found.write_parquet(f"{OUTPUT}/results")
    ray.shutdown()

    for row in read_shards(f"{OUTPUT}/results"):
        print(f"{row['file']}: {len(row['objects'] or [])} objects{', ' + row['error'] if row['error'] else ''}")
