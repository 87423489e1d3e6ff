"""One epoch's features for a probe: with a warm cache, extracted anew, and by the whole model.

The first baseline is our own extraction without a cache: tower and projector. The second is what
research code does: a full forward with `output_hidden_states`, of which the input of the first
layer is pooled at the image's positions. Batches are collated beforehand, for all alike. The peak
memory of a large extraction is measured before, with a small tower and a projection that is one
layer of the full width. Run it: `python tests/benchmarks/feature_extraction.py`.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data import Digits
from lightning_mllm.data.datasets.digits import NAMES
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.freeze import ProjectorOnly
from lightning_mllm.models.tiny import TinySize, build_tiny_checkpoint
from lightning_mllm.probing.features.cache import FeatureCache
from lightning_mllm.probing.features.extraction import extract
from lightning_mllm.probing.features.feature_set import FeatureSet
from lightning_mllm.probing.features.points import Point
from lightning_mllm.types import Segment
from tests.benchmarks.harness import (
    MemoryMeter,
    Row,
    add_common_options,
    be_quiet,
    make_checkpoint,
    print_table,
    synchronise,
)

BASELINE = "without cache"
POINTS = (Point("pre"), Point("post"), Point("post", pooling="max"))
SMALL = TinySize(image_size=24 * 7, patch_size=7)  # 576 patches


@dataclass(frozen=True)
class Task:
    """What is extracted from what."""

    backbone: Backbone
    batches: Sequence[MultimodalBatch]
    cache: FeatureCache


def extract_cached(task: Task) -> Tensor:
    """Run the projector on what the cache has; (images, width)."""
    return extract(task.backbone, task.batches, [Point("post")], NAMES, cache=task.cache)[
        "post-mean"
    ].features


def extract_anew(task: Task) -> Tensor:
    """Run tower and projector; (images, width)."""
    return extract(task.backbone, task.batches, [Point("post")], NAMES)["post-mean"].features


@torch.no_grad()
def run_the_whole_model(task: Task) -> Tensor:
    """Run the model and pool what enters its first layer; (images, width)."""
    vectors = []
    for batch in task.batches:
        moved = batch.to(task.backbone.model.device)
        hidden = task.backbone.model(
            **moved.model_inputs(), output_hidden_states=True
        ).hidden_states[0]
        image = moved.spans[Segment.IMAGE]
        vectors += [
            states[mask].float().mean(dim=0).cpu()
            for states, mask in zip(hidden, image, strict=True)
        ]
    return torch.stack(vectors)


def make_task(options: argparse.Namespace, folder: Path) -> Task:
    """Load the model, collate the images and fill the cache."""
    checkpoint = make_checkpoint(options, folder)
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    backbone = Backbone.from_pretrained(checkpoint, dtype=dtype)
    ProjectorOnly().apply(backbone)
    backbone.model.to(options.device)
    data = Digits(checkpoint=checkpoint, eval_batch_size=options.batch_size)
    data.setup("test")
    samples = data.samples["test"][: options.images]
    starts = range(0, len(samples), options.batch_size)
    batches = [
        data.eval_collator([(0, sample) for sample in samples[k : k + options.batch_size]]).to(
            options.device
        )
        for k in starts
    ]
    return Task(
        backbone, batches, FeatureCache(folder / "cache", max_gigabytes=options.max_gigabytes)
    )


def compare(options: argparse.Namespace, folder: Path) -> tuple[list[Row], str]:
    """Measure the three ways in turn, after checking that they agree."""
    task = make_task(options, folder)
    ways = {"cached": extract_cached, "anew": extract_anew, "whole": run_the_whole_model}
    features = {name: way(task) for name, way in ways.items()}  # fills the cache and warms up
    scale = float(features["whole"].abs().max())
    difference = (
        max(float((each - features["whole"]).abs().max()) for each in features.values()) / scale
    )
    if difference > 2e-2:
        raise SystemExit(
            "The three ways do not agree: "
            f"features differ by {difference:.1e} of their largest value."
        )
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repetitions):
        for name, way in ways.items():
            seconds[name].append(_duration(way, task, options.device) / len(features["whole"]))
    images = len(features["whole"])
    rows = [
        Row("tower and projector: seconds per image", seconds["anew"], seconds["cached"], digits=4),
        Row("whole model: seconds per image", seconds["whole"], seconds["cached"], digits=4),
    ]
    size = sum(path.stat().st_size for path in (folder / "cache").glob("*/*")) / images
    return rows, (
        f"{images} images of {options.image_tokens} tokens; vision {options.vision_layers} x "
        f"{options.vision_width}, LLM {options.text_layers} x {options.text_width}. "
        f"The cache takes {size / 1e6:.2f} MB per image. "
        f"Features agree to {difference:.0e} of their largest value (float16 in the cache)."
    )


def measure_memory(options: argparse.Namespace, folder: Path) -> str:
    """Extract many images with a projection of full width, and say what that took."""
    checkpoint = str(build_tiny_checkpoint(folder / "small", size=SMALL))
    backbone = Backbone.from_pretrained(checkpoint)
    ProjectorOnly().apply(backbone)
    width = backbone.model.config.vision_config.hidden_size
    backbone.projector.linear_1 = nn.Linear(width, options.memory_width)
    backbone.projector.linear_2 = nn.Identity()
    meter = MemoryMeter("cpu")
    started = time.perf_counter()
    found = extract(
        backbone,
        _many_batches(checkpoint, options.memory_images, options.batch_size),
        POINTS,
        NAMES,
        cache=FeatureCache(folder / "memory", max_gigabytes=options.max_gigabytes),
    )
    seconds = time.perf_counter() - started
    tokens = options.memory_images * 576 * options.memory_width * 4
    return (
        f"{options.memory_images} images of 576 tokens x {options.memory_width}, "
        f"{len(POINTS)} points, in batches of {options.batch_size}, with a cache that fills: "
        f"peak {meter.peak():.0f} MiB above the model, "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB of the whole "
        f"process, {seconds:.0f} s. The tokens themselves would take {tokens / 1e9:.1f} GB, "
        f"the features take {_bytes(found) / 1e6:.0f} MB."
    )


def _many_batches(checkpoint: str, count: int, size: int) -> Iterator[MultimodalBatch]:
    """Yield batches of noise, one at a time."""
    data = Digits(checkpoint=checkpoint, eval_batch_size=size)
    data.setup("test")
    batch = data.eval_collator([(0, sample) for sample in data.samples["test"][:size]])
    for start in range(0, count, size):
        rows = batch.take(range(min(size, count - start)))
        noise = tuple(
            {"pixel_values": torch.randn_like(image["pixel_values"])} for image in rows.images
        )
        ids = tuple(f"image-{start + row}" for row in range(len(rows)))
        yield replace(rows, sample_ids=ids, images=noise)


def _bytes(features: dict[str, FeatureSet]) -> int:
    return sum(each.features.nbytes for each in features.values())


def _duration(way: Callable[[Task], Tensor], task: Task, device: str) -> float:
    synchronise(device)
    started = time.perf_counter()
    way(task)
    synchronise(device)
    return time.perf_counter() - started


def main() -> None:
    """Read the options, measure memory, compare the three ways and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_options(parser)
    parser.set_defaults(
        vision_width=192, vision_layers=24, text_width=768, text_layers=4, image_tokens=576
    )
    parser.add_argument("--images", type=int, default=8, help="images whose extraction is timed")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--max-gigabytes", type=float, default=20.0, help="limit of the cache")
    parser.add_argument(
        "--memory-images", type=int, default=4000, help="images of the memory measurement; 0: none"
    )
    parser.add_argument(
        "--memory-width", type=int, default=4096, help="width of the projected tokens in it"
    )
    options = parser.parse_args()
    be_quiet()
    with tempfile.TemporaryDirectory() as folder:
        notes = [measure_memory(options, Path(folder))] if options.memory_images else []
        rows, note = compare(options, Path(folder))
    print_table(
        BASELINE, rows, device=options.device, threads=torch.get_num_threads(), notes=[note, *notes]
    )


if __name__ == "__main__":
    main()
