"""What the package promises for a model: each function asserts the laws of one feature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_mllm.analysis import (
    MIR,
    ActivatedWeights,
    Alignment,
    Analysis,
    AnswerLens,
    Block,
    Case,
    ComputationSkipping,
    Drop,
    InformationFlow,
    MeanStates,
    Patch,
    PatchCase,
    PatchKind,
    PatchSource,
    PatchWords,
    ReferenceEngine,
    ReferencePatching,
    Skip,
    SuffixEngine,
    SuffixPatching,
    TokenDropping,
    TokenSets,
    Vocabulary,
    Window,
    build_bank,
    dropping,
    patching,
    read_patch_words,
    steering,
)
from lightning_mllm.analysis.forward.attention import QueryRows, observe_attention
from lightning_mllm.analysis.forward.float32_head import next_token_head_logits
from lightning_mllm.analysis.forward.hidden_keys import HiddenKeys
from lightning_mllm.analysis.knockout.mask import mask_keys
from lightning_mllm.analysis.steering.vector import vector_width
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data.images.files import open_image_file
from lightning_mllm.data.images.geometry import apply_geometry
from lightning_mllm.data.text.special_tokens import needs_special_bos
from lightning_mllm.evaluation import Generation, Likelihood
from lightning_mllm.evaluation.decoding import decode_answers
from lightning_mllm.evaluation.prompt_pass import PromptPass
from lightning_mllm.models import freeze
from lightning_mllm.models.backbone import Backbone, Part
from lightning_mllm.models.hooks import hook_before_call, hook_inputs, hook_outputs
from lightning_mllm.models.layers import decoder_layers, run_layers_uncompiled
from lightning_mllm.models.loss import answer_loss
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.probing import FeatureCache, Point, extract
from lightning_mllm.trainer import Trainer
from lightning_mllm.types import IGNORE_INDEX, Segment
from tests.families.checkpoints import BoxedShapes, Colours, Shapes, TinyModel
from tests.support.loaded import load_copy

BY_REFERENCE = "reference"  # what a cell says where the fast engine gives way to the exact one


class Feature(NamedTuple):
    """One column of the table.

    Attributes:
        check: Asserts the laws; returns what the cell says besides "yes".
        fast: Whether `make test` runs it.
    """

    check: Callable[[TinyModel], str | None]
    fast: bool


def check_inputs(tiny: TinyModel) -> None:
    """Ids, pixels and logits are those of the family's own processor and model."""
    backbone = tiny.load(tiny.double)
    for side in ("right", "left"):
        data = Shapes(checkpoint=tiny.path, eval_batch_size=4, padding_side=side)
        batch = next(iter(data.plain_dataloader("test")))
        with torch.no_grad():
            ours = backbone.model(**batch.model_inputs()).logits
        for row in range(len(batch)):
            own = _ask_the_familys_processor(data, row)
            real = batch.attention_mask[row].bool()
            prompt = len(own["input_ids"][0])
            assert own["input_ids"][0].tolist() == batch.input_ids[row][real][:prompt].tolist()
            pixels = batch.images[row]["pixel_values"]
            assert torch.equal(own["pixel_values"].to(pixels.dtype), pixels)
            with torch.no_grad():
                logits = backbone.model(**_cast(own, tiny.double)).logits[0]
            off = float((logits - ours[row][real][:prompt]).abs().max())
            assert off <= tiny.tolerance, f"logits are off by {off:.1e}"


def check_training(tiny: TinyModel) -> None:
    """A step of FT-Proj moves all that is trained, and nothing else by a bit."""
    module = MLLMModule(
        tiny.path,
        policy=freeze.ProjectorOnly(),
        scorers=[Generation(max_new_tokens=2)],
        attention=tiny.attention,
    )
    module.configure_model()
    before = _copy_weights(module.backbone)
    _trainer(tiny, max_steps=2).fit(module, datamodule=_colours(tiny))
    moved = _find_moved(before, module.backbone)
    assert moved == set(module.freeze_report.trainable_names)
    parts = {module.backbone.part_of(name) for name in moved}
    assert parts == {Part.PROJECTOR}


