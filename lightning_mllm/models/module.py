"""The LightningModule around any Hugging Face MLLM, under a freeze policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import AutoTokenizer

from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation import AnswerResult, ClassificationResult, Evaluator, Generation, Likelihood, Scorer
from lightning_mllm.models import checkpoint as checkpoints
from lightning_mllm.models.adapted import AdaptedModel, Source, resolve_dtype
from lightning_mllm.models.backbone import AttentionImplementation, Backbone, DType
from lightning_mllm.models.finite import PendingLoss, check_weights
from lightning_mllm.models.fit_checks import check_fit
from lightning_mllm.models.freeze import FreezePolicy, FreezeReport, ProjectorOnly
from lightning_mllm.models.loss import answer_loss, keep_in_graph
from lightning_mllm.models.optimisation.schedule import Decay, LearningRates, Schedule, parameter_groups
from lightning_mllm.types import IGNORE_INDEX, MultimodalBatch

OptimizerFactory = Callable[[Iterable[Any], float], Optimizer]


class MLLMModule(L.LightningModule):
    """Fine-tunes and evaluates an MLLM.

    Frozen weights are kept in `dtype`; trained weights always in float32, so that small updates are not rounded away;
    the forward runs under autocast when `dtype` is a 16-bit type. Checkpoints hold the trained weights only.

    Args:
        checkpoint: Hub id or folder of the MLLM, e.g. `llava-hf/llava-1.5-7b-hf`.
        policy: What is trained.
        projector: A `projector.safetensors` to start from instead of the checkpoint's projection.
        learning_rates: Peak rate per part.
        optimizer: Class and options of the optimiser; its learning rates come from `learning_rates`. Norms and
            vectors get no weight decay.
        micro_batch_size: Samples, per process, that go through the model at once; a batch is cut into pieces of this
            size and gives the step that it would give whole. Lower it if memory runs out.
        warmup_ratio: Share of the steps over which the rate rises from 0.
        decay: What the rate does then.
        dtype: Of the frozen weights; `auto` is bfloat16 on an accelerator and float32 on the CPU.
        attention: Attention implementation of transformers.
        gradient_checkpointing: Recompute the trained parts' and the LLM's activations: less memory, more time.
        compile: Compile the model with torch.compile.
        scorers: How answers become predictions on classification data; all of them are reported. On free-form data
            samples with a `kind` are scored by exact match.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Run code that the checkpoint brings along. Off unless you trust its authors.
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
        dtype: DType = "auto",
        attention: AttentionImplementation = "sdpa",
        gradient_checkpointing: bool = False,
        compile: bool = False,
        scorers: Scorer | Sequence[Scorer] = (Generation(), Likelihood()),
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= warmup_ratio <= 1:
            raise ConfigError(f"model.warmup_ratio must lie between 0 and 1, not {warmup_ratio}.")
        if micro_batch_size is not None and micro_batch_size < 1:
            raise ConfigError(f"model.micro_batch_size must be at least 1, not {micro_batch_size}.")
        self.source = Source(checkpoint, revision, trust_remote_code)
        self.policy, self.projector = policy, projector
        self.learning_rates, self.optimizer = learning_rates, optimizer
        self.micro_batch_size, self.warmup_ratio = micro_batch_size, warmup_ratio
        self.decay: Decay = decay
        self.dtype_option: DType = dtype
        self.attention: AttentionImplementation = attention
        self.gradient_checkpointing, self.compile_model = gradient_checkpointing, compile
        self.evaluator = Evaluator([scorers] if isinstance(scorers, Scorer) else scorers)
        self.test_prefix = "test"
        self.updates: tuple[Callable[[Backbone, MultimodalBatch], None], ...] = ()
        self.inputs: dict[str, Any] = {}  # how they are made, as the DataModule describes it
        self._loaded_steps: int | None = None
        self._resumed_schedule: dict[str, Any] | None = None
        self._pending: PendingLoss | None = None
        self._model: nn.Module | None = None

    def configure_model(self) -> None:
        """Load the checkpoint and apply the policy; does nothing the second time."""
        if self._model is not None:
            return
        device_type = "cpu" if self._trainer is None else self.trainer.strategy.root_device.type
        self.adapted = AdaptedModel.load(
            self.source,
            self.policy,
            dtype=resolve_dtype(self.dtype_option, device_type),
            attention=self.attention,
            projector=None if self.projector is None else Path(self.projector),
        )
        self.tokenizer = AutoTokenizer.from_pretrained(
            self.source.checkpoint, revision=self.source.revision, trust_remote_code=self.source.trust_remote_code
        )
        model = self.backbone.model
        if self.gradient_checkpointing:
            self.adapted.enable_gradient_checkpointing()
        if self.compile_model:
            model.model.compile(dynamic=True)
        self._model = model  # registers the parameters

    @property
    def backbone(self) -> Backbone:
        """The model; there from `configure_model` on."""
        return self.adapted.backbone

    @property
    def freeze_report(self) -> FreezeReport:
        """What the policy made trainable; there from `configure_model` on."""
        return self.adapted.report

    def setup(self, stage: str) -> None:
        """Check at set-up what would otherwise fail in the middle of an epoch, and make the metrics."""
        self.configure_model()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if stage == "fit":
            check_fit(self.adapted, self.learning_rates, self.trainer)
            self.inputs = data.describe_inputs()
        self.evaluator.prepare(data.label_set, data.kinds)

    def on_fit_start(self) -> None:
        """Put the trained parts into train mode: `from_pretrained` gives eval mode, and Lightning keeps it."""
        self.train()
        self._seed = torch.initial_seed()

    def on_train_start(self) -> None:
        """Leave counting the steps to Lightning, which has restored its count; log what does not fit the context."""
        self._loaded_steps = None
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if left_out := data.left_out_metrics(*data.left_out):
            for logger in self.loggers:  # at this step: Lightning would wait for the end of the epoch
                logger.log_metrics(left_out, self.trained_steps)

    def train(self, mode: bool = True) -> MLLMModule:
        """Switch between train and eval mode; a frozen tower or projection stays in eval mode."""
        super().train(mode)
        if mode and self._model is not None:
            self.adapted.set_train_modes()
        return self

    def on_train_batch_start(self, batch: MultimodalBatch, batch_idx: int) -> None:
        """Make a step's randomness (dropout) a function of seed, step and process: a resumed run draws the same."""
        torch.manual_seed(hash((self._seed, self.current_epoch, batch_idx, self.global_rank)) % 2**63)
        self.zero_grad()

    def training_step(self, batch: MultimodalBatch, batch_idx: int) -> Tensor:
        """Return the batch's summed loss over the mean token count of all processes' batches.

        DDP averages gradients over processes, which may hold unequal numbers of answer tokens: so the step is that of
        one process with the whole batch. All micro-batches but the last add their gradients here, with the same
        divisor; Lightning does the last, and DDP then exchanges the sum.
        """
        answer_tokens = (batch.labels[:, 1:] != IGNORE_INDEX).sum().float()
        mean_tokens = self._over_processes(answer_tokens).mean()
        *first, last = batch.split(self.micro_batch_size or len(batch))
        total = torch.zeros((), device=self.device)
        for micro_batch in first:
            loss = self._loss(micro_batch)
            (loss / mean_tokens).backward()
            total += loss.detach()
        loss = self._loss(last)
        total = self._over_processes(total + loss.detach()).mean()
        self._pending = PendingLoss.of(total, batch)
        self.log("train/loss", total / mean_tokens, prog_bar=True, batch_size=len(batch))
        moment = self._moment(self.trainer.global_step + 1)  # that of the step which is being taken
        self.log_dict({name: torch.tensor(value) for name, value in moment.items()})  # a number would wait for the GPU
        return torch.div(loss, mean_tokens)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Stop before weights are changed by a loss that is not finite."""
        if self._pending is not None:  # a subclass may have a training step of its own
            self._pending.check(self.adapted, self._loss, f"of step {self.trainer.global_step + 1}")
        self._pending = None  # its batch, too

    def _loss(self, batch: MultimodalBatch) -> Tensor:
        """Summed loss of a (micro-)batch."""
        with self.adapted.autocast(self.device.type), self.adapted.edited(batch):
            loss = answer_loss(self.backbone, batch).total
        return loss if batch.vision else keep_in_graph(self.backbone, loss)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Do nothing: Lightning calls this behind `training_step`, which has begun to add gradients."""

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One parameter group per trained part and decay, one schedule.

        Raises:
            ConfigError: The training has no known length or no rate above 0, or began with another schedule.
        """
        steps = self.trainer.estimated_stepping_batches
        self._schedule = Schedule(self.learning_rates, self.warmup_ratio, self.decay, steps)
        self._schedule.check_resumes(self._resumed_schedule)
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]  # of which nobody expects more than that it runs
            self._schedule.check_learns()
        optimizer = self.optimizer(parameter_groups(self.backbone, self.learning_rates), self.learning_rates.projector)
        scheduler = self._schedule.scheduler(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def validation_step(self, batch: MultimodalBatch, batch_idx: int) -> dict[str, Any]:
        """Return `loss`, `predictions` per scorer, and `answers` of the free-form samples that have a kind."""
        greedy = self.adapted.edit is None and not self.adapted.low_precision  # an edit is of all samples
        with self.adapted.autocast(self.device.type):
            with self.adapted.edited(batch):
                loss = answer_loss(self.backbone, batch, with_greedy=greedy)
            where = f"of {self.stage_name} after step {self.trained_steps}"
            PendingLoss.of(loss.total, batch).check(self.adapted, self._loss, where)
            with self.adapted.edited(self.evaluator.asked(batch)):
                scored = self.evaluator.score(self.backbone.model, self.tokenizer, batch, loss.greedy)
        self._loss_sum += torch.stack([loss.total, loss.tokens.float()]).cpu()
        return {"loss": loss.mean, "predictions": scored.predictions, "answers": scored.answers}

    def on_validation_epoch_start(self) -> None:
        """Start the sums anew."""
        self._loss_sum = torch.zeros(2, dtype=torch.float64)  # on the CPU: not every accelerator has float64
        self.evaluator.reset()

    def on_validation_epoch_end(self) -> None:
        """Log loss and scores over all samples of all processes."""
        total, tokens = self._over_processes(self._loss_sum.float().to(self.device)).sum(dim=0)
        scores = {"loss": total / tokens, **self.evaluator.finish()}
        logged = {f"{self.stage_name}/{name}": value for name, value in scores.items()}
        if self.trainer.state.fn != "fit":  # which has said it at its start
            split = "test" if self.trainer.testing else "val"
            logged |= self.trainer.datamodule.left_out_metrics(split)  # type: ignore[attr-defined]
        self.log_dict({**logged, **self._moment(self.trained_steps)}, sync_dist=True)

    test_step = validation_step
    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end

    def predict_step(self, batch: MultimodalBatch, batch_idx: int) -> int:
        """Hand a batch to `updates`, which `Trainer.analyze` sets, and return its size."""
        with self.adapted.autocast(self.device.type):
            for update in self.updates:
                update(self.backbone, batch)
        return len(batch)

    @property
    def stage_name(self) -> str:
        """Prefix of the metrics of the evaluation under way: `val`, or `test_prefix`."""
        return self.test_prefix if self.trainer.testing else "val"

    @property
    def results(self) -> dict[str, ClassificationResult]:
        """Scorer name -> its scores in the last evaluation; empty for free-form data."""
        return self.evaluator.results

    @property
    def exact_match(self) -> AnswerResult | None:
        """Scores of the open answers of the last evaluation; None if there were none."""
        return self.evaluator.exact_match

    def _moment(self, step: int) -> dict[str, float]:
        """Put logged numbers at a step: Lightning's own is one less in a fit, and 0 in the test of a checkpoint."""
        return {"step": float(step), "epoch": float(self.current_epoch)}

    def _over_processes(self, values: Tensor) -> Tensor:
        """(...) on each process -> (processes, ...) on all."""
        gathered = self.all_gather(values)
        assert isinstance(gathered, Tensor)
        return gathered.view(-1, *values.shape)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # as Lightning calls it
        """Return the trained weights only, named as in the Hugging Face model."""
        return self.adapted.trained_state()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Put trained weights back; `on_load_checkpoint` has checked their names."""
        self.adapted.load_trained_state(state_dict)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which model, policy and schedule it is of, and how inputs are made; see that its weights are sound."""
        check_weights(checkpoint["state_dict"], checkpoint["global_step"])
        checkpoint[checkpoints.KEY] = {**self._describe(), "schedule": asdict(self._schedule), "inputs": self.inputs}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model or policy; remember its step and schedule."""
        found: Any = checkpoint.get(checkpoints.KEY)
        checkpoints.check_fits(found, self._describe(), checkpoint["state_dict"])
        self.inputs = self.inputs or (found or {}).get("inputs", {})  # a fit that goes on has its own
        self._loaded_steps = int(checkpoint["global_step"])
        self._resumed_schedule = found["schedule"] if found else None

    def _describe(self) -> dict[str, Any]:
        return checkpoints.describe(self.backbone, self.source.checkpoint, self.freeze_report, self.adapted.edit)

    @property
    def trained_steps(self) -> int:
        """Optimiser steps behind the weights at hand: those of a checkpoint that was loaded, until it is trained on."""
        return self.trainer.global_step if self._loaded_steps is None else self._loaded_steps
