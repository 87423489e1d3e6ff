"""Maps of single pictures: what each patch says, is looked at, and is needed for.

For some samples, drawn by their ids, a file holds, for each visual token:

- the words of the logit lens at each layer, and the log-probability that the model's own answer has
  there (nostalgebraist 2020; on visual tokens Neo et al., arXiv 2410.07149);
- the attention that the last position of the prompt pays it in each layer;
- how much the answer's log-probability falls when the block of patches around it is hidden.

They are there to be looked at, with `lightning report`: a picture shows what to measure, and proves
nothing. So the result has the means over the samples beside them, of the patches of the object and,
as a control, of as many others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_mllm.analysis.core.analysis import Analysis
from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.analysis.forward.attention import check_attention_weights
from lightning_mllm.analysis.forward.prompts import Prompts
from lightning_mllm.analysis.picture_maps.measures import hide_blocks, read_words, see_prompt
from lightning_mllm.analysis.picture_maps.summary import (
    ANSWER,
    ATTENTION,
    HIDING,
    PATCHES,
    WORDS,
    summarise_picture_maps,
)
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation import KnownAnswers
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.statistics.picture_bootstrap import Bootstrap
from lightning_mllm.store.manifest import claim_folder_in_manifest
from lightning_mllm.store.sample_maps import (
    MapFolder,
    SampleMaps,
    ValueMap,
    choose_map_samples,
    make_word_map,
)
from lightning_mllm.types import Sample, Segment

MapName = Literal["words", "attention", "hiding"]
_MAPS: tuple[MapName, ...] = ("words", "attention", "hiding")


class PictureMaps(Analysis):
    """Writes words, attention and the effect of hiding, patch by patch, for some samples.

    Args:
        samples: For how many samples; they are drawn by their ids.
        maps: What is written: `words` of the logit lens, with the log-probability of the model's
            answer; `attention` from the last position of the prompt; `hiding`, the log-probability
            that the answer loses when a block of patches is hidden, 16 blocks a picture.
        bootstrap: How intervals are drawn.
        label: Name of the analysis and its folder, where one run has several of its class.

    Raises:
        ConfigError: No sample or no map is asked for, or a map twice.
    """

    default_name: ClassVar[str] = "picture_maps"

    def __init__(
        self,
        *,
        samples: int = 50,
        maps: Sequence[MapName] = _MAPS,
        bootstrap: Bootstrap = Bootstrap(),
        label: str = "",
    ) -> None:
        super().__init__(label=label)
        if samples < 1:
            raise ConfigError(f"PictureMaps.samples must be at least 1, not {samples}.")
        if not maps or len({*maps}) < len(maps) or not {*maps} <= {*_MAPS}:
            raise ConfigError(
                f"PictureMaps.maps is {list(maps)}; it can have {', '.join(_MAPS)}, each once."
            )
        self.samples, self.maps, self.bootstrap = samples, tuple(maps), bootstrap
        self._chosen: frozenset[str] | None = None
        self.reset()

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the maps."""
        return {"samples": self.samples, "maps": list(self.maps)}

    def check(self, samples: Iterable[Sample]) -> None:
        """Draw the samples; refuse data without images.

        Raises:
            ConfigError: No sample has an image.
        """
        with_images = (sample.id for sample in samples if sample.images)
        self._chosen = choose_map_samples(with_images, self.samples)
        if not self._chosen:
            raise ConfigError(
                f"{self.name} draws on pictures, but no sample has one. Use data with images."
            )

    def check_model(self, backbone: Backbone) -> None:
        """Refuse a model whose states or attention can't be read."""
        if "attention" in self.maps:
            check_attention_weights(backbone)
        _ = backbone.final_norm  # raises where it is not known

    def prepare(
        self,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path | None = None,
        source: Mapping[str, Any] | None = None,
        rank: int = 0,
        answers: KnownAnswers | None = None,
    ) -> None:
        """Get ready; see `Analysis.prepare`."""
        self.reset()
        self._tokenizer, self._source = tokenizer, source or {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            claim_folder_in_manifest(folder, self.making)
        self.found = MapFolder(folder)

    @torch.no_grad()
    def update(self, backbone: Backbone, batch: MultimodalBatch) -> None:
        """Write the maps of the samples of a batch that are drawn and have none yet."""
        self.check_model(backbone)
        for row, sample_id in enumerate(batch.sample_ids):
            drawn = self._chosen is None or sample_id in self._chosen
            if drawn and batch.image_counts[row] and sample_id not in self.found:
                self.found.write(self._measure(backbone, batch.take([row])))

    def merge(self) -> None:
        """Do nothing: each sample has a file of its own."""

    def compute(self) -> AnalysisResult:
        """Return the means over the samples."""
        return summarise_picture_maps(self.name, self.found.read(), self.making, self.bootstrap)

    def reset(self) -> None:
        """Forget all maps; those in a folder stay there."""
        self.found = MapFolder(None)

    def _measure(self, backbone: Backbone, batch: MultimodalBatch) -> SampleMaps:
        """Return the maps of one sample."""
        prompt = Prompts.of(backbone, batch)
        seen = see_prompt(backbone, prompt, attention="attention" in self.maps)
        layers = tuple(range(len(seen.states)))
        values, words = {}, {}
        if seen.attention is not None:
            values[ATTENTION] = ValueMap(_array(seen.attention), layers[:-1], "share of attention")
        if "hiding" in self.maps:
            lost = hide_blocks(backbone, prompt, seen)
            values[HIDING] = ValueMap(_array(lost[None]), (), "log-probability lost")
        if "words" in self.maps:
            ids, scores, answers = read_words(backbone, seen.states, seen.answer)
            decode, label = self.tokenizer.decode, "log-probability"
            words[WORDS] = make_word_map(_array(ids), _array(scores), decode, layers, label)
            values[ANSWER] = ValueMap(_array(answers), layers, label)
        image = prompt.batch.spans[Segment.IMAGE][0]
        sets = {}
        for name, segment in PATCHES.items():
            inside = prompt.batch.spans[segment][0][image]
            if segment is not Segment.IMAGE and inside.any():
                sets[name] = _array(inside)
        said = str(self.tokenizer.decode([seen.answer])).strip()
        probability = float(seen.logprobs[seen.answer].exp())
        notes = {"first token of the model's answer": f"{said} (probability {probability:.2f})"}
        notes["picture"] = batch.pictures[0]
        return SampleMaps(batch.sample_ids[0], values, words, notes, sets)


def _array(values: Tensor) -> Any:
    return values.detach().cpu().numpy()