def check_idle(tiny: TinyModel) -> None:
    """Idle parameters are those of the tower that no gradient reaches."""
    backbone = tiny.load()
    for _, parameter in backbone.parameters():
        parameter.requires_grad_(True)
    answer_loss(backbone, tiny.batch).total.backward()
    unreached = {name for name, each in backbone.parameters(Part.VISION) if each.grad is None}
    assert backbone.idle_parameters() == unreached


def check_lora(tiny: TinyModel) -> None:
    """LoRA makes adapters of the LLM trainable and nothing else."""
    backbone = tiny.load()
    names = freeze.Lora(rank=2).apply(backbone).trainable_names
    assert names
    assert {backbone.part_of(name) for name in names} == {Part.LLM_LORA}


def check_generation(tiny: TinyModel) -> None:
    """Greedy answers of a padded batch are those of the model's own `generate`, one by one."""
    backbone = tiny.load()
    data = Shapes(checkpoint=tiny.path, eval_batch_size=4)
    batch = next(iter(data.plain_dataloader("test")))
    ours = decode_answers(PromptPass(backbone.model, batch), max_new_tokens=4)
    shared = PromptPass(backbone.model, batch, with_answers=True)
    assert shared.with_answers == (tiny.name not in ("gemma3_narrow", "qwen3_5"))
    for _ in range(2):  # what is decoded leaves no trace
        assert torch.equal(decode_answers(shared, max_new_tokens=4), ours)
    backbone.model.generation_config.eos_token_id = batch.end_id
    for row in range(len(batch)):
        own = _ask_the_familys_processor(data, row, prompt_only=True)
        given = own["input_ids"].shape[1]
        generate: Any = backbone.model.generate
        expected = generate(**own, max_new_tokens=4, do_sample=False)[0, given:].tolist()
        assert ours[row, : len(expected)].tolist() == expected
    module = MLLMModule(
        tiny.path,
        policy=freeze.ZeroShot(),
        scorers=[Generation(max_new_tokens=2)],
        attention=tiny.attention,
    )
    _trainer(tiny).test(module, datamodule=_colours(tiny), verbose=False)


def check_likelihood(tiny: TinyModel) -> None:
    """Packed label scores are those of one forward per label, after the loss' own pass too."""
    backbone, data = tiny.load(), _colours(tiny)
    batch = next(iter(data.plain_dataloader("test"))).take(range(3))
    assert data.label_set is not None
    scores = Likelihood().predict(backbone.model, None, batch, data.label_set).scores  # type: ignore[arg-type]
    assert scores is not None
    samples = {sample.id: sample for sample in data.samples["test"]}
    for column, name in enumerate(data.label_set.names):
        labelled = [(0, replace(samples[each], label=name)) for each in batch.sample_ids]
        expected = _score_answers(backbone, data.eval_collator(labelled))
        torch.testing.assert_close(scores[:, column], expected, rtol=0, atol=5e-5)
    asked = PromptPass(backbone.model, batch, with_answers=True)
    assert asked.with_answers
    with torch.no_grad():
        known = answer_loss(backbone, batch, hidden=asked.hidden).total
        torch.testing.assert_close(known, answer_loss(backbone, batch).total)
    after = Likelihood().classify(asked, tiny.tokenizer, data.label_set).scores
    torch.testing.assert_close(after, scores, rtol=0, atol=5e-5)


