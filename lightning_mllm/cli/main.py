"""The command line: puts the pieces together and does nothing else."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse import Namespace, auto_cli
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from lightning_mllm import analysis, data, evaluation  # noqa: F401 - short class names resolve only for imported classes
from lightning_mllm.callbacks import (
    EvaluationReport,
    FreezeAudit,
    LearningAudit,
    LearningCurve,
    LearningRateLog,
    PredictionTable,
    Throughput,
)
from lightning_mllm.cli.parser import Parser, data_parser, tasks_parser
from lightning_mllm.data.datasets.gqa.extraction import write_tasks
from lightning_mllm.data.datasets.inventory import Inventory, take_inventory
from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.loading.full_check import WrittenOut, write_out_all
from lightning_mllm.errors import ConfigError, UserError
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.models.optimisation.muon import MuonAdamW  # noqa: F401 - likewise
from lightning_mllm.models.tiny import build_tiny_checkpoint
from lightning_mllm.study import run_study, study_class
from lightning_mllm.testbed import datamodules  # noqa: F401 - likewise
from lightning_mllm.testbed.domains import datamodule  # noqa: F401 - likewise
from lightning_mllm.testbed.training.checkpoints import ROOT
from lightning_mllm.tracking.loggers import finish, log_config
from lightning_mllm.tracking.secrets import mask_secrets
from lightning_mllm.trainer import Trainer


class Checkpointing(ModelCheckpoint):
    """Lightning's, but `last.ckpt` is of the last step whatever the interval, and a trial writes none."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the last step, if it is not written."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))


def default_callbacks(writes: bool, shows_progress: bool = True) -> list[Callback]:
    """Return what every run does, unless the config names another callback of the same class.

    Args:
        writes: Whether the run keeps files; a trial with `fast_dev_run` does not.
        shows_progress: Whether there is a progress bar.
    """
    shows: list[Callback] = [*([RichProgressBar()] if shows_progress else []), FreezeAudit(), Throughput()]
    if not writes:
        return shows
    return [
        *shows,
        LearningRateLog(),
        PredictionTable(),
        EvaluationReport(),
        LearningAudit(),
        LearningCurve(),
    ]


