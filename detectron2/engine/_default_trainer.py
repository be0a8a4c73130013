"""Training with everything that most people want, from one config."""

import functools
import itertools
import logging
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

import detectron2.utils.comm as comm
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.data.validation import validate_class_names
from detectron2.engine import hooks
from detectron2.engine._divergence import DivergencePolicy
from detectron2.engine._epochs import epochs_to_iterations
from detectron2.engine._evaluator_trial import try_evaluators
from detectron2.engine._options import TrainOptions
from detectron2.engine._options_applied import (
    ModelHooks,
    build_checkpointer,
    build_validation_loader,
    prepare_model,
)
from detectron2.engine._random_states import RandomStates
from detectron2.engine._scaling import scaled_to
from detectron2.engine._self_description import FinalDescription, SelfDescription, yaml_config
from detectron2.engine._setup import create_ddp_model, default_writers
from detectron2.engine._sharding import is_sharded
from detectron2.engine._summary import RunSummary, explain_schedule
from detectron2.engine.train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase
from detectron2.evaluation import (
    DatasetEvaluator,
    build_evaluator,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils.events import EventWriter, make_writers
from detectron2.utils.logger import setup_logger

logger = logging.getLogger("detectron2.engine.defaults")


class DefaultTrainer(TrainerBase):
    """Model, data, optimizer, schedule, checkpoints, evaluation and logs as the config says.

    Example::

        trainer = DefaultTrainer(cfg)
        trainer.resume_or_load()  # the last checkpoint, or MODEL.WEIGHTS
        trainer.train()

    Every ``build_*`` method is there to be overridden.  If more than that has to change, use
    :class:`~detectron2.engine.SimpleTrainer` with hooks of your own, or write the loop (``tools/plain_train_net.py``).

    Args:
        cfg: a complete config.

    Attributes:
        scheduler: the learning-rate schedule.
        checkpointer: a :class:`~detectron2.checkpoint.DetectionCheckpointer`.
        cfg: the config in use, after :meth:`auto_scale_workers`.
    """

    _last_eval_results: Any  # set by the first evaluation
    _eval_hook: hooks.EvalHook  # set by build_hooks(), unless a subclass does without

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()  # nobody has set up logging: show what happens
        given = cfg
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        options = TrainOptions.from_cfg(cfg)
        # Data first: what is wrong with it is said before time is spent on anything else.
        data_loader = self.build_train_loader(cfg)
        cfg = epochs_to_iterations(cfg, options, data_loader)
        model = prepare_model(self.build_model(cfg), options)
        optimizer = self.build_optimizer(cfg, model)
        model = create_ddp_model(model, broadcast_buffers=False)
        trainer_type = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = trainer_type(model, data_loader, optimizer)
        self._trainer.accumulation_steps = options.accumulation_steps
        self._trainer.divergence = DivergencePolicy(
            options.on_nonfinite_loss,
            options.max_skipped_in_a_row,
            cfg.OUTPUT_DIR,
            lambda: (cfg.dump(), "yaml"),
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        # The proxy keeps `trainer -> checkpointer -> trainer` from being a reference cycle that holds GPU memory.
        self.checkpointer = build_checkpointer(model, cfg.OUTPUT_DIR, options, weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        # First and last, and not in build_hooks(), whose result subclasses know and change.
        self.register_hooks([hooks.StopOnSignal(self.checkpointer), RandomStates(model, cfg.SOLVER.CHECKPOINT_PERIOD)])
        self.register_hooks(self.build_hooks())
        batch_size = cfg.SOLVER.IMS_PER_BATCH * options.accumulation_steps
        self.register_hooks([FinalDescription(self.checkpointer), RunSummary(batch_size, explain_schedule(cfg, given))])
        self._describe_checkpoints()

    def _describe_checkpoints(self) -> None:
        """Let checkpoints describe themselves; a subclass may have made its own checkpointer, or several."""
        if not isinstance(self.checkpointer, DetectionCheckpointer) or self.checkpointer.describe is not None:
            return
        cfg = self.cfg
        self.checkpointer.describe = SelfDescription(
            self,
            self.model,
            functools.partial(yaml_config, cfg),
            list(cfg.DATASETS.TRAIN),
            cfg.INPUT.FORMAT,
            TrainOptions.from_cfg(cfg).ema_decay > 0,
        )

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last checkpoint in ``OUTPUT_DIR``, or start from ``MODEL.WEIGHTS``.

        Args:
            resume: whether to look for a checkpoint.  If there is one, model, optimizer, schedule and iteration are
                restored and ``MODEL.WEIGHTS`` is ignored.  Otherwise only weights are loaded and training starts at 0.

        Raises:
            ValueError: the checkpoint is already at ``SOLVER.MAX_ITER``, so there would be nothing to train.
        """
        checkpoint = self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            # A subclass may checkpoint optimizer and schedule rather than the trainer, and so did older versions: then
            # only the file itself knows the iteration, after which it was written.
            self.start_iter = (checkpoint or {}).get("iteration", self.iter) + 1
            if self.start_iter >= self.max_iter:
                raise ValueError(
                    f"The checkpoint {self.checkpointer.get_checkpoint_file()} is at iteration {self.start_iter} and "
                    f"SOLVER.MAX_ITER is {self.max_iter}: there is nothing left to train. Raise SOLVER.MAX_ITER to "
                    "train longer, or start a new run from these weights (without resume, with MODEL.WEIGHTS and "
                    "another OUTPUT_DIR)."
                )
            describe = getattr(self.checkpointer, "describe", None)
            if isinstance(describe, SelfDescription):
                describe.go_on_from(checkpoint or {}, self.checkpointer.get_checkpoint_file())
            logger.info("Resuming at iteration %d of %d", self.start_iter, self.max_iter)

    def build_hooks(self) -> list[HookBase | None]:
        """Timing, schedule, precise batch norm, checkpoints, evaluation, writing: in this order.

        Evaluation follows the checkpoint, so that a failing evaluation loses nothing; writing comes last, so that it
        sees what the others recorded.  Optional keys of the config add an average of the weights, the loss on the test
        sets, the best checkpoint and early stopping.

        Returns:
            The hooks; ``None`` entries are left out when they are registered.
        """
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0  # PreciseBN's own loader must not start another set of workers

        def test_and_save_results() -> Mapping[str, Any]:
            self._last_eval_results = self.test(self.cfg, self.model)
            return self._last_eval_results

        is_main = comm.is_main_process()
        options = TrainOptions.from_cfg(cfg)
        period = cfg.TEST.EVAL_PERIOD
        more = ModelHooks(
            options, self.model, self.checkpointer, period, functools.partial(build_validation_loader, cfg)
        )
        self._eval_hook = hooks.EvalHook(period, more.evaluation_of(test_and_save_results))
        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            hooks.PreciseBN(period, self.model, self.build_train_loader(cfg), cfg.TEST.PRECISE_BN.NUM_ITER)
            if cfg.TEST.PRECISE_BN.ENABLED
            else None,
            *more.after_schedule,
            hooks.PeriodicCheckpointer(
                self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, max_to_keep=options.checkpoints_to_keep or None
            )
            if is_main or is_sharded(self.model)
            else None,
            *more.before_evaluation,
            self._eval_hook,
            *more.after_evaluation,
            hooks.PeriodicWriter(self.build_writers(), period=20) if is_main else None,
        ]

    def build_writers(self) -> list[EventWriter]:
        """-> what :func:`default_writers` gives for ``OUTPUT_DIR``, or the writers that the key ``WRITERS`` names."""
        images = self.cfg.SOLVER.IMS_PER_BATCH * TrainOptions.from_cfg(self.cfg).accumulation_steps
        if "WRITERS" in self.cfg:
            return make_writers(self.cfg.WRITERS, self.cfg.OUTPUT_DIR, self.max_iter, images, self.cfg)
        return default_writers(self.cfg.OUTPUT_DIR, self.max_iter, images)

    def train(self) -> "OrderedDict[str, Any] | None":  # type: ignore[override]
        """Train to ``SOLVER.MAX_ITER``.

        Returns:
            The results of the final evaluation (on the main process), if there was one.
        """
        self._check_test_sets()
        self._try_evaluators()
        super().train(self.start_iter, self.max_iter)
        results = getattr(self, "_last_eval_results", None)
        if len(self.cfg.TEST.EXPECTED_RESULTS) and comm.is_main_process():
            if results is None:
                raise RuntimeError("TEST.EXPECTED_RESULTS is set, but no evaluation ran at the end of training.")
            verify_results(self.cfg, results)
        return results

    def _check_test_sets(self) -> None:
        """Look at the test sets now: a misspelt one, or other classes, would otherwise show when training is over.

        Subclasses that evaluate in their own way may name there what they like.
        """
        own = itertools.takewhile(lambda c: c is not DefaultTrainer, type(self).__mro__)
        is_own = any("test" in vars(c) or "build_test_loader" in vars(c) for c in own)
        if is_own or not any(isinstance(h, hooks.EvalHook) for h in self._hooks):
            return
        for name in self.cfg.DATASETS.TEST:
            if name not in DatasetCatalog:
                DatasetCatalog.get(name)  # raises, and names the similar ones
        validate_class_names(self.cfg.DATASETS.TRAIN, self.cfg.DATASETS.TEST)

    def _try_evaluators(self) -> None:
        """Try the evaluators now, if :meth:`test` is what will evaluate; see ``engine/_evaluator_trial.py``."""
        hook = getattr(self, "_eval_hook", None)
        if not any(h is hook for h in self._hooks) or not self.cfg.DATASETS.TEST:
            return
        if not TrainOptions.from_cfg(self.cfg).try_evaluator:
            return
        own = list(itertools.takewhile(lambda c: c is not DefaultTrainer, type(self).__mro__))
        has_own_test = any("test" in vars(c) for c in own)
        if not has_own_test or any("build_evaluator" in vars(c) for c in own):
            try_evaluators(self, is_certain=not has_own_test)

    def run_step(self) -> None:
        """One step of the inner trainer."""
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def before_train(self) -> None:
        """Connect the inner trainer to this one, then call the hooks."""
        # The inner trainer has no hooks of its own: it reports its backward pass to ours.
        self._trainer.after_backward = self.after_backward  # type: ignore[method-assign]
        self._trainer.storage = self.storage
        if hasattr(self, "checkpointer") and hasattr(self, "cfg"):
            self._describe_checkpoints()
        super().before_train()

    def before_step(self) -> None:
        """Tell the inner trainer the iteration, also where a subclass has its own :meth:`run_step`; call the hooks."""
        self._trainer.iter = self.iter
        super().before_step()

    def after_train(self) -> None:
        """Let the inner trainer record what is pending, then call the hooks."""
        self._trainer.__dict__.pop("after_backward", None)
        try:
            if self._trainer.storage is not None:
                self._trainer.iter, self._trainer.max_iter = self.iter, self.max_iter
                self._trainer.after_train()
        finally:
            super().after_train()

    @property
    def model(self) -> nn.Module:
        """The model in training, wrapped for data parallelism where there are several processes."""
        return self._trainer.model

    @model.setter
    def model(self, value: nn.Module) -> None:
        self._trainer.model = value

    @property
    def data_loader(self) -> Iterable:
        """The training data."""
        return self._trainer.data_loader

    @data_loader.setter
    def data_loader(self, value: Iterable) -> None:
        self._trainer.data_loader = value

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer."""
        return self._trainer.optimizer

    @optimizer.setter
    def optimizer(self, value: torch.optim.Optimizer) -> None:
        self._trainer.optimizer = value

    def state_dict(self) -> dict[str, Any]:
        """The state of the loop and its hooks, and of the inner trainer (optimizer, scaler)."""
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """-> :func:`detectron2.modeling.build_model` of the config; logs the architecture."""
        model = build_model(cfg)
        logger.info("Model:\n%s", model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """-> :func:`detectron2.solver.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        """-> :func:`detectron2.solver.build_lr_scheduler`."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable:
        """-> :func:`detectron2.data.build_detection_train_loader`."""
        return build_detection_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable:
        """-> :func:`detectron2.data.build_detection_test_loader`."""
        return build_detection_test_loader(cfg, dataset_name)  # type: ignore[call-arg]

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """-> the evaluator that fits the data set: by its ``evaluator_type``, else by the fields it has."""
        return build_evaluator(dataset_name, cfg)

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: "DatasetEvaluator | list[DatasetEvaluator] | None" = None
    ) -> "OrderedDict[str, Any]":
        """Evaluate a model on every data set in ``DATASETS.TEST``.

        Args:
            cfg: reads ``DATASETS.TEST`` and what loaders and evaluators need.
            model: put into evaluation mode for the time being.
            evaluators: one for each data set; default: :meth:`build_evaluator`.

        Returns:
            ``{task: {metric: value}}`` for one data set, ``{dataset: {task: ...}}`` for several.  Empty on all but the
            main process.

        Raises:
            ValueError: the number of evaluators is not that of the data sets.
        """
        names = cfg.DATASETS.TEST
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        if evaluators is not None and len(evaluators) != len(names):
            raise ValueError(
                f"{len(names)} test data sets ({', '.join(names)}) need as many evaluators; got {len(evaluators)}."
            )
        results: OrderedDict[str, Any] = OrderedDict()
        for i, name in enumerate(names):
            data_loader = cls.build_test_loader(cfg, name)
            if evaluators is not None:
                evaluator = evaluators[i]
            else:
                try:
                    evaluator = cls.build_evaluator(cfg, name)
                except NotImplementedError as e:
                    logger.warning("No evaluator for %s (%s); it is not evaluated.", name, e or cls.__name__)
                    results[name] = {}
                    continue
            results[name] = inference_on_dataset(model, data_loader, evaluator)
            if comm.is_main_process() and isinstance(results[name], Mapping):
                logger.info("Results on %s, to be copied:", name)
                print_csv_format(results[name])
        return next(iter(results.values())) if len(results) == 1 else results

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """Adapt a config made for one number of processes to another, keeping the images per process.

        With ``r = num_workers / SOLVER.REFERENCE_WORLD_SIZE``, batch size and learning rate are multiplied by ``r``
        and all iteration counts divided by it (Goyal et al., "Accurate, Large Minibatch SGD", arXiv:1706.02677).

        Args:
            cfg: is not changed.
            num_workers: processes in use, over all machines.

        Returns:
            A new, frozen if ``cfg`` was, config; ``cfg`` itself where ``REFERENCE_WORLD_SIZE`` is 0 or equal.

        Raises:
            ValueError: ``IMS_PER_BATCH`` is not divisible by ``REFERENCE_WORLD_SIZE``.
        """
        return scaled_to(cfg, num_workers)
