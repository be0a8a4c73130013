"""Body of the processes of `test_elastic_training.py`: `detectron2 train`, whose processes die at chosen moments.

python elastic_training.py die|live ARGUMENTS OF detectron2 train

The first time rank 1 is killed in the middle of a step, the second time rank 0 while it writes a checkpoint.
"""

import os
import signal
import sys
import time

import torch

from detectron2.cli import main
from detectron2.engine import SimpleTrainer

_ATTEMPT, _RANK = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"])


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def _let_processes_die() -> None:
    backward, save = SimpleTrainer._backward, torch.save

    def dying_backward(trainer, loss):
        if (_ATTEMPT, _RANK, trainer.iter) == (0, 1, 3):
            _die()
        backward(trainer, loss)

    def dying_save(data, file, *args, **kwargs):  # which sends objects to other processes, too
        if isinstance(data, dict) and (_ATTEMPT, _RANK, data.get("iteration")) == (1, 0, 5):
            file.write(b"PK\x03\x04 the beginning of a checkpoint")
            file.flush()
            _die()
        save(data, file, *args, **kwargs)

    SimpleTrainer._backward = dying_backward
    torch.save = dying_save


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "die":
        _let_processes_die()
    sys.exit(main(sys.argv[2:]))