class SaveConfig(SaveConfigCallback):
    """Writes the resolved config into the run's own folder and to W&B."""

    def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Write `config.yaml`; Lightning calls this on rank zero only, before anything runs."""
        config = mask_secrets(yaml.safe_load(self.parser.dump(self.config, skip_none=False)))
        (Path(trainer.default_root_dir) / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        log_config(trainer.loggers, config)


class CLI(LightningCLI):
    """LightningCLI with our classes and sub-commands, and the checkpoint named once for model and data."""

    def __init__(self, args: list[str] | None = None) -> None:
        _register_resolvers()
        super().__init__(
            MLLMModule,
            MLLMDataModule,
            subclass_mode_data=True,
            trainer_class=Trainer,
            parser_class=Parser,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            parser_kwargs={"parser_mode": "omegaconf", "allow_abbrev": False},
            auto_configure_optimizers=False,
            seed_everything_default=0,
            args=args,
        )
        finish(self.trainer.loggers)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return Lightning's sub-commands and ours, with the arguments that the command line does not show."""
        return {**LightningCLI.subcommands(), **{name: {"model", "datamodule"} for name in ("analyze", "export")}}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; `${testbed:instructed}` or `${oc.env:HOME}` may stand on the command line, not only in a file."""
        arguments = sys.argv[1:] if args is None else args
        self.config = parser.parse_args([_resolved(argument) for argument in arguments])

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would read the checkpoint here for hyper-parameters, which ours don't have."""

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Let the saved config of a fit serve every sub-command, and `export` do without data."""
        parser: LightningArgumentParser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand != "fit":
            for option in ("test_before", "test_after"):
                parser.add_argument(f"--{option}", type=bool, default=False, help="Of `fit`; no matter here.")
        if subcommand == "export":
            parser._extra_required_keys.discard("data")
            next(action for action in parser._actions if action.dest == "data").required = False
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Name the model's checkpoint once; add the section on when training checkpoints are written."""
        parser.add_lightning_class_args(Checkpointing, "checkpointing")
        parser.set_defaults(
            {
                "checkpointing.save_last": True,
                "checkpointing.every_n_train_steps": 500,
                # the module's own defaults are objects, which a saved config could not say
                "model.optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"weight_decay": 0.0}},
                "model.scorers": [{"class_path": "Generation"}, {"class_path": "Likelihood"}],
            }
        )
        for option in ("checkpoint", "revision", "trust_remote_code"):
            parser.link_arguments(f"model.{option}", f"data.init_args.{option}")

    def before_instantiate_classes(self) -> None:
        """Give the seed of the run to data and prompts that have none of their own, as `config.yaml` then shows."""
        seed = self._get(self.config, "seed_everything")
        if seed is not False:
            _fill_in_seeds(self.config[self.subcommand], seed)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Add the default callbacks that the config does not replace."""
        if self.subcommand == "export":
            return Trainer(logger=False, enable_progress_bar=False, enable_checkpointing=False)
        config = self._get(self.config_init, "trainer")
        trial = bool(config.get("fast_dev_run"))
        chosen = config.get("callbacks") or []
        chosen = [*chosen] if isinstance(chosen, Sequence) else [chosen]
        writes = not trial and config.get("logger") is not False  # without a logger the run has no folder
        extra = default_callbacks(writes, shows_progress=config.get("enable_progress_bar") is not False)
        chosen += [callback for callback in extra if not isinstance(callback, tuple(map(type, chosen)))]
        return super().instantiate_trainer(callbacks=chosen, **kwargs)

    def after_analyze(self) -> None:
        """Say where the results are."""
        self.after_fit()

    def after_fit(self) -> None:
        """Say where the results are."""
        if self.trainer.is_global_zero and self.trainer.loggers:
            Console().print(f"Results are in {self.trainer.default_root_dir}", highlight=False)


def main(args: list[str] | None = None) -> None:
    """Entry point of `lightning` and `lightning-mllm`."""
    arguments = sys.argv[1:] if args is None else args
    if os.getcwd() not in sys.path:  # so that a config can name a class of the user's own: my_data.Leaves
        sys.path.append(os.getcwd())
    # expected in every run: frozen parts stay in eval mode, checkpoints go to a new folder; the third is not ours
    for message in ("Found .* module.s. in eval mode", "The dirpath has changed", ".isinstance.treespec, LeafSpec"):
        warnings.filterwarnings("ignore", message)
    try:
        if arguments[:1] == ["tiny"]:
            auto_cli(build_tiny_checkpoint, args=arguments[1:], as_positional=True, parser_class=Parser)
        elif arguments[:2] == ["data", "check"]:
            _check_data(arguments[2:])
        elif arguments[:2] == ["data", "gqa-tasks"]:
            _extract_tasks(arguments[2:])
        elif arguments[:1] == ["study"]:
            _run_study(arguments[1:])
        else:
            CLI(args)
    except ValueError as error:
        sys.exit(f"error: {_user_error(error)}")


def _check_data(arguments: list[str]) -> None:
    _register_resolvers()
    parser = data_parser("lightning data check")
    if "--split" in {argument.partition("=")[0] for argument in arguments}:  # an analysis' config may say it
        parser.error("unrecognized arguments: --split")
    options = parser.instantiate(parser.parse_args(arguments))
    module, model = options.data, options.model or {}
    for name in ("checkpoint", "revision", "trust_remote_code"):  # of a fit's config
        setattr(module, name, getattr(module, name) or model.get(name))
    with module.bad_rows.gather():
        found: list[Inventory | WrittenOut] = [take_inventory(module, options.splits)]
        if options.all:
            found.append(write_out_all(module, options.splits))
    Console().print(*found, sep="\n")


def _extract_tasks(arguments: list[str]) -> None:
    options = tasks_parser("lightning data gqa-tasks").parse_args(arguments)
    for file in write_tasks(options.questions, options.scenes, options.output):
        Console().print(file, highlight=False, soft_wrap=True)


def _run_study(arguments: list[str]) -> None:
    _register_resolvers()
    arguments = ["--dry_run=true" if argument == "--dry-run" else _resolved(argument) for argument in arguments]
    study = auto_cli(
        study_class(arguments),
        args=arguments,
        prog="lightning study",
        description="Run a grid of runs, and report on it. --kind alignment --help shows the other kind of study.",
        as_positional=False,
        return_instance=True,
        parser_class=Parser,
        parser_mode="omegaconf",  # the cells get what ${testbed:instructed} stands for
        allow_abbrev=False,
    )
    if run_study(study):
        sys.exit(1)


def _fill_in_seeds(node: Any, seed: int) -> None:
    """Set every `seed` of a config that is null."""
    if isinstance(node, list):
        for each in node:
            _fill_in_seeds(each, seed)
    for key, value in vars(node).items() if isinstance(node, Namespace) else ():
        if key == "seed" and value is None:
            node[key] = seed
        else:
            _fill_in_seeds(value, seed)


def _register_resolvers() -> None:
    OmegaConf.register_resolver("testbed", lambda stage: str(ROOT / stage), replace=True)  # ${testbed:instructed}


def _resolved(argument: str) -> str:
    """Return an argument with what its resolvers give; interpolations of the config's own keys stay."""
    try:
        return re.sub(r"\$\{[\w.]+:[^{}]*\}", lambda match: str(OmegaConf.create([match[0]])[0]), argument)
    except OmegaConfBaseException as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"The argument {argument!r} can't be resolved: {reason}. Known are ${{testbed:...}} and ${{oc.env:...}}."
        ) from error


def _user_error(error: BaseException) -> UserError:
    """Return the user's error behind an exception; jsonargparse wraps what a constructor raises."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        cause = cause.__cause__ or cause.__context__
    raise error
