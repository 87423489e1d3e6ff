"""`lightning fit`, `validate`, `test`, `predict`, `analyze`, `extract`, `bank` and `export`."""

from __future__ import annotations

import logging
from typing import Any

from jsonargparse import SUPPRESS, Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lightning_mllm.callbacks import AnswerTable, Checkpointing, default_callbacks
from lightning_mllm.cli.class_lists import split_class_lists
from lightning_mllm.cli.commands import PROGRAM
from lightning_mllm.cli.fit_dry_run import HELP as DRY_RUN_HELP
from lightning_mllm.cli.fit_dry_run import dry_run_fit
from lightning_mllm.cli.parser import Parser, take_whole_numbers_first
from lightning_mllm.cli.resolvers import register_resolvers, resolved
from lightning_mllm.cli.resumed_fit import HELP as RESUME_HELP
from lightning_mllm.cli.resumed_fit import checkpoint_file, resumed_fit_arguments
from lightning_mllm.cli.run_names import name_after_run
from lightning_mllm.cli.save_config import SaveConfig
from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.errors import ConfigError
from lightning_mllm.messages import send_library_messages
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.option_lists import trainer_option_as_list
from lightning_mllm.tracking.loggers import finish_loggers
from lightning_mllm.trainer import Trainer
from lightning_mllm.trainer_options import check_trainer_options

_DRY_RUN = "--dry-run"
_NAMED_AFTER_RUN = ("validate", "test", "predict", "analyze")

logger = logging.getLogger(__name__)


def run(name: str, arguments: list[str]) -> None:
    """Run the command; without a name, the arguments say which it is."""
    ModelCLI([name, *arguments] if name else arguments)


