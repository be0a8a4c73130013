# Mask R-CNN with batch norm in its heads that takes the statistics of the mini-batch in inference too.
# tools/lazyconfig_train_net.py --config-file projects/Rethinking-BatchNorm/configs/mask_rcnn_BNhead_batch_stats.py --num-gpus 8
from functools import partial

from torch import nn

from .mask_rcnn_BNhead import dataloader, lr_multiplier, model, optimizer, train

# Without running statistics, all that is left is the mini-batch: in inference the regions of one image.
_batch_norm = partial(nn.BatchNorm2d, track_running_stats=False)
model.roi_heads.box_head.conv_norm = _batch_norm
model.roi_heads.mask_head.conv_norm = _batch_norm