def check_probes(tiny: TinyModel) -> None:
    """Features are taken at every place; those after the projector enter the LLM, bit for bit."""
    backbone, data = tiny.load(), _colours(tiny)
    batch = next(iter(data.plain_dataloader("test")))
    fed: list[Tensor] = []

    def keep(arguments: dict[str, Any]) -> None:
        fed.append(arguments["inputs_embeds"].detach())

    with torch.no_grad(), hook_before_call(backbone.decoder, keep):
        run_layers_uncompiled(backbone, batch)
        features = torch.cat([each.tokens for each in backbone.encode_images(batch.images)])
    assert torch.equal(fed[0][batch.spans[Segment.IMAGE]], features)
    points = [Point("tower", 1), Point("pre"), Point("post")]
    points += [Point("image", 1), Point("text", 1), Point("last", 1)]
    assert data.label_set is not None
    found = extract(backbone, [batch], points, data.label_set.names)
    assert all(len(each.features) == len(batch) for each in found.values())


def check_cache(tiny: TinyModel) -> None:
    """What the cache has gives the same features again, and those of the tower but for rounding."""
    backbone, data = tiny.load(), _colours(tiny)
    freeze.ProjectorOnly().apply(backbone)
    batches = [next(iter(data.plain_dataloader("test")))]
    assert data.label_set is not None
    names, points = data.label_set.names, [Point("post")]
    cache = FeatureCache(tiny.scratch / f"cache-{tiny.name}")
    (without,) = extract(backbone, batches, points, names).values()
    (first,) = extract(backbone, batches, points, names, cache=cache).values()
    (second,) = extract(backbone, batches, points, names, cache=cache).values()
    assert torch.equal(first.features, second.features)
    torch.testing.assert_close(first.features, without.features, rtol=1e-2, atol=5e-2)


def check_knockout(tiny: TinyModel) -> str | None:
    """The fast engine says what full forwards say; blocking nothing changes nothing."""
    backbone, window = tiny.load(tiny.double), Window(1, 0, 2)
    blocks = ("image->last", "question->last", "image->question", "last->last", "question->image")
    cases = [Case(Block.parse(block), window) for block in blocks]
    exact = ReferenceEngine().run(backbone, tiny.batch, cases)
    fast = SuffixEngine().run(backbone, tiny.batch, cases)
    off = max(1e-9, tiny.tolerance)
    torch.testing.assert_close(fast.logprobs, exact.logprobs, rtol=0, atol=off)
    prompts = tiny.batch.prompts()
    with torch.no_grad():
        own = backbone.model(**prompts.model_inputs()).logits[:, -1].log_softmax(-1)
    clean = own.gather(1, exact.ids)[:, None].expand_as(exact.clean_logprobs)
    torch.testing.assert_close(exact.clean_logprobs, clean, rtol=0, atol=off)
    nothing = [Case(Block.parse("last->question"), window)]
    if backbone.family.sees != "prompt whole":
        idle = ReferenceEngine().run(backbone, tiny.batch, nothing)
        assert torch.equal(idle.logprobs, idle.clean_logprobs)
    return None if fast.engine == SuffixEngine.name else BY_REFERENCE


def check_attention(tiny: TinyModel) -> None:
    """Weights in a padded batch are eager's of each sample alone, in all layers."""
    own, eager = tiny.load(tiny.double), load_copy(tiny.path, dtype=tiny.double, attention="eager")
    limit = 1e-5 if tiny.tolerance >= 1e-4 else 1e-6  # some steps in float32; eager's softmax
    for batch in (tiny.batch, tiny.batch.prompts()):
        real, found = batch.attention_mask.bool(), dict[int, Tensor]()
        rows = QueryRows.of(real)
        with torch.no_grad(), observe_attention(own, rows, found.__setitem__):
            run_layers_uncompiled(own, batch)
        for row in range(len(batch)):
            index = real[row].nonzero().T
            alone = batch.take([row]).gather(index, torch.ones_like(index, dtype=torch.bool))
            with torch.no_grad():
                output = eager.model(**alone.model_inputs(), output_attentions=True)
            for layer, expected in enumerate(output.attentions):
                weights = found[layer][row][:, rows.valid[row]][..., real[row]]
                off = float((weights - expected[0]).abs().max())
                assert off <= limit, f"weights of layer {layer} are off by {off:.1e}"


