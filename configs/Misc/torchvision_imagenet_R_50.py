# ResNet-50 of torchvision, trained on ImageNet: a task that the library knows nothing of, described with its tools alone.
# tools/lazyconfig_train_net.py --config-file configs/Misc/torchvision_imagenet_R_50.py --num-gpus 8 \
#     dataloader.train.dataset.root=/path/to/imagenet
import torch
import torch.nn.functional as F
import torchvision.transforms as T
from fvcore.common.param_scheduler import MultiStepParamScheduler
from torch import nn
from torchvision.datasets import ImageNet
from torchvision.models.resnet import Bottleneck, ResNet

from detectron2.config import LazyCall as L
from detectron2.data.samplers import InferenceSampler, TrainingSampler
from detectron2.evaluation import DatasetEvaluator
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from detectron2.utils import comm

from ..common.train import train


def build_data_loader(dataset, batch_size, num_workers, training=True):
    """Batches of (images, labels); each process of a training gets its share."""
    sampler = TrainingSampler(len(dataset)) if training else InferenceSampler(len(dataset))
    return torch.utils.data.DataLoader(
        dataset, sampler=sampler, batch_size=batch_size, num_workers=num_workers, pin_memory=True
    )


class ClassificationNet(nn.Module):
    """Gives a classifier the interface of a detectron2 model: losses in training, outputs in testing."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    @property
    def device(self):
        return next(self.model.parameters()).device

    def forward(self, inputs):
        images, labels = inputs
        scores = self.model(images.to(self.device))
        if self.training:
            return {"loss": F.cross_entropy(scores, labels.to(self.device))}
        return scores


class ClassificationAcc(DatasetEvaluator):
    """The share of images whose best-scoring class is the right one."""

    def reset(self):
        self.correct = self.total = 0

    def process(self, inputs, outputs):
        _, labels = inputs
        self.correct += (outputs.argmax(dim=1).cpu() == labels.cpu()).sum().item()
        self.total += len(labels)

    def evaluate(self):
        counts = comm.all_gather((self.correct, self.total))
        correct, total = (sum(column) for column in zip(*counts))
        return {"accuracy": correct / total if total else float("nan")}


_normalize = dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])

dataloader = dict(
    train=L(build_data_loader)(
        dataset=L(ImageNet)(
            root="/path/to/imagenet",
            split="train",
            transform=L(T.Compose)(
                transforms=[
                    L(T.RandomResizedCrop)(size=224),
                    L(T.RandomHorizontalFlip)(),
                    L(T.ToTensor)(),
                    L(T.Normalize)(**_normalize),
                ]
            ),
        ),
        batch_size=256 // 8,  # of each GPU
        num_workers=4,
        training=True,
    ),
    test=L(build_data_loader)(
        dataset=L(ImageNet)(
            root="${...train.dataset.root}",
            split="val",
            transform=L(T.Compose)(
                transforms=[
                    L(T.Resize)(size=256),
                    L(T.CenterCrop)(size=224),
                    L(T.ToTensor)(),
                    L(T.Normalize)(**_normalize),
                ]
            ),
        ),
        batch_size=256 // 8,
        num_workers=4,
        training=False,
    ),
    evaluator=L(ClassificationAcc)(),
)

model = L(ClassificationNet)(
    model=L(ResNet)(block=Bottleneck, layers=[3, 4, 6, 3], zero_init_residual=True),
)

optimizer = L(torch.optim.SGD)(
    params=L(get_default_optimizer_params)(),
    lr=0.1,
    momentum=0.9,
    weight_decay=1e-4,
)

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01, 0.001], milestones=[30, 60, 90, 100]),
    warmup_length=1 / 100,
    warmup_factor=0.1,
)

train.init_checkpoint = None
train.max_iter = 100 * 1281167 // 256  # 100 epochs of 1281167 images
