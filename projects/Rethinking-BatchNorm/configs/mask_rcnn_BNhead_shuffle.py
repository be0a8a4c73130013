# Mask R-CNN with batch norm in its heads, whose regions are shuffled across GPUs in training.
# tools/lazyconfig_train_net.py --config-file projects/Rethinking-BatchNorm/configs/mask_rcnn_BNhead_shuffle.py --num-gpus 8
import torch
import torch.distributed as dist

from detectron2.modeling.roi_heads import FastRCNNConvFCHead, MaskRCNNConvUpsampleHead
from detectron2.utils import comm

from .mask_rcnn_BNhead import dataloader, lr_multiplier, model, optimizer, train


class JoinWorkers(torch.autograd.Function):
    """Rows of all workers, in the order of their ranks; each gets the gradients of all workers for its own rows."""

    @staticmethod
    def forward(ctx, x, counts):
        ctx.first, ctx.count = sum(counts[: comm.get_rank()]), len(x)
        padded = x.new_zeros(max(counts), *x.shape[1:])
        padded[: len(x)] = x
        everyone = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(everyone, padded)
        return torch.cat([rows[:count] for rows, count in zip(everyone, counts)])

    @staticmethod
    def backward(ctx, grad):
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.first : ctx.first + ctx.count], None


def run_on_shuffled(function, x):
    """What `function` makes of each row of `x`, after all workers exchanged rows at random.

    Every worker runs an equal share of all rows, so a mini-batch holds regions of many images and not of its own two.
    """
    if comm.get_world_size() == 1:
        return function(x)
    seed = int(torch.randint(2**31, ()))
    counts, seeds = zip(*comm.all_gather((len(x), seed)))
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(seeds[0])).to(x.device)
    shares = order.tensor_split(len(counts))
    out = function(JoinWorkers.apply(x, counts)[shares[comm.get_rank()]])
    # Row i of the joined results belongs to region order[i]; take back those of this worker's regions.
    first = sum(counts[: comm.get_rank()])
    mine = order.argsort()[first : first + len(x)]
    return JoinWorkers.apply(out, [len(share) for share in shares])[mine]


class ShuffledBoxHead(FastRCNNConvFCHead):
    """A box head that shuffles its regions across GPUs in training."""

    def forward(self, x):
        return run_on_shuffled(super().forward, x) if self.training else super().forward(x)


class ShuffledMaskHead(MaskRCNNConvUpsampleHead):
    """A mask head that shuffles its regions across GPUs in training."""

    def layers(self, x):
        return run_on_shuffled(super().layers, x) if self.training else super().layers(x)


model.roi_heads.box_head._target_ = ShuffledBoxHead
model.roi_heads.mask_head._target_ = ShuffledMaskHead