def check_boxes(tiny: TinyModel) -> None:
    """Blocking what a box shows runs."""
    blocks = ["image object->question", "image random->question"]
    _analyse(tiny, InformationFlow(blocks=blocks, correct_only=False), BoxedShapes)


def check_patching(tiny: TinyModel) -> str | None:
    """The fast engine says what full forwards say; all positions give the source's logits."""
    backbone, other = tiny.load(tiny.double), _with_other_pictures(tiny.batch)
    last = len(decoder_layers(backbone)) - 1
    whole = Patch.parse("text+image @ residual")
    source = PatchSource.of(backbone, other)
    with patching(backbone, tiny.batch.prompts(), source, whole, Window(last, last, last + 1)):
        inputs = tiny.batch.prompts().model_inputs()
        patched = backbone.model.forward(**inputs, use_cache=False).logits[:, -1]
    off = max(1e-9, tiny.tolerance)
    torch.testing.assert_close(patched.to(source.logits.dtype), source.logits, rtol=0, atol=off)
    return _patch(
        tiny, backbone, [f"{each} @ residual" for each in ("image", "question", "last")], layer=1
    )


def check_patching_outputs(tiny: TinyModel) -> str | None:
    """The same of what attention, heads and FFN return; a run patched with itself stays."""
    backbone, prompts = tiny.load(tiny.double), tiny.batch.prompts()
    texts = ("image @ attention", "question @ ffn", "last @ head[0.0]")
    source = PatchSource.of(backbone, tiny.batch, tuple(PatchKind))
    with torch.no_grad():
        before = backbone.model.forward(**prompts.model_inputs(), use_cache=False).logits
        for text in texts:
            with patching(backbone, prompts, source, Patch.parse(text), Window(1, 0, 2)):
                after = backbone.model.forward(**prompts.model_inputs(), use_cache=False).logits
            torch.testing.assert_close(after, before, rtol=0, atol=tiny.tolerance)
    return _patch(tiny, backbone, texts, layer=0)


def check_lens(tiny: TinyModel) -> None:
    """After the last layer the lens reads the model's own logits."""
    backbone, leaving = tiny.load(tiny.double), list[Tensor]()
    last = {0: decoder_layers(backbone)[-1]}
    with torch.no_grad(), hook_outputs(last, lambda _, state: leaving.append(state)):
        own = backbone.model(**tiny.batch.model_inputs()).logits
        read = next_token_head_logits(backbone, leaving[0])
    real = tiny.batch.attention_mask.bool()
    torch.testing.assert_close(read[real], own[real].to(read.dtype), rtol=0, atol=1e-4)
    _analyse(tiny, AnswerLens(correct_only=False))


def check_vocabulary(tiny: TinyModel) -> None:
    """Reading visual tokens as words runs."""
    _analyse(tiny, Vocabulary())


def check_patch_words(tiny: TinyModel) -> None:
    """Patches say behind the last layer what the model's own head says there; a bank is built."""
    backbone, batch = tiny.load(), tiny.batch
    depth = len(decoder_layers(backbone))
    with torch.no_grad():
        own = backbone.model(**batch.model_inputs()).logits.float().softmax(-1)
    patches = batch.spans[Segment.IMAGE] & ~batch.spans[Segment.IMAGE_NEWLINE]
    for row, reading in enumerate(
        read_patch_words(backbone, tiny.tokenizer, batch, layers=[depth], top=1)
    ):
        values = torch.from_numpy(reading.values[0])
        expected = own[row][patches[row]].topk(1).values
        torch.testing.assert_close(values, expected, rtol=1e-3, atol=1e-4)
    folder = tiny.scratch / f"bank-{tiny.name}"
    build_bank(backbone, tiny.tokenizer, [f"a {each} shape is here" for each in "xyz"], folder)
    analysis = PatchWords(bank=str(folder))
    analysis.check(Shapes(checkpoint=tiny.path).load("test"))
    _analyse(tiny, analysis)


