"""The model card of an export: what was trained, on what, how good it is, and how to open it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData, try_to_load_from_cache

from lightning_mllm import __version__
from lightning_mllm.models.backbone import Part
from lightning_mllm.models.card_facts import CardFacts
from lightning_mllm.models.source import Source

_CARD = "README.md"
_LICENSE = ("license", "license_name", "license_link")  # what the base's card may say of it
_SCORE_COLUMNS = ("split", "scorer", "N", "accuracy", "macro-F1")

logger = logging.getLogger(__name__)


def make_model_card(source: Source, facts: CardFacts, folder: Path, name: str) -> ModelCard:
    """Return the card of an exported model.

    Args:
        source: Checkpoint that the training started from.
        facts: What is known of the training.
        folder: The export as far as it is written.
        name: What the model is called.
    """
    on_hub = not Path(source.checkpoint).exists()
    tags = ["lightning-mllm"]
    trained = facts.report is not None and facts.steps > 0
    if facts.report is not None and trained:
        tags.append(facts.report.policy.partition("(")[0])
    data = ModelCardData(
        base_model=source.checkpoint if on_hub else None,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=tags,
        **_read_license(source),
    )
    base = f"the checkpoint `{Path(source.checkpoint).resolve().name}`"
    if on_hub:
        base = f"[{source.checkpoint}](https://huggingface.co/{source.checkpoint})"
    if source.revision is not None:
        base += f" (revision `{source.revision}`)"
    sections = [
        f"# {name}",
        f"A model {'trained' if trained else 'exported'} from {base} with lightning_mllm.",
        *_describe_training(facts),
        *_describe_data(facts),
        *_describe_scores(facts),
        *_describe_use(facts, folder, name),
        *_describe_inputs(facts),
        f"## Versions\n\n{_list_versions()}",
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def _read_license(source: Source) -> dict[str, Any]:
    """Return what the base's own card says of its licence, without asking the hub."""
    path: Any = Path(source.checkpoint) / _CARD
    if not Path(source.checkpoint).exists():
        path = try_to_load_from_cache(source.checkpoint, _CARD, revision=source.revision)
    if not isinstance(path, str | Path) or not Path(path).is_file():
        return {}
    try:
        stated = ModelCard.load(Path(path), ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, yaml.YAMLError) as error:
        logger.warning(
            "The card of the base model, %s, can't be read (%s); the export's own card says "
            "nothing of the licence.",
            path,
            error,
        )
        return {}
    return {name: stated[name] for name in _LICENSE if name in stated}


def _describe_training(facts: CardFacts) -> Iterator[str]:
    yield "## What was trained"
    if facts.report is None or not facts.steps:
        yield "Nothing that is known of: the weights are those that the export began with."
        return
    yield f"Freeze policy `{facts.report.policy}`, {facts.steps:,} optimiser steps."
    rows = [(name, f"{all:,}", f"{trained:,}") for name, all, trained, _ in facts.report.rows()]
    yield _make_table(("part", "parameters", "trained"), rows)
    if facts.schedule is not None:
        rates = ", ".join(f"{option} {rate:g}" for option, rate in facts.rates.items())
        yield (
            f"Peak learning rates: {rates}; warm-up over "
            f"{100 * facts.schedule['warmup_ratio']:g}% of the steps, then "
            f"{facts.schedule['decay']}{_list_own_schedules(facts)}."
        )


def _list_own_schedules(facts: CardFacts) -> str:
    own: dict[str, Any] = (facts.schedule or {}).get("parts") or {}
    found = []
    for option in facts.rates:
        said = {name: value for name, value in own.get(option, {}).items() if value is not None}
        if said:
            settings = ", ".join(f"{name} {value}" for name, value in said.items())
            found.append(f"; {option}: {settings}")
    return "".join(found)


def _describe_data(facts: CardFacts) -> Iterator[str]:
    if facts.data:
        samples = facts.data["samples"]
        order = sorted(samples, key=("train", "val", "test").index)
        sizes = [f"{samples[split]:,} {split}" for split in order]
        classes = facts.data.get("classes")
        ending = f", {classes:,} classes" if classes else ""
        yield f"## Data\n\n`{facts.data['class']}`, samples: {', '.join(sizes)}{ending}."


def _describe_scores(facts: CardFacts) -> Iterator[str]:
    if not facts.scores:
        return
    rows = []
    for each in facts.scores:
        rows.append((each.split, each.scorer, f"{each.n:,}", each.accuracy, each.macro_f1))
    dtypes = ", ".join(sorted({each.dtype for each in facts.scores} - {""}))
    computed = f", evaluated in {dtypes}" if dtypes else ""
    yield f"## Scores\n\nIn brackets are 95 % intervals{computed}."
    yield _make_table(_SCORE_COLUMNS, rows)


def _describe_use(facts: CardFacts, folder: Path, name: str) -> Iterator[str]:
    yield "## How to open it"
    yield (
        "With transformers, where the folder or repository is called "
        f"`{name}`:\n\n```python\nfrom transformers import AutoModelForImageTextToText, "
        "AutoProcessor\n\n"
        f'model = AutoModelForImageTextToText.from_pretrained("{name}")\n'
        f'processor = AutoProcessor.from_pretrained("{name}")\n```'
    )
    yield (
        "With lightning_mllm it is a checkpoint as any other:\n\n```bash\n"
        f"lightning test --model.checkpoint {name} --config <your data>.yaml\n```"
    )
    alone = []
    if (folder / "projector.safetensors").is_file():
        alone.append(
            "`projector.safetensors` is the projection alone, for `--model.projector` of another "
            "run from the same base."
        )
    if (folder / "adapter").is_dir():
        alone.append(
            "The adapters are merged into the weights. They are also in `adapter/`, for "
            f'`PeftModel.from_pretrained(base_model, "{name}/adapter")` on the base model.'
            + _name_weights_beside_adapters(facts)
        )
    if alone:
        yield "\n".join(f"- {each}" for each in alone)


def _name_weights_beside_adapters(facts: CardFacts) -> str:
    """Return what an adapter's file lacks: it has the adapters, and the projector."""
    trained = facts.report.trainable_parts if facts.report is not None and facts.steps else ()
    called = {Part.LLM: "LLM", Part.VISION: "vision tower"}
    names = [name for part, name in called.items() if part in trained]
    if not names:
        return ""
    return (
        f" That is another model than this one: weights of the {' and '.join(names)} were trained "
        "too, and are in this folder's weights alone."
    )


def _describe_inputs(facts: CardFacts) -> Iterator[str]:
    yield "## What to know"
    pictures = (
        "Pictures go in as the base model's own processor makes them."
        if facts.geometry is None
        else f"In training and evaluation, pictures were made square by the geometry "
        f"`{facts.geometry}`."
    )
    yield "\n".join(f"- {each}" for each in (pictures, *facts.notes))


def _list_versions() -> str:
    others = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    return f"lightning_mllm {__version__}, {others}."


def _make_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
