"""The usual way to train and to predict from a config: setup, `DefaultPredictor` and `DefaultTrainer`."""

import argparse
import functools
import inspect
import itertools
import logging
import math
import os
import sys
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

import detectron2.data.transforms as T
import detectron2.utils.comm as comm
from detectron2.checkpoint import CheckpointDescription, DetectionCheckpointer
from detectron2.config import CfgNode, LazyConfig
from detectron2.config.unread import warn_of_unread
from detectron2.config.values import check_values
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.detection_utils import build_augmentation
from detectron2.data.resize_later import resize_later
from detectron2.data.validation import validate_class_names
from detectron2.engine import hooks
from detectron2.engine.checkpointing import SelfDescription, build_checkpointer, load_or_resume, yaml_config
from detectron2.engine.class_names import has_fixed_classes, match_classes, match_training_classes
from detectron2.engine.divergence import DivergencePolicy
from detectron2.engine.evaluator_trial import try_evaluators
from detectron2.engine.hooks.order import default_hooks, with_outer_hooks
from detectron2.engine.hooks.run_summary import explain_data, explain_schedule
from detectron2.engine.model_preparation import create_ddp_model, prepare_model
from detectron2.engine.options import TrainOptions, check_train_values
from detectron2.engine.options import get_key as _try_get_key  # projects import it under this name
from detectron2.engine.run_folder import other_training, resumes_after_restart
from detectron2.engine.train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase
from detectron2.evaluation import (
    DatasetEvaluator,
    build_evaluator,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from detectron2.inference.image_check import check_image, plain_image
from detectron2.inference.loading import on_available_device
from detectron2.modeling import build_model
from detectron2.modeling.optimized import OptimizedForm
from detectron2.modeling.test_time_augmentation import build_model_with_tta
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    ProgressLine,
    TensorboardXWriter,
    make_writers,
)
from detectron2.utils.file_io import PathManager, atomic_write
from detectron2.utils.logger import IN_FILE, setup_logger

__all__ = [
    "DefaultPredictor",
    "DefaultTrainer",
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "default_writers",
]