def check_alignment(tiny: TinyModel) -> None:
    """Comparing image and text in the residual stream runs, and noise stands for any picture."""
    backbone, vectors = tiny.load(), []
    analysis = Alignment(states=["residual"], noise=True)
    for batch in (tiny.batch, _with_other_pictures(tiny.batch)):
        masks = TokenSets().of(batch).unbind(1)
        measured = analysis.measure(backbone, batch, torch.stack(masks, dim=1))
        vectors.append(measured["noise vectors"])
    torch.testing.assert_close(*vectors, rtol=0, atol=1e-5)
    _analyse(tiny, Alignment(states=["residual"]))


def check_alignment_inside(tiny: TinyModel) -> None:
    """Comparing image and text inside the layers runs."""
    _analyse(tiny, Alignment(states=["residual", "SA", "FC2"]))


def check_subnetworks(tiny: TinyModel) -> None:
    """Calibrating each layer after pruning those before runs."""
    _analyse(tiny, ActivatedWeights(samples=3))


def check_subnetworks_at_once(tiny: TinyModel) -> None:
    """Calibrating all layers in one pass runs."""
    _analyse(tiny, ActivatedWeights(samples=3, sequential=False, context="full"))


def check_skipping_ffn(tiny: TinyModel) -> None:
    """Skipping the FFN runs."""
    _skip(tiny, "ffn", Skip())


def check_skipping_layers(tiny: TinyModel) -> None:
    """Skipping whole layers runs."""
    _skip(tiny, "block", Skip(visible=False))


def check_skipping_visibly(tiny: TinyModel) -> None:
    """Skipping attention at tokens that others can attend to runs."""
    _skip(tiny, "attention", Skip(visible=True))


def check_steering(tiny: TinyModel) -> None:
    """A vector everywhere is a plain hook, 0 times it nothing; a cache changes no answer."""
    backbone, prompts = tiny.load(), tiny.batch.prompts()
    inputs, layer = prompts.model_inputs(), decoder_layers(backbone)[1]
    vector = torch.linspace(-1, 1, vector_width(backbone))
    with torch.no_grad():
        own = backbone.model(**inputs).logits
        with steering(backbone, prompts, vector, "image+text", [1], scale=0.0):
            assert torch.equal(backbone.model(**inputs).logits, own)
        handle = layer.register_forward_pre_hook(
            lambda _, positional: (positional[0] + vector, *positional[1:])
        )
        expected = backbone.model(**inputs).logits
        handle.remove()
        with steering(backbone, prompts, vector, "image+text", [1]):
            found = backbone.model(**inputs).logits
        real = prompts.attention_mask.bool()
        assert torch.equal(found[real], expected[real])
        assert not torch.equal(found[real], own[real])
    with steering(backbone, prompts, 3 * vector, "image", [0, 1]):
        greedy = decode_answers(PromptPass(backbone.model, prompts), max_new_tokens=3)
        first = backbone.model(**inputs, use_cache=False).logits[:, -1].argmax(-1)
        assert torch.equal(greedy[:, 0], first)
    _analyse(tiny, MeanStates(segments=["image", "last"]))


