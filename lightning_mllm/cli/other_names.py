"""What other programs call options that have another name here."""

from __future__ import annotations

_RATES = "model.learning_rates, one per part, e.g. --model.learning_rates.projector 1e-3"
_CHECKPOINT = "model.checkpoint"
_BATCH = "data.init_args.batch_size (over all devices)"
_EVAL_BATCH = "data.init_args.eval_batch_size"
_OUTPUT = "trainer.run.root (folder of all runs) with trainer.run.name"
_QUANTIZE = "model.quantize, which is nf4 or int8"
_PRECISION = "model.dtype, e.g. --model.dtype bfloat16"

# last part of an option, as people know it from elsewhere -> its name here
OTHER_NAMES = {
    "adam_beta1": "model.optimizer.init_args.betas",
    "base_model": _CHECKPOINT,
    "batchsize": _BATCH,
    "bf16": _PRECISION,
    "bs": _BATCH,
    "ckpt": "ckpt_path, a checkpoint of a run, or model.checkpoint, a model",
    "dataset": "data",
    "data_path": "data.init_args.root or data.init_args.train",
    "epoch": "trainer.max_epochs",
    "epochs": "trainer.max_epochs",
    "eval_batch_size_per_device": _EVAL_BATCH,
    "experiment_name": "trainer.run.name",
    "fp16": _PRECISION,
    "freeze": "model.policy, e.g. --model.policy ProjectorOnly",
    "gpus": "trainer.devices",
    "gradient_accumulation_steps": "model.micro_batch_size, samples at a time",
    "learning_rate": _RATES,
    "load_in_4bit": _QUANTIZE,
    "load_in_8bit": _QUANTIZE,
    "logging_steps": "trainer.log_every_n_steps",
    "lora_r": "model.policy.init_args.rank with --model.policy Lora",
    "lora_rank": "model.policy.init_args.rank with --model.policy Lora",
    "lr": _RATES,
    "lr_scheduler_type": "model.decay, e.g. --model.decay cosine",
    "max_grad_norm": "trainer.gradient_clip_val",
    "model_id": _CHECKPOINT,
    "model_name": _CHECKPOINT,
    "model_name_or_path": _CHECKPOINT,
    "model_path": _CHECKPOINT,
    "num_epochs": "trainer.max_epochs",
    "num_train_epochs": "trainer.max_epochs",
    "optim": "model.optimizer",
    "output_dir": _OUTPUT,
    "per_device_eval_batch_size": _EVAL_BATCH,
    "per_device_train_batch_size": _BATCH,
    "report_to": "trainer.run.wandb",
    "resume_from_checkpoint": "ckpt_path",
    "run_name": "trainer.run.name",
    "save_steps": "checkpointing.every_n_train_steps",
    "save_total_limit": "checkpointing.save_top_k",
    "scheduler": "model.decay, e.g. --model.decay cosine",
    "train_batch_size": _BATCH,
    "wandb": "trainer.run.wandb",
    "wandb_project": "trainer.run.project",
    "warmup": "model.warmup_ratio",
    "warmup_steps": "model.warmup_ratio (a share of all steps)",
    "weight_decay": "model.optimizer.init_args.weight_decay",
    "workers": "data.init_args.num_workers",
}