logger = logging.getLogger(__name__)


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """Build the argument parser that the training scripts share, to which a script can add options.

    `epilog` is the text after the options; by default it shows examples of use.
    """
    script = os.path.basename(sys.argv[0])
    parser = argparse.ArgumentParser(
        epilog=epilog
        or f"""examples:
  one GPU:               {script} --config-file cfg.yaml
  eight GPUs:            {script} --config-file cfg.yaml --num-gpus 8
  no GPU:                {script} --config-file cfg.yaml MODEL.DEVICE cpu
  change values:         {script} --config-file cfg.yaml MODEL.WEIGHTS /path/to/weights.pth SOLVER.BASE_LR 0.001
  two machines:          {script} --machine-rank 0 --num-machines 2 --dist-url tcp://MACHINE0:PORT [...]
                         {script} --machine-rank 1 --num-machines 2 --dist-url tcp://MACHINE0:PORT [...]
""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="a YAML or LazyConfig file")
    text = "continue from the last checkpoint of the output directory, if there is one"
    parser.add_argument("--resume", action="store_true", help=text)
    parser.add_argument("--eval-only", action="store_true", help="evaluate the weights and train nothing")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on *each* machine, one GPU each")
    parser.add_argument("--num-machines", type=int, default=1, help="total number of machines")
    parser.add_argument("--machine-rank", type=int, default=0, help="which machine this is, from 0")
    text = 'where processes meet, "tcp://MACHINE0:PORT"; "auto": a free local port'
    parser.add_argument("--dist-url", default="auto", help=text)
    text = "changes to the config, after all options: pairs KEY VALUE for YAML, path.key=value for LazyConfig"
    parser.add_argument("opts", default=None, nargs=argparse.REMAINDER, help=text)
    return parser


def _highlight(code: str, filename: str) -> str:
    """Colour source text for a terminal, if pygments is installed; projects use it to print configs."""
    try:
        import pygments
    except ImportError:
        return code
    from pygments.formatters import Terminal256Formatter
    from pygments.lexers import Python3Lexer, YamlLexer

    lexer = Python3Lexer() if filename.endswith(".py") else YamlLexer()
    return pygments.highlight(code, lexer, Terminal256Formatter(style="monokai"))


def default_setup(cfg: Any, args: argparse.Namespace) -> None:
    """Prepare a run: create the output folder, set up loggers, log the environment, and seed the generators.

    The config is written to `config.yaml` in the output folder. Environment, command line, config and model are long:
    they go to the log file alone, unless `args.verbose`.

    Args:
        cfg: a `CfgNode` or an omegaconf config.
        args: the parsed command line, which is logged.
    """
    check_values(cfg)
    if isinstance(train := _try_get_key(cfg, "train"), Mapping):
        check_train_values(train)
    output_dir = _try_get_key(cfg, "OUTPUT_DIR", "output_dir", "train.output_dir") or None
    if comm.is_main_process() and output_dir:
        PathManager.mkdirs(output_dir)
    rank = comm.get_rank()
    setup_logger(output_dir, distributed_rank=rank, name="fvcore")
    logger = setup_logger(output_dir, distributed_rank=rank)
    is_brief = output_dir and not getattr(args, "verbose", False)
    for handler in logger.handlers:
        if getattr(handler, "detectron2_target", "") == "stdout":
            handler.filters = [lambda record: not hasattr(record, "in_file")] if is_brief else []
    logger.info("Process %d of %d", rank, comm.get_world_size())
    logger.info("Environment:\n%s", collect_env_info(), extra=IN_FILE)
    logger.info("Command line: %s", args, extra=IN_FILE)
    if config_file := getattr(args, "config_file", ""):
        with PathManager.open(config_file, "r") as f:
            logger.info("Contents of %s:\n%s", config_file, str(f.read()), extra=IN_FILE)
    if comm.is_main_process() and output_dir:
        path = os.path.join(output_dir, "config.yaml")
        if other_training(output_dir):  # whose config.yaml stays
            path = os.path.join(output_dir, f"config.{os.getpid()}.yaml")
        if isinstance(cfg, CfgNode):
            with atomic_write(path, "w") as f:
                f.write(cfg.dump())
        else:
            LazyConfig.save(cfg, path)
        logger.info("The full config is in %s", path)
    seed = _try_get_key(cfg, "SEED", "train.seed", default=-1)
    seed_all_rng(None if seed is None or seed < 0 else seed + rank)
    if precision := _try_get_key(cfg, "FLOAT32_PRECISION", default=""):
        torch.set_float32_matmul_precision(precision)
    if _try_get_key(cfg, "TRAIN.DETERMINISTIC", "train.deterministic", default=False):
        _make_deterministic(seed, logger)
    # Benchmarking convolutions pays off only where image sizes repeat, which they do not in evaluation.
    elif not getattr(args, "eval_only", False):
        benchmark = _try_get_key(cfg, "CUDNN_BENCHMARK", "train.cudnn_benchmark", default=False)
        torch.backends.cudnn.benchmark = bool(benchmark)


def _make_deterministic(seed: int | None, logger: logging.Logger) -> None:
    """Use deterministic algorithms; PyTorch warns where there is none."""
    if seed is None or seed < 0:
        logger.warning("Deterministic algorithms do not make a run repeatable without a seed: set SEED (train.seed).")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA is used for the first time
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)


def default_writers(
    output_dir: str, max_iter: int | None = None, images_per_iter: int | None = None
) -> list[EventWriter]:
    """Build the default writers: terminal, `metrics.json` and TensorBoard, and a progress line if it is a terminal.

    The folder of the files, `output_dir`, is created if necessary. The number of iterations allows an estimate of the
    remaining time, and the number of images in one iteration over all processes shows the speed.
    """
    PathManager.mkdirs(output_dir)
    is_terminal = getattr(sys.stdout, "isatty", lambda: False)()
    return [
        CommonMetricPrinter(max_iter, images_per_iter=images_per_iter),
        JSONWriter(os.path.join(output_dir, "metrics.json")),
        TensorboardXWriter(output_dir),
        *([ProgressLine(max_iter, images_per_iter=images_per_iter)] if is_terminal else []),
    ]


class DefaultPredictor:
    """Predict on single images: load weights, convert the colour order, resize, run the model.

    The device is `cfg.MODEL.DEVICE`, or the CPU if there is no GPU. On the CPU the optimized form of the model runs
    (`detectron2.modeling.optimized.OptimizedForm`), where it has one; changes of the model come through.
    `detectron2.Predictor` takes files, folders, videos and batches, and is faster.

    Example:
        predictor = DefaultPredictor(cfg)
        outputs = predictor(cv2.imread("input.jpg"))

    A checkpoint of `DefaultTrainer` contains its config:

        cfg = detectron2.checkpoint.read_description("model_final.pth").load_config()
        cfg.MODEL.WEIGHTS = "model_final.pth"

    Args:
        cfg: reads `MODEL.*`, `INPUT.FORMAT`, `INPUT.{MIN,MAX}_SIZE_TEST`, `TEST.AUG` and `DATASETS.TEST` (for
            metadata).

    Attributes:
        metadata: metadata of the first test data set, such as class names. If that is not registered, the metadata in
            the checkpoint.
        model: the model, in evaluation mode.
        aug: the resizing.
        input_format: the colour order that the model expects.
    """

    _has_tta = False
    _has_warned = False
    _form: OptimizedForm | None = None  # also where a subclass has its own constructor

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = on_available_device(cfg).clone()
        self.model = build_model(self.cfg)
        self.model.eval()
        name = cfg.DATASETS.TEST[0] if len(cfg.DATASETS.TEST) else "__unused"
        self.metadata = MetadataCatalog.get(name)
        checkpoint = DetectionCheckpointer(self.model).load_for_inference(cfg.MODEL.WEIGHTS)
        is_known = name in DatasetCatalog or "thing_classes" in self.metadata.as_dict()
        if not is_known and "description" in checkpoint:
            description = CheckpointDescription.from_plain(checkpoint["description"], cfg.MODEL.WEIGHTS)
            self.metadata = description.load_metadata()
        elif "thing_classes" in self.metadata.as_dict():
            match_classes(self.model, [name], is_strict=False)
        if cfg.TEST.AUG.ENABLED:
            try:
                build_model_with_tta(self.cfg, self.model, self.metadata)
                self._has_tta = True
            except TypeError as e:
                logger.warning("TEST.AUG.ENABLED has no effect: %s.", e)
        size = cfg.INPUT.MIN_SIZE_TEST
        self.aug: T.Augmentation = T.ResizeShortestEdge([size, size], cfg.INPUT.MAX_SIZE_TEST)  # 0 keeps the size
        self.input_format = cfg.INPUT.FORMAT
        warn_of_unread(self.cfg, self.model, "MODEL")
        if self.input_format not in ("RGB", "BGR"):
            raise ValueError(f'INPUT.FORMAT must be "RGB" or "BGR" for DefaultPredictor, got {self.input_format!r}.')

    def __call__(self, original_image: np.ndarray) -> dict[str, Any]:
        """Predict on one image.

        Args:
            original_image: array `(H, W, C)`, channels in BGR order, values in [0, 255].

        Returns:
            The output of the model for this image, in the resolution of the image.

        Raises:
            TypeError: the image is not an array of numbers; `cv2.imread` returns `None` for a file it cannot read.
            ValueError: the array has another shape, no pixels, or values that are not in [0, 255].
        """
        if (text := check_image(original_image, self.cfg.MODEL.PIXEL_MEAN)) and not self._has_warned:
            logger.warning("%s", text)
            self._has_warned = True  # once, not for every frame of a video
        image = plain_image(original_image, self.cfg.MODEL.PIXEL_MEAN)
        image = image[:, :, ::-1] if self.input_format == "RGB" else image
        height, width = image.shape[:2]
        resized: Any = self.aug.get_transform(image).apply_image(image)
        tensor = torch.as_tensor(np.ascontiguousarray(resized.astype("float32").transpose(2, 0, 1)))
        with torch.no_grad():
            inputs = {"image": tensor.to(self.cfg.MODEL.DEVICE), "height": height, "width": width}
            form = self._form
            if form is None or form.model is not self.model:
                self._form = form = OptimizedForm(self.model)
            model = form.current()
            return (build_model_with_tta(self.cfg, model, self.metadata) if self._has_tta else model)([inputs])[0]


def _of_inner_trainer(name: str, doc: str) -> Any:
    """Make a property that is an attribute of `self._trainer`."""
    return property(lambda self: getattr(self._trainer, name), lambda self, x: setattr(self._trainer, name, x), doc=doc)


class DefaultTrainer(TrainerBase):
    """Train with the model, data, optimizer, schedule, checkpoints, evaluation and logs that a config describes.

    Example:
        trainer = DefaultTrainer(cfg)
        trainer.resume_or_load()  # the last checkpoint, or MODEL.WEIGHTS
        trainer.train()

    Override `build_*` methods to change a part. To change more, use `SimpleTrainer` with your own hooks, or write the
    loop (`tools/plain_train_net.py`).

    Args:
        cfg: a complete config.

    Attributes:
        scheduler: the learning-rate schedule.
        checkpointer: a `DetectionCheckpointer`.
        cfg: the config in use, after `auto_scale_workers`.
    """

    _last_eval_results: Any  # set by the first evaluation
    _eval_hook: hooks.EvalHook  # set by build_hooks(), unless a subclass replaces it

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()  # logging is not set up: show what happens
        check_values(given := cfg)
        cfg = self.auto_scale_workers(on_available_device(cfg), comm.get_world_size())
        self.train_options = options = TrainOptions.from_cfg(cfg)
        # Data first: an error in the data is then reported before time is spent on anything else.
        data_loader = self._built("build_train_loader", cfg)
        if options.resize_on_device:
            resize_later(data_loader)
        cfg = _epochs_to_iterations(cfg, options, data_loader)
        model = prepare_model(self._built("build_model", cfg), options)
        optimizer = self._built("build_optimizer", cfg, model)
        model = create_ddp_model(model, broadcast_buffers=False, **options.of_ddp)
        trainer_type = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = trainer_type(model, data_loader, optimizer, **options.of_amp(cfg.SOLVER.AMP.ENABLED))
        self._trainer.accumulation_steps, self._trainer.prefetch = options.accumulation_steps, options.prefetch
        self._trainer.divergence = DivergencePolicy(
            options.on_nonfinite_loss, options.max_skipped_in_a_row, cfg.OUTPUT_DIR, lambda: (cfg.dump(), "yaml")
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        # With a proxy, `trainer -> checkpointer -> trainer` is not a reference cycle that holds GPU memory.
        self.checkpointer = build_checkpointer(model, cfg.OUTPUT_DIR, options, weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        batch_size = cfg.SOLVER.IMS_PER_BATCH * options.accumulation_steps
        period, notes = cfg.SOLVER.CHECKPOINT_PERIOD, {**explain_schedule(cfg, given), **explain_data(cfg)}
        own_hooks = self._built("build_hooks")
        self.register_hooks(with_outer_hooks(own_hooks, model, self.checkpointer, period, batch_size, notes))
        self._describe_checkpoints()
        warn_of_unread(cfg, model, "MODEL", "INPUT", "DATASETS", "DATALOADER", "SOLVER")

    @functools.cached_property
    def train_options(self) -> TrainOptions:
        """The options of the training, read once; a subclass may replace the constructor that sets them."""
        return TrainOptions.from_cfg(self.cfg)

    def _built(self, name: str, *arguments: Any) -> Any:
        """Return what the method of this name builds; None is an error of a subclass."""
        value = getattr(self, name)(*arguments)
        if value is None:
            raise TypeError(f"{type(self).__name__}.{name} returns None. Is a return missing at its end?")
        return value

    def _describe_checkpoints(self) -> None:
        """Let checkpoints describe themselves; a subclass may have replaced the checkpointer."""
        if not isinstance(self.checkpointer, DetectionCheckpointer) or self.checkpointer.describe is not None:
            return
        self.checkpointer.describe = SelfDescription(
            self,
            self.model,
            functools.partial(yaml_config, self.cfg, self.model),
            list(self.cfg.DATASETS.TRAIN),
            self.cfg.INPUT.FORMAT,
            bool(self.train_options.ema_decay),
        )

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last checkpoint in `OUTPUT_DIR`, or start from `MODEL.WEIGHTS`.

        Args:
            resume: whether to look for a checkpoint. If there is one, model, optimizer, schedule and iteration are
                restored, and `MODEL.WEIGHTS` is ignored. Otherwise only weights are loaded, and training starts at 0.
                A training that torchrun restarts after a process died is resumed in any case.
        """
        resume = resume or resumes_after_restart(self.cfg.OUTPUT_DIR)
        checkpoint, start = load_or_resume(
            self, getattr(self._trainer, "optimizer", None), self.checkpointer, self.cfg.MODEL.WEIGHTS, resume
        )
        names = (self.cfg.DATASETS.TRAIN, self.cfg.DATASETS.TEST)
        match_training_classes(self._trainer, *names, lambda: self.build_train_loader(self.cfg), start is not None)
        if start is not None:
            self.start_iter = start
            describe = getattr(self.checkpointer, "describe", None)
            if isinstance(describe, SelfDescription):
                describe.go_on_from(checkpoint, self.checkpointer.get_checkpoint_file())
            logger.info("Resuming at iteration %d of %d", self.start_iter, self.max_iter)

    def build_hooks(self) -> list[HookBase | None]:
        """Build the hooks, in the order in which they run; see `detectron2.engine.hooks.order`.

        They are, in this order: timing, schedule, precise batch norm, checkpoints, evaluation, writing. Optional keys
        of the config add an average of the weights, the loss on the test sets, the best checkpoint and early stopping.
        Entries that are `None` are skipped when they are registered.
        """
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0  # PreciseBN's own loader must not start another set of workers
        options, period = self.train_options, cfg.TEST.EVAL_PERIOD
        periods = {"period": cfg.SOLVER.CHECKPOINT_PERIOD, "max_to_keep": options.checkpoints_to_keep or None}

        def test_and_save_results() -> Mapping[str, Any]:
            self._last_eval_results = self.test(self.cfg, self.model)
            return self._last_eval_results

        precise_bn = None
        if cfg.TEST.PRECISE_BN.ENABLED:
            loader = self.build_train_loader(cfg)
            precise_bn = hooks.PreciseBN(period, self.model, loader, cfg.TEST.PRECISE_BN.NUM_ITER)
        found = default_hooks(
            options,
            self.model,
            self.checkpointer,
            checkpoint_periods=periods,
            eval_period=period,
            evaluate=test_and_save_results,
            build_validation_loader=functools.partial(_build_validation_loader, cfg),
            build_writers=self.build_writers,
            precise_bn=precise_bn,
        )
        self._eval_hook = next(hook for hook in found if isinstance(hook, hooks.EvalHook))
        return found

    def build_writers(self) -> list[EventWriter]:
        """Build the writers that the key `WRITERS` names, or those of `default_writers`, for `OUTPUT_DIR`."""
        images = self.cfg.SOLVER.IMS_PER_BATCH * self.train_options.accumulation_steps
        if "WRITERS" in self.cfg:
            return make_writers(self.cfg.WRITERS, self.cfg.OUTPUT_DIR, self.max_iter, images, self.cfg)
        return default_writers(self.cfg.OUTPUT_DIR, self.max_iter, images)

    def train(self) -> "OrderedDict[str, Any] | None":  # type: ignore[override]
        """Train up to iteration `SOLVER.MAX_ITER`.

        Returns:
            The results of the final evaluation on the main process, if there was one.
        """
        warn_of_unread(self.cfg, self.model, "TEST.AUG.ENABLED")  # a subclass, or its program, may read it
        self._check_test_sets()
        self._try_evaluators()
        super().train(self.start_iter, self.max_iter)
        results = getattr(self, "_last_eval_results", None)
        if self.cfg.TEST.EXPECTED_RESULTS and comm.is_main_process():
            if results is None:
                raise RuntimeError("TEST.EXPECTED_RESULTS is set, but no evaluation ran at the end of training.")
            verify_results(self.cfg, results)
        return results

    def _subclass_defines(self, *names: str) -> bool:
        """Return whether a subclass defines one of these methods itself."""
        own = itertools.takewhile(lambda c: c is not DefaultTrainer, type(self).__mro__)
        return any(name in vars(c) for c in own for name in names)

    def _check_test_sets(self) -> None:
        """Check names and classes of the test sets before training, where the default evaluation will use them."""
        if not any(isinstance(h, hooks.EvalHook) for h in self._hooks) or self._subclass_defines("test"):
            return
        for method in ("build_test_loader", "build_evaluator"):
            is_usual = not self._subclass_defines("build_hooks")  # otherwise a hook may evaluate in a way of its own
            if is_usual and inspect.isfunction(inspect.getattr_static(type(self), method)):
                raise TypeError(
                    f"{type(self).__name__}.{method} must be a class method, because `test` is one and calls it: "
                    "write @classmethod above it, and cls in place of self."
                )
        if self._subclass_defines("build_test_loader"):  # it may name in DATASETS.TEST what it likes
            return
        for name in self.cfg.DATASETS.TEST:
            if name not in DatasetCatalog:
                DatasetCatalog.get(name)  # raises an error that names similar data sets
        is_strict = has_fixed_classes(self.model)
        validate_class_names(self.cfg.DATASETS.TRAIN, self.cfg.DATASETS.TEST, is_strict=is_strict)

    def _try_evaluators(self) -> None:
        """Try the evaluators, if `test` is what will evaluate; see `detectron2.engine.evaluator_trial`."""
        hook = getattr(self, "_eval_hook", None)
        is_wanted = self.train_options.try_evaluator and self.cfg.DATASETS.TEST
        if not is_wanted or not any(h is hook for h in self._hooks):
            return
        has_own_test = self._subclass_defines("test")
        if not has_own_test or self._subclass_defines("build_evaluator"):
            try_evaluators(self, is_certain=not has_own_test)

    def run_step(self) -> None:
        """Run one step of the inner trainer."""
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def before_train(self) -> None:
        """Connect the inner trainer to this one, then call the hooks."""
        # The inner trainer has no hooks itself: it calls those of this trainer after its backward pass.
        self._trainer.after_backward = self.after_backward  # type: ignore[method-assign]
        self._trainer.storage = self.storage
        if hasattr(self, "checkpointer") and hasattr(self, "cfg"):
            self._describe_checkpoints()
        super().before_train()

    def before_step(self) -> None:
        """Set the iteration of the inner trainer, which an overridden `run_step` may not do, and call the hooks."""
        self._trainer.iter = self.iter
        super().before_step()

    def after_train(self) -> None:
        """Let the inner trainer record pending losses, then call the hooks."""
        self._trainer.__dict__.pop("after_backward", None)
        try:
            if self._trainer.storage is not None:
                self._trainer.iter, self._trainer.max_iter = self.iter, self.max_iter
                self._trainer.after_train()
        finally:
            super().after_train()

    model = _of_inner_trainer("model", "The model in training; with several processes, wrapped for data parallelism.")
    data_loader = _of_inner_trainer("data_loader", "The training data.")
    optimizer = _of_inner_trainer("optimizer", "The optimizer.")

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the loop and its hooks, and of the inner trainer (optimizer, scaler)."""
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model with `detectron2.modeling.build_model`, and log its architecture."""
        model = build_model(on_available_device(cfg))
        logger.info("Model:\n%s", model, extra=IN_FILE)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Build the optimizer with `detectron2.solver.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        """Build the schedule with `detectron2.solver.build_lr_scheduler`."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable:
        """Build the training data with `detectron2.data.build_detection_train_loader`."""
        return build_detection_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable:
        """Build the data of a test set with `detectron2.data.build_detection_test_loader`."""
        return build_detection_test_loader(cfg, dataset_name)  # type: ignore[call-arg]

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Build the evaluator that fits the data set, by its `evaluator_type` or else by its fields."""
        return build_evaluator(dataset_name, cfg)

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: "DatasetEvaluator | list[DatasetEvaluator] | None" = None
    ) -> "OrderedDict[str, Any]":
        """Evaluate a model on every data set in `DATASETS.TEST`.

        Args:
            cfg: the config of data sets, loaders and evaluators.
            model: put into evaluation mode meanwhile.
            evaluators: one for each data set; default: `build_evaluator`.

        Returns:
            `{task: {metric: value}}` for one data set, `{dataset: {task: ...}}` for several; empty except on the main
            process.

        Raises:
            ValueError: the numbers of evaluators and data sets differ.
        """
        names = cfg.DATASETS.TEST
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        if evaluators is not None and len(evaluators) != len(names):
            raise ValueError(
                f"Expected one evaluator for each of the {len(names)} test data sets ({', '.join(names)}), "
                f"got {len(evaluators)}."
            )
        results: OrderedDict[str, Any] = OrderedDict()
        for i, name in enumerate(names):
            data_loader = cls.build_test_loader(cfg, name)
            if match_classes(model, [name]):
                data_loader = cls.build_test_loader(cfg, name)
            try:
                evaluator = cls.build_evaluator(cfg, name) if evaluators is None else evaluators[i]
            except NotImplementedError as e:
                logger.warning("No evaluator for %s (%s); it is not evaluated.", name, e or cls.__name__)
                results[name] = {}
                continue
            results[name] = inference_on_dataset(model, data_loader, evaluator)
            if comm.is_main_process() and isinstance(results[name], Mapping):
                logger.info("Results on %s, to be copied:", name)
                print_csv_format(results[name])
        return next(iter(results.values())) if len(results) == 1 else results

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> "OrderedDict[str, Any]":
        """Return the results of `test` with test-time augmentation (`TEST.AUG`); every name ends in "_TTA".

        Predictions are written to `OUTPUT_DIR/inference_TTA`; a subclass's `build_evaluator` gets that as `OUTPUT_DIR`.
        """
        names, folder = cfg.DATASETS.TEST, os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        evaluators, augmented = None, build_model_with_tta(cfg, model, MetadataCatalog.get(names[0]) if names else None)
        if getattr(cls.build_evaluator, "__func__", None) is DefaultTrainer.build_evaluator.__func__:
            folders = [folder if len(names) == 1 else os.path.join(folder, name) for name in names]
            evaluators = [build_evaluator(name, own, cfg=cfg) for name, own in zip(names, folders, strict=True)]
        else:  # a subclass's: it writes below OUTPUT_DIR, and must not replace what `test` wrote
            cfg = cfg.clone()
            cfg.defrost()
            cfg.OUTPUT_DIR = folder
        results = cls.test(cfg, augmented, evaluators)
        return OrderedDict((f"{name}_TTA", value) for name, value in results.items())

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """Scale a config to another number of processes, with the same number of images per process.

        With `r = num_workers / SOLVER.REFERENCE_WORLD_SIZE`, batch size and learning rate are multiplied by `r`,
        and all numbers of iterations are divided by it (Goyal et al., "Accurate, Large Minibatch SGD",
        arXiv:1706.02677).

        Args:
            cfg: the config, which is not changed.
            num_workers: number of processes over all machines.

        Returns:
            A new config, frozen if `cfg` is; `cfg` itself if `REFERENCE_WORLD_SIZE` is 0 or `num_workers`.

        Raises:
            ValueError: `IMS_PER_BATCH` is not divisible by `REFERENCE_WORLD_SIZE`.
        """
        reference, batch_size = cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH
        if reference in (0, num_workers):
            return cfg
        if batch_size % reference:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH ({batch_size}) must be divisible by SOLVER.REFERENCE_WORLD_SIZE ({reference})."
            )
        original, cfg = cfg, cfg.clone()
        cfg.defrost()
        ratio = num_workers / reference
        solver = cfg.SOLVER
        solver.IMS_PER_BATCH = round(solver.IMS_PER_BATCH * ratio)
        solver.BASE_LR *= ratio
        solver.MAX_ITER = round(solver.MAX_ITER / ratio)
        solver.WARMUP_ITERS = round(solver.WARMUP_ITERS / ratio)
        solver.STEPS = tuple(round(s / ratio) for s in solver.STEPS)
        solver.CHECKPOINT_PERIOD = round(solver.CHECKPOINT_PERIOD / ratio)
        cfg.TEST.EVAL_PERIOD = round(cfg.TEST.EVAL_PERIOD / ratio)
        solver.REFERENCE_WORLD_SIZE = num_workers  # so that scaling twice changes nothing
        changed = (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER, solver.WARMUP_ITERS)
        logger.info(
            "Config scaled from %d to %d processes: IMS_PER_BATCH=%d, BASE_LR=%g, MAX_ITER=%d, WARMUP_ITERS=%d",
            *(reference, num_workers, *changed),
        )
        return _frozen_as(original, cfg)


def _frozen_as(original: CfgNode, cfg: CfgNode) -> CfgNode:
    if original.is_frozen():
        cfg.freeze()
    return cfg


def iterations_per_epoch(loader: Any, accumulation_steps: int = 1) -> float:
    """Return the number of iterations, perhaps a fraction, in one pass over the data set of a loader.

    Raises a `ValueError` for a loader that does not know the size of its data set.
    """
    state = loader.state_dict() if hasattr(loader, "state_dict") else {}
    if not {"size", "total_batch_size"} <= state.keys():
        raise ValueError(
            "SOLVER.MAX_EPOCHS (train.max_epochs) needs training data of a known size, from "
            "build_detection_train_loader with an indexed data set; use SOLVER.MAX_ITER (train.max_iter) instead."
        )
    return state["size"] / (state["total_batch_size"] * accumulation_steps)


def _epochs_to_iterations(cfg: CfgNode, options: TrainOptions, loader: Any) -> CfgNode:
    """Compute `SOLVER.MAX_ITER` and `STEPS` from epochs, if any; other steps keep their share of the training."""
    if not options.max_epochs:
        return cfg
    per_epoch = iterations_per_epoch(loader, options.accumulation_steps)
    original, cfg = cfg, cfg.clone()
    cfg.defrost()
    solver, former = cfg.SOLVER, cfg.SOLVER.MAX_ITER
    solver.MAX_ITER = max(1, math.ceil(options.max_epochs * per_epoch))
    if options.step_epochs:
        solver.STEPS = tuple(round(e * per_epoch) for e in options.step_epochs)
    else:
        solver.STEPS = tuple(round(step * solver.MAX_ITER / former) for step in solver.STEPS)
    text = "%g epochs of %g iterations: MAX_ITER=%d, STEPS=%s"
    logger.info(text, options.max_epochs, per_epoch, solver.MAX_ITER, solver.STEPS)
    return _frozen_as(original, cfg)


def _build_validation_loader(cfg: CfgNode) -> Iterable:
    """Load this process's share of `DATASETS.TEST` with annotations, in test size, without random augmentations."""
    if not cfg.DATASETS.TEST:
        raise ValueError("TEST.VALIDATION_LOSS_PERIOD is set, but DATASETS.TEST is empty: add a data set to it.")
    mapper = DatasetMapper(cfg, is_train=True, augmentations=build_augmentation(cfg, is_train=False))
    return build_detection_test_loader(
        get_detection_dataset_dicts(list(cfg.DATASETS.TEST), filter_empty=False),
        mapper=mapper,
        batch_size=max(1, cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
