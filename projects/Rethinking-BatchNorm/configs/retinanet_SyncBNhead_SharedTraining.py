# RetinaNet with batch norm in its head that takes the statistics of all levels together.
# tools/lazyconfig_train_net.py --config-file projects/Rethinking-BatchNorm/configs/retinanet_SyncBNhead_SharedTraining.py --num-gpus 8
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from detectron2.modeling.meta_arch.retinanet import RetinaNetHead

from .retinanet_SyncBNhead import dataloader, lr_multiplier, model, optimizer, train


def normalize_together(norm, maps):
    """Normalize the feature maps of all levels as if their cells were those of one map."""
    cells = [x.flatten(2) for x in maps]
    joined = norm(torch.cat(cells, dim=2).unsqueeze(3)).squeeze(3)
    parts = joined.split([x.shape[2] for x in cells], dim=2)
    return [part.unflatten(2, x.shape[2:]) for part, x in zip(parts, maps)]


class SharedStatisticsHead(RetinaNetHead):
    """A RetinaNet head whose batch norms see the levels as one."""

    def forward(self, features):
        return self.run(self.cls_subnet, self.cls_score, features), self.run(self.bbox_subnet, self.bbox_pred, features)

    def run(self, tower, predictor, maps):
        """Apply a tower layer by layer to all levels, then its predictor."""
        for layer in [*tower, predictor]:
            maps = normalize_together(layer, maps) if isinstance(layer, _BatchNorm) else [layer(x) for x in maps]
        return maps


model.head._target_ = SharedStatisticsHead
model.head.norm = "nnSyncBN"  # one norm for all levels; for "SyncBN" the head would make one for each