class ModelCLI(LightningCLI):
    """LightningCLI with our classes and commands; model and data share the option `checkpoint`.

    Args:
        args: The command line, from the name of the command on.
    """

    def __init__(self, args: list[str]) -> None:
        self._first = args[0]
        send_library_messages()  # of those that are imported now
        self._is_dry = self._first == "fit" and _DRY_RUN in args
        if self._first == "fit":
            args = ["fit", *resumed_fit_arguments([each for each in args[1:] if each != _DRY_RUN])]
        elif self._first in _NAMED_AFTER_RUN:
            args = [self._first, *name_after_run(self._first, args[1:])]
        if self._first == "predict":
            args = split_class_lists(args)
        register_resolvers()
        super().__init__(
            MLLMModule,
            MLLMDataModule,
            subclass_mode_data=True,
            trainer_class=Trainer,
            parser_class=Parser,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False, "arguments": args},
            parser_kwargs={
                "prog": f"{PROGRAM} {args[0]}" if len(self.subcommands()) == 1 else PROGRAM,
                "parser_mode": "omegaconf",
                "allow_abbrev": False,
            },
            auto_configure_optimizers=False,
            seed_everything_default=0,
            args=args,
        )
        finish_loggers(self.trainer.loggers)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # static there
        """Return the command that is run, and which parameters of its method are not options.

        Only its parser is built, which takes a tenth of a second. All are built if the arguments
        begin with a config that has a section per command.
        """
        ours = {name: {"model", "datamodule"} for name in ("analyze", "extract", "export", "bank")}
        every = {**LightningCLI.subcommands(), **ours}
        every["predict"] = every["predict"] | {"classes"}  # which is added with its own syntax
        return {self._first: every[self._first]} if self._first in every else every

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; `${testbed:instructed}` or `${oc.env:HOME}` may stand on the command line, too."""
        self.config = parser.parse_args([resolved(argument) for argument in args])

    def _parse_ckpt_path(self) -> None:
        """Take the last checkpoint of a run whose folder is given.

        Raises:
            ConfigError: A config file has `resume`, which would come too late to be obeyed.
        """
        options = self.config.get(self.config.subcommand) or {}
        if self.config.subcommand == "fit" and (run := options.get("resume")):
            raise ConfigError(
                "resume is an option of the command line, which a config file can't set: "
                f"lightning fit --resume {run}"
            )
        if options.get("ckpt_path"):
            options["ckpt_path"] = str(checkpoint_file(options["ckpt_path"]))

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        super()._add_subcommands(parser, **kwargs)
        for name, each in self._subcommand_parsers.items():
            each.prog = f"{PROGRAM} {name}"

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        """Let the saved config of a fit serve every sub-command, and some do without data."""
        parser: LightningArgumentParser = super()._prepare_subcommand_parser(
            klass, subcommand, **kwargs
        )
        take_whole_numbers_first(parser)
        if subcommand == "fit":
            parser.add_argument("--resume", default=SUPPRESS, metavar="RUN", help=RESUME_HELP)
            parser.add_argument(_DRY_RUN, action="store_true", default=SUPPRESS, help=DRY_RUN_HELP)
        else:
            for option in ("test_before", "test_after"):
                help = "Used by `fit` only; ignored by this command."
                parser.add_argument(f"--{option}", type=bool, default=False, help=help)
        if subcommand in ("validate", "test"):
            parser.set_defaults(verbose=False)  # Lightning's table; there is one of ours
        if subcommand == "predict":
            help = "The classes to choose from for these pictures; by default those of the data."
            parser.add_argument("--classes", nargs="+", type=str, default=[], help=help)
            self._subcommand_method_arguments[subcommand].append("classes")
        if subcommand in ("export", "predict", "bank"):
            parser._extra_required_keys.discard("data")
            next(action for action in parser._actions if action.dest == "data").required = False
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Share the checkpoint between model and data; add the section `checkpointing`."""
        parser.add_lightning_class_args(Checkpointing, "checkpointing")
        parser.set_defaults(
            {
                "checkpointing.save_last": True,
                "checkpointing.every_n_train_steps": 500,
                # the module's own defaults are objects, which a saved config could not say
                "model.optimizer": {
                    "class_path": "torch.optim.AdamW",
                    "init_args": {"weight_decay": 0.0},
                },
                "model.scorers": [{"class_path": "Generation"}, {"class_path": "Likelihood"}],
            }
        )
        for option in ("checkpoint", "revision", "trust_remote_code"):
            parser.link_arguments(f"model.{option}", f"data.init_args.{option}")

    def before_instantiate_classes(self) -> None:
        """Give the run's seed to data and prompts without one; `config.yaml` then shows it."""
        seed = self._get(self.config, "seed_everything")
        if seed is not False:
            fill_in_seeds(self.config[self.subcommand], seed)

    def _run_subcommand(self, subcommand: str) -> None:
        if self._is_dry:
            dry_run_fit(self.model, self.datamodule, self._get(self.config_init, "trainer"))
        else:
            super()._run_subcommand(subcommand)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Add the default callbacks that the config does not replace."""
        if self.subcommand == "export":
            return Trainer(logger=False, enable_checkpointing=False)
        config = self._get(self.config_init, "trainer")
        if self._is_dry:  # for devices that may not be here; leaves no run
            check_trainer_options({**config, "accelerator": None})
            return Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", devices=1)
        if config.get("fast_dev_run"):
            logger.info("A trial (trainer.fast_dev_run): few batches, and nothing is written.")
        if self.subcommand in ("extract", "bank"):  # leaves a folder of its own, and no run
            nothing = {"logger": False, "callbacks": None, "enable_checkpointing": False}
            return Trainer(**{**config, **nothing})
        chosen = trainer_option_as_list(config.get("callbacks"))
        callbacks = default_callbacks(*chosen, self._get(self.config_init, "checkpointing"))
        if self.subcommand == "predict" and not any(isinstance(c, AnswerTable) for c in callbacks):
            callbacks.append(AnswerTable())
        return self._instantiate_trainer({**config, **kwargs, "callbacks": callbacks}, [])


def fill_in_seeds(node: Any, seed: int) -> None:
    """Set every `seed` of a config that is null."""
    if isinstance(node, list):
        for each in node:
            fill_in_seeds(each, seed)
    for key, value in vars(node).items() if isinstance(node, Namespace) else ():
        if key == "seed" and value is None:
            node[key] = seed
        else:
            fill_in_seeds(value, seed)
