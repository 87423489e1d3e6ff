"""The LightningModule of any Hugging Face MLLM: it trains under a freeze policy and evaluates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import AdamW, Optimizer

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation import Generation, Likelihood, Scorer
from lightning_mllm.models import checkpoint as checkpoints
from lightning_mllm.models import fit_checks
from lightning_mllm.models.adapted import AdaptedModel, DType, adapted_dtype
from lightning_mllm.models.divergence import DivergenceWatch, check_weights_for_divergence
from lightning_mllm.models.evaluating import EvaluatingModule
from lightning_mllm.models.freeze import FreezePolicy, ProjectorOnly
from lightning_mllm.models.holding import Holding
from lightning_mllm.models.loading import AttentionImplementation
from lightning_mllm.models.optimisation import optimizer as optimizers
from lightning_mllm.models.optimisation import rounding
from lightning_mllm.models.optimisation.optimizer import OptimizerFactory
from lightning_mllm.models.optimisation.prolonging import follow_longer_schedule, warn_of_no_steps
from lightning_mllm.models.optimisation.rounding import TrainedDType
from lightning_mllm.models.optimisation.schedule import (
    Decay,
    LearningRates,
    PartSchedules,
    Schedule,
    scheduled_parameter_groups,
)
from lightning_mllm.models.optimisation.sharded import check_sharded_optimizer
from lightning_mllm.models.placement import DeviceMap, place_evaluated
from lightning_mllm.models.quantization import Quantize
from lightning_mllm.models.quantizing import check_quantize_option
from lightning_mllm.models.source import Source
from lightning_mllm.types import IGNORE_INDEX


class MLLMModule(EvaluatingModule):
    """Fine-tunes and evaluates an MLLM.

    Frozen weights are kept in `dtype` or quantised, trained weights in float32 unless
    `trained_dtype` says otherwise. The forward runs under autocast when `dtype` is a 16-bit type.
    Checkpoints hold the trained weights only.

    Args:
        checkpoint: Hub id or folder of the MLLM, e.g. `llava-hf/llava-1.5-7b-hf`.
        policy: Freeze policy: which parts of the model are trained.
        projector: A `projector.safetensors` to start from instead of the checkpoint's projection.
        learning_rates: Peak learning rate of each part.
        optimizer: Class and options of the optimiser; the rates come from `learning_rates`. Norms
            and vectors get no weight decay.
        micro_batch_size: Samples per process that go through the model at once. A batch is cut into
            pieces of this size, and the step is that of the whole batch. Lower it if memory runs
            out.
        warmup_ratio: Fraction of the training steps over which the learning rate rises from 0.
        decay: What the learning rate does after the warm-up: fall to 0 along a cosine, or stay.
        schedules: Warm-up and decay of single parts, where they differ from those of the model.
        dtype: Dtype of the frozen weights; `auto` is bfloat16 on an accelerator, float32 on the
            CPU.
        trained_dtype: Dtype of the trained weights. `bfloat16` halves them and their gradients; it
            needs an optimiser that rounds stochastically, else small updates are rounded away.
        quantize: How the linear layers of the LLM, which then stays frozen, are held: `nf4` in 4
            bits, `int8` in 8; by default as `dtype` says. It needs the package bitsandbytes.
        attention: Attention implementation of transformers.
        gradient_checkpointing: Whether activations of the trained parts and the LLM are recomputed
            in the backward pass: less memory, more time.
        compile: Whether the model is compiled with torch.compile.
        device_map: For a model that does not fit one device, and is not trained: `auto` shares the
            LLM's layers among the GPUs, the CPU's memory and the disk; or the number of layers of
            each, e.g. `{cuda:0: 14, cuda:1: 18}`.
        scorers: How answers become predictions on classification data; all scorers are reported. On
            free-form data, samples with a `kind` are scored by exact match.
        revision: Branch, tag or commit of the checkpoint on the hub.
        trust_remote_code: Whether code that comes with the checkpoint may run. Leave it off unless
            you trust its authors.

    Raises:
        ConfigError: A number is out of its range, or two scorers have one name.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        policy: FreezePolicy = ProjectorOnly(),
        projector: str | None = None,
        learning_rates: LearningRates = LearningRates(),
        optimizer: OptimizerFactory = lambda params, lr: AdamW(params, lr=lr, weight_decay=0.0),
        micro_batch_size: int | None = None,
        warmup_ratio: float = 0.03,
        decay: Decay = "cosine",
        schedules: PartSchedules = PartSchedules(),
        dtype: DType = "auto",
        trained_dtype: TrainedDType = "float32",
        quantize: Quantize | None = None,
        attention: AttentionImplementation = "sdpa",
        gradient_checkpointing: bool = False,
        compile: bool = False,
        device_map: DeviceMap | None = None,
        scorers: Scorer | Sequence[Scorer] = (Generation(), Likelihood()),
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__([scorers] if isinstance(scorers, Scorer) else scorers)
        if not 0 <= warmup_ratio <= 1:
            raise ConfigError(f"model.warmup_ratio must lie between 0 and 1, not {warmup_ratio}.")
        if micro_batch_size is not None and micro_batch_size < 1:
            raise ConfigError(f"model.micro_batch_size must be at least 1, not {micro_batch_size}.")
        self.source = Source(checkpoint, revision, trust_remote_code)
        self.policy, self.projector = policy, projector
        self.learning_rates, self.optimizer = learning_rates, optimizer
        self.micro_batch_size, self.schedules = micro_batch_size, schedules
        self.warmup_ratio, self.decay = warmup_ratio, decay
        self.dtype_option: DType = dtype
        self.trained_dtype, self.quantize = trained_dtype, quantize
        self.attention: AttentionImplementation = attention
        self.gradient_checkpointing, self.compile_model = gradient_checkpointing, compile
        self.device_map: DeviceMap | None = device_map
        self.inputs: dict[str, Any] = {}  # how they are made, as the DataModule describes it
        self.last_loss: Tensor | None = None  # of the last training step, over all processes
        self._resumed: dict[str, Any] = {}  # our entry in the checkpoint that is loaded
        self._pending: DivergenceWatch | None = None

    def configure_model(self) -> None:
        """Load the checkpoint and apply the policy; does nothing the second time."""
        if hasattr(self, "adapted"):
            return
        strategy: Any = getattr(self._trainer, "strategy", None)
        device = torch.device("cpu") if strategy is None else strategy.root_device
        dtype = adapted_dtype(self.dtype_option, device.type)
        sharded, placed = hasattr(strategy, "sharding"), self.device_map is not None
        check_quantize_option(
            self.quantize, sharded=sharded, compiled=self.compile_model, placed=placed
        )
        if self.will_fit:
            rounding.check_trained_dtype(self.trained_dtype, dtype, self.optimizer)
            if sharded:
                check_sharded_optimizer(self.optimizer)
        self.adapted = AdaptedModel.load(
            self.source,
            self.policy,
            dtype=dtype,
            trained_dtype=self.trained_dtype,
            attention=self.attention,
            projector=None if self.projector is None else Path(self.projector),
            quantize=self.quantize,
            holding=Holding(
                sharding=getattr(strategy, "sharding", None),
                placement=place_evaluated(self, device),
                device=device,
            ),
        )
        self.tokenizer = self.source.load_tokenizer()
        if self.gradient_checkpointing:
            self.adapted.enable_gradient_checkpointing()
        if self.compile_model:
            self.adapted.compile()
        if self.device_map is None:
            self._model = self.backbone.model  # registers the parameters, for Lightning to move

    def unquantize(self) -> None:
        """Hold all weights as numbers from now on, as an export needs them."""
        if not hasattr(self, "adapted"):
            self.quantize = None
            self.configure_model()
        self.adapted = self.adapted.unquantized()
        self._model = self.backbone.model

    def setup(self, stage: str) -> None:
        """Check what would otherwise fail in the middle of an epoch, and create the metrics."""
        self.configure_model()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        will_fit = stage == "fit" or self.will_fit
        if will_fit:
            fit_checks.check_fit_trainable(self.adapted, self.learning_rates)
        if stage == "fit":
            fit_checks.check_fit(self.adapted.report, self.trainer)
            self.inputs = data.describe_inputs()
        self.evaluator.prepare(data.label_set, data.kinds)
        if will_fit:
            fit_checks.check_fit_monitors(self.trainer, self, self.evaluator.metric_names)

    def on_fit_start(self) -> None:
        """Put the trained parts into train mode.

        `from_pretrained` gives a model in eval mode, and Lightning would keep it so.
        """
        self.train()
        self._seed = torch.initial_seed()
        self._rounding_seed = self.trainer.strategy.broadcast(self._seed)

    def on_train_start(self) -> None:
        """Log how many samples do not fit the context; follow the schedule of a longer training."""
        self._loaded_steps = None  # Lightning has restored its own count
        before = self._resumed.get("schedule", asdict(self._schedule))["steps"]
        if before < self._schedule.steps:
            scheduler: Any = self.lr_schedulers()
            follow_longer_schedule(scheduler, before, self._schedule.steps)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if left_out := data.left_out_metrics(*data.left_out):
            for logger in self.loggers:  # `self.log` would wait for the end of the epoch
                logger.log_metrics(left_out, self.trained_steps)

    def on_train_batch_start(self, batch: MultimodalBatch, batch_idx: int) -> None:
        """Seed the step's dropout by seed, step and process: a resumed run draws the same."""
        position = (self._seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(hash(position) % 2**63)
        self.zero_grad()

    def training_step(self, batch: MultimodalBatch, batch_idx: int) -> Tensor:
        """Return the summed loss of the last micro-batch over the processes' mean token count.

        DDP averages gradients over processes, which may hold unequal numbers of answer tokens. With
        this divisor the step is that of one process with the whole batch. The other micro-batches
        add their gradients here, with the same divisor; Lightning runs the backward pass of the
        last one, and DDP then exchanges the sum.
        """
        answer_tokens = (batch.labels[:, 1:] != IGNORE_INDEX).sum().float()
        mean_tokens = self._over_processes(answer_tokens).mean()
        *first, last = self.adapted.split(batch, self.micro_batch_size)
        total = torch.zeros((), device=self.device)
        for micro_batch in first:
            loss = self.adapted.loss(micro_batch)
            (loss / mean_tokens).backward()
            total += loss.detach()
        loss = self.adapted.loss(last)
        total = self._over_processes(total + loss.detach()).mean()
        self._pending = DivergenceWatch.of(total, batch)
        self.last_loss = total / mean_tokens
        self.log("train/loss", self.last_loss, prog_bar=True, batch_size=len(batch))
        moment = self._moment(self.trainer.global_step + 1)  # of the step that is being taken
        # as tensors: Lightning would wait for the GPU to log a plain number
        self.log_dict({name: torch.tensor(value) for name, value in moment.items()})
        return torch.div(loss, mean_tokens)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Stop before a loss that is not finite changes the weights."""
        if self._pending is not None:  # a subclass may have a training step of its own
            self._pending.check(self.adapted, f"of step {self.trainer.global_step + 1}")
        self._pending = None  # frees its batch
        rounding.seed_rounding(optimizer, self._rounding_seed, self.trainer.global_step)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Do nothing: Lightning calls this after `training_step`, which already adds gradients."""

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Create one parameter group per trained part and weight decay, and their schedules.

        Raises:
            ConfigError: The training has no known length or no learning rate above 0, or the run
                that it resumes had a different schedule.
        """
        steps = self.trainer.estimated_stepping_batches
        self._schedule = Schedule(
            self.learning_rates, self.warmup_ratio, self.decay, steps, self.schedules
        )
        epochs = self.trainer.max_epochs if self.trainer.max_steps == -1 else None
        self._schedule.check_resumes(self._resumed.get("schedule"), self.trainer.ckpt_path, epochs)
        warn_of_no_steps(self._loaded_steps, steps)
        groups = scheduled_parameter_groups(self.backbone, self.learning_rates)
        fit_checks.check_fit_learns(self.trainer, self._schedule, groups)
        rate, resumed = self.learning_rates.projector, self._resumed.get("optimizer")
        optimizer = optimizers.make_optimizer(self.optimizer, groups, rate, resumed=resumed)
        scheduler = self._schedule.scheduler(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add model, policy, schedule and inputs; refuse weights that are not finite."""
        trained = self.adapted.trained_parameters()
        check_weights_for_divergence(trained, checkpoint["global_step"])
        ours = {**self._describe(), "schedule": asdict(self._schedule), "inputs": self.inputs}
        ours["optimizer"] = optimizers.name_optimizer(self.trainer.optimizers[0])
        checkpoint[checkpoints.KEY] = ours

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model or policy; remember its step and schedule."""
        found: Any = checkpoint.get(checkpoints.KEY)
        checkpoints.check_checkpoint_fits(found, self._describe(), checkpoint["state_dict"])
        self._loaded_steps, self._resumed = int(checkpoint["global_step"]), found or {}
        # a fit that goes on has inputs of its own
        self.inputs = self.inputs or self._resumed.get("inputs", {})
        if self.will_fit:
            own = self.adapted.trained_parameters()
            rounding.check_resumed_dtype(own, checkpoint["state_dict"])

    def _describe(self) -> dict[str, Any]:
        return checkpoints.describe_checkpoint(
            self.backbone, self.source.checkpoint, self.freeze_report, self.adapted.edit
        )
