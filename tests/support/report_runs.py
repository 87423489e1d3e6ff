"""Runs of any size without a model: simulated maps, pictures, curves and tables."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lightning_mllm.store.files import write_bytes, write_csv_file, write_json, write_text
from lightning_mllm.store.sample_maps import (
    MapFolder,
    SampleMaps,
    ValueMap,
    digest_sample_id,
    find_pictures_folder,
    make_word_map,
)

QUESTION = 'Is it </script> or "blue"?'
SIGNED, SHARE, WORDS, ONCE = "signed effect", "attention", "lens", "all layers"


def simulate_run(
    run: Path,
    *,
    samples: int = 3,
    side: int = 4,
    layers: int = 3,
    vocabulary: int = 40,
    pixels: int = 64,
) -> list[SampleMaps]:
    """Write the folder of a run, and return the maps that are in it.

    Words follow Zipf's law and stay from one layer to the next in half of the patches.
    """
    draw = np.random.default_rng(0)
    write_text(
        run / "config.yaml", "model:\n  checkpoint: tiny </script>\n  hf_token: s3cret-key\n"
    )
    rows = [
        (step, 2 / (step + 1), 0.1 * step, "" if step % 2 else 3 / (step + 1)) for step in range(9)
    ]
    write_csv_file(run / "metrics.csv", ["step", "train/loss", "val/accuracy", "val/loss"], rows)
    write_csv_file(
        run / "analysis" / "test-step8" / "flow" / "summary.csv",
        ["layer", "value", "low_95", "high_95", "n"],
        [(layer, 0.5, 0.4, 0.6, 10) for layer in range(layers)],
    )
    folder = run / "analysis" / "test-step8"
    written = MapFolder(folder / "maps_by_hand")
    found = []
    for number in range(samples):
        maps = _simulate_maps(f"sample {number}", draw, side, layers, vocabulary)
        written.write(maps)
        _write_about(find_pictures_folder(folder), maps.sample_id, draw, side, pixels)
        found.append(maps)
    return found


def _simulate_maps(
    sample_id: str, draw: np.random.Generator, side: int, layers: int, vocabulary: int
) -> SampleMaps:
    tokens = side * side
    ids = np.minimum(draw.zipf(1.3, (layers, tokens, 3)), vocabulary) - 1
    for layer in range(1, layers):
        kept = draw.random(tokens) < 0.5
        ids[layer, kept] = ids[layer - 1, kept]
    scores = -np.sort(draw.exponential(2, (layers, tokens, 3)), axis=2)
    share = draw.exponential(1, (layers, tokens))
    share /= 2 * share.sum(1, keepdims=True)
    signed = draw.normal(0, 1, (layers, tokens))
    signed[:, 0] = np.nan
    order = tuple(range(layers))
    return SampleMaps(
        sample_id,
        {
            SHARE: ValueMap(share.astype(np.float32), order, "share of attention"),
            SIGNED: ValueMap(signed.astype(np.float32), order, "change"),
            ONCE: ValueMap(draw.random((1, tokens)).astype(np.float32), (), "log-probability lost"),
        },
        {WORDS: make_word_map(ids, scores.astype(np.float32), "w{}".format, order, "log-p")},
        {"answer": "</script><b>red"},
        {"object": np.arange(tokens) % side < side // 2},
    )


def _write_about(
    folder: Path, sample_id: str, draw: np.random.Generator, side: int, pixels: int
) -> None:
    name = digest_sample_id(sample_id)
    small = Image.fromarray(draw.integers(0, 255, (pixels // 8, pixels // 8, 3), dtype=np.uint8))
    stream = BytesIO()
    small.resize((pixels, pixels), Image.Resampling.BICUBIC).save(stream, "WEBP", quality=80)
    write_bytes(folder / f"{name}-0.webp", stream.getvalue())
    edges = [(k / side, (k + 1) / side) for k in range(side)]
    view: dict[str, Any] = {"across": edges, "down": edges, "newline": False, "whole": True}
    picture = {"file": f"{name}-0.webp", "size": (pixels, pixels), "tokens": side * side}
    write_json(
        folder / f"{name}.json",
        {
            "sample_id": sample_id,
            "kind": "choose",
            "question": QUESTION,
            "reference": "blue",
            "pictures": [{**picture, "ahead": 0, "views": [view]}],
            "boxes": [[0.1, 0.1, 0.6, 0.5]],
            "distractors": [],
        },
    )