def check_dropping(tiny: TinyModel) -> None:
    """Dropping is hiding from all others, from a layer on; dropping nothing changes no answer."""
    backbone = tiny.load(tiny.double)
    layer = len(decoder_layers(backbone)) - 1
    drop, prompts = Drop(layer=layer), tiny.batch.prompts()
    inputs, image = prompts.model_inputs(), prompts.spans[Segment.IMAGE]
    last, around = {0: decoder_layers(backbone)[layer]}, list[Tensor]()
    with (
        torch.no_grad(),
        dropping(backbone, prompts, drop),
        hook_inputs(last, lambda _, state: around.append(state)),
        hook_outputs(last, lambda _, state: around.append(state)),
    ):
        ours = backbone.model(**inputs).logits
    gone = image & (around[0] == around[1]).all(-1)
    assert torch.equal(gone.sum(1), image.sum(1) - (image.sum(1) / 2).round().long())
    kept = prompts.attention_mask.bool() & ~gone
    with (
        torch.no_grad(),
        mask_keys(backbone, [HiddenKeys(gone, kept)], Window(1, layer, layer + 1)),
    ):
        theirs = backbone.model(**inputs).logits
    torch.testing.assert_close(ours[kept], theirs[kept], rtol=0, atol=max(1e-9, tiny.tolerance))
    answers = decode_answers(PromptPass(backbone.model, prompts), 3)
    with dropping(backbone, prompts, Drop(layer=layer, share=0.0)):
        assert torch.equal(decode_answers(PromptPass(backbone.model, prompts), 3), answers)
    _analyse(tiny, TokenDropping(drops=[drop, Drop(layer=layer, share=1.0)], repetitions=0))


def check_modality_gap(tiny: TinyModel) -> None:
    """The distance between visual and textual tokens is measured."""
    _analyse(tiny, MIR())


def check_export(tiny: TinyModel) -> None:
    """The exported folder opens with equal weights, inputs and logits."""
    module = MLLMModule(tiny.path, policy=freeze.ProjectorOnly(), attention=tiny.attention)
    output = str(tiny.scratch / f"export-{tiny.name}")
    _trainer(tiny).export(module, output=output)
    again = TinyModel(tiny.name, output, tiny.scratch)
    weights = dict(again.load().parameters())
    for name, parameter in module.backbone.parameters():
        assert torch.equal(parameter, weights[name]), name
    assert again.batch.input_ids.equal(tiny.batch.input_ids)
    for ours, theirs in zip(again.batch.images, tiny.batch.images, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with torch.no_grad():
        logits = [each.load().model(**each.batch.model_inputs()).logits for each in (tiny, again)]
    assert torch.equal(*logits)


FEATURES: dict[str, Feature] = {
    "inputs": Feature(check_inputs, fast=True),
    "FT-Proj": Feature(check_training, fast=True),
    "idle": Feature(check_idle, fast=False),
    "LoRA": Feature(check_lora, fast=False),
    "export": Feature(check_export, fast=False),
    "generation": Feature(check_generation, fast=False),
    "likelihood": Feature(check_likelihood, fast=True),
    "probes": Feature(check_probes, fast=True),
    "cache": Feature(check_cache, fast=False),
    "knockout": Feature(check_knockout, fast=True),
    "attention": Feature(check_attention, fast=True),
    "boxes": Feature(check_boxes, fast=False),
    "patching": Feature(check_patching, fast=False),
    "patch outputs": Feature(check_patching_outputs, fast=False),
    "lens": Feature(check_lens, fast=False),
    "vocabulary": Feature(check_vocabulary, fast=False),
    "patch words": Feature(check_patch_words, fast=False),
    "alignment": Feature(check_alignment, fast=False),
    "inside layers": Feature(check_alignment_inside, fast=False),
    "sub-networks": Feature(check_subnetworks, fast=False),
    "in one pass": Feature(check_subnetworks_at_once, fast=False),
    "skip FFN": Feature(check_skipping_ffn, fast=False),
    "skip layers": Feature(check_skipping_layers, fast=False),
    "skip visibly": Feature(check_skipping_visibly, fast=False),
    "steering": Feature(check_steering, fast=False),
    "dropping": Feature(check_dropping, fast=False),
    "MIR": Feature(check_modality_gap, fast=False),
}


def _patch(tiny: TinyModel, backbone: Backbone, texts: Sequence[str], *, layer: int) -> str | None:
    """Patch one picture's states into another's run, in both ways."""
    window = Window(layer, layer, layer + 1)
    cases = [PatchCase(Patch.parse(text), window) for text in texts]
    clean, corrupted = tiny.batch, _with_other_pictures(tiny.batch)
    ids = torch.arange(5, 9).expand(len(clean), -1)
    exact, fast = (
        engine.run(backbone, clean, corrupted, cases, ids)
        for engine in (ReferencePatching(), SuffixPatching())
    )
    off = max(1e-9, tiny.tolerance)
    torch.testing.assert_close(fast.logprobs, exact.logprobs, rtol=0, atol=off)
    assert not torch.equal(exact.logprobs[:, :, 0], exact.base)
    return None if fast.engine == SuffixPatching.name else BY_REFERENCE


def _with_other_pictures(batch: MultimodalBatch) -> MultimodalBatch:
    """The same text about other pixels of the same shapes."""
    images = []
    for image in batch.images:
        images.append({**image, "pixel_values": image["pixel_values"].flip(0).neg()})
    return replace(batch, images=tuple(images))


def _ask_the_familys_processor(
    data: Shapes, row: int, *, prompt_only: bool = False
) -> dict[str, Any]:
    """What the family's own processor makes of the conversation of a sample."""
    processor: Any = data.processor
    sample = data.samples["test"][row]
    collator = data.eval_collator
    dialogue = collator.prompt.dialogue(sample, collator.label_names, 0)
    rendered = collator.renderer.render(dialogue)
    text, call = rendered.text, processor.hf
    images = []
    for image in sample.images:
        opened = open_image_file(image, sample.id)
        images.append(apply_geometry(opened, collator.geometry, processor.image_processor))
    if prompt_only or processor.family.sees == "prompt whole":
        text = text[: rendered.answers[-1].start]
    if processor.family.sees == "prompt whole":  # its processor writes all but the words
        for token in (processor.placeholder, processor.tokenizer.bos_token):
            text = text.replace(token, "")
        text = text.strip()
        return dict(call(text=[text], images=images, return_tensors="pt"))
    bos = needs_special_bos(processor.tokenizer, text)
    return dict(call(text=[text], images=images, return_tensors="pt", add_special_tokens=bos))


def _cast(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in inputs.items()
    }


def _score_answers(backbone: Backbone, batch: MultimodalBatch) -> Tensor:
    """The log-probability of each sample's answer, by the model's own forward."""
    with torch.no_grad():
        logits = backbone.model(**batch.model_inputs()).logits
    expected = batch.labels[:, 1:]
    chosen = logits.float().log_softmax(-1)[:, :-1]
    chosen = chosen.gather(-1, expected.clamp(min=0)[..., None])[..., 0]
    scores: Tensor = (chosen * (expected != IGNORE_INDEX)).sum(1)
    return scores


def _analyse(tiny: TinyModel, analysis: Analysis, data: type[Shapes] = Shapes) -> None:
    backbone = tiny.load()
    analysis.prepare(tiny.tokenizer, None)
    for batch in tiny.batches(data):
        analysis.update(backbone, batch)
    assert analysis.compute().n_samples > 0


def _skip(tiny: TinyModel, computation: Any, skip: Skip) -> None:
    grid: dict[str, Any] = {"shares": [0.0, 0.5], "starts": [0], "repetitions": 0}
    _analyse(tiny, ComputationSkipping(skip=skip, computations=[computation], **grid))


def _colours(tiny: TinyModel) -> Colours:
    data = Colours(checkpoint=tiny.path, batch_size=4, eval_batch_size=4)
    data.setup("fit")
    return data


def _trainer(tiny: TinyModel, **options: Any) -> Trainer:
    return Trainer(
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=str(tiny.scratch),
        accelerator="cpu",
        limit_val_batches=1,
        num_sanity_val_steps=0,
        **options,
    )


def _copy_weights(backbone: Backbone) -> dict[str, Tensor]:
    return {name: each.detach().clone() for name, each in backbone.parameters()}


def _find_moved(before: dict[str, Tensor], backbone: Backbone) -> set[str]:
    now = dict(backbone.parameters())
    return {name for name, value in before.items() if not torch.equal(value, now[name])}
