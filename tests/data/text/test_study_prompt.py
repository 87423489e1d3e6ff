"""The prompts of the information-flow study, and where question and options are in them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data import (
    LLAMA3_SYSTEM,
    SHORT_ANSWER,
    VICUNA_SYSTEM,
    Collator,
    ConversationPrompt,
    PlainPrompt,
)
from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.loading.batch import PaddingSide
from lightning_mllm.data.text.rendering import Renderer
from lightning_mllm.errors import DataError
from lightning_mllm.types import AnswerForms, Forms, Options, Sample, Segment, Turn
from tests.conftest import TinyBuilder
from tests.data.conftest import TEXT_ONLY, chat_sample, collate, decode, picture, tokens
from tests.data.text.test_hub_templates import hub_processor
from tests.support.command_line import CONFIGS

QUESTION = "Is the jar full or empty?"
VICUNA = ConversationPrompt(system=VICUNA_SYSTEM, instruction=SHORT_ANSWER, joint=" \n")
LLAMA3 = ConversationPrompt(system=LLAMA3_SYSTEM, instruction=SHORT_ANSWER, joint=" \n", cue=" \n")
HUB = {"llava-1.5": VICUNA, "v1.6-vicuna": VICUNA, "llama-3": LLAMA3}
USER = f"<image>\n{QUESTION} \n{SHORT_ANSWER}"

every_checkpoint = pytest.mark.parametrize("name", HUB)


def jar(question: str = QUESTION, answer: str = "empty", wrong: str = "full") -> Sample:
    turns = [Turn("user", question, images=1), Turn("assistant", answer)]
    return Sample(
        id="jar",
        images=[picture()],
        conversation=turns,
        kind="ChooseAttr",
        options=Options(answer, wrong),
    )


def rendered(processor: CheckpointProcessor, prompt: ConversationPrompt) -> str:
    return Renderer(processor).render(prompt.dialogue(jar(), (), 0)).text


@pytest.mark.parametrize("name", ["llava-1.5", "v1.6-vicuna"])
def test_on_vicuna_the_model_reads_what_it_reads_in_the_study(
    tiny_checkpoint: TinyBuilder, name: str
) -> None:
    processor = hub_processor(name, tiny_checkpoint)

    assert rendered(processor, VICUNA) == f"{VICUNA_SYSTEM} USER: {USER} ASSISTANT: empty</s>"
    batch = collate(Collator(processor, VICUNA), jar())
    assert decode(processor, batch, Segment.LAST) == ":"


def test_on_llama_3_it_does_too(tiny_checkpoint: TinyBuilder) -> None:
    """The hub's template puts one line break more before each text, so also before the system's."""
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    system, user, assistant = (header.format(role) for role in ("system", "user", "assistant"))
    behind = f"{LLAMA3_SYSTEM}<|eot_id|>{user}{USER}<|eot_id|>{assistant} \nempty<|eot_id|>"
    hub = hub_processor("llama-3", tiny_checkpoint)

    assert rendered(hub, LLAMA3) == f"{system}\n{behind}"
    once = "('\n' if message['role'] == 'user' else '') + content"
    hub.hf.chat_template = str(hub.chat_template).replace("'\n' + content", once)
    assert rendered(hub, LLAMA3) == f"{system}{behind}"
    batch = collate(Collator(hub, LLAMA3), jar())
    assert decode(hub, batch, Segment.LAST).endswith("\n")
    assert tokens(batch, 0).count(hub.tokenizer.bos_token_id) == 1


@every_checkpoint
@pytest.mark.parametrize("side", ["left", "right"])
def test_question_options_and_suffix_are_where_their_words_are(
    tiny_checkpoint: TinyBuilder, name: str, side: PaddingSide
) -> None:
    processor, prompt = hub_processor(name, tiny_checkpoint), HUB[name]

    batch = collate(Collator(processor, prompt, padding_side=side), TEXT_ONLY, jar())

    assert words(processor, batch, Segment.QUESTION) == QUESTION
    assert words(processor, batch, Segment.TRUE_OPTION) == "empty"
    assert words(processor, batch, Segment.FALSE_OPTION) == "full"
    assert words(processor, batch, Segment.QUESTION_REST).replace(" ", "") == "Isthejaror?"
    assert SHORT_ANSWER in words(processor, batch, Segment.SUFFIX)
    assert not batch.spans[Segment.TRUE_OPTION][0].any()
    assert torch.equal(batch.spans[Segment.QUESTION_REST][0], batch.spans[Segment.QUESTION][0])


def words(processor: CheckpointProcessor, batch: MultimodalBatch, segment: Segment) -> str:
    return decode(processor, batch, segment, row=1).strip()


@every_checkpoint
def test_between_question_and_last_there_is_the_suffix_alone(
    tiny_checkpoint: TinyBuilder, name: str
) -> None:
    processor = hub_processor(name, tiny_checkpoint)
    batch = collate(Collator(processor, HUB[name]), jar(), chat_sample(images=3))

    for row in range(2):
        question, suffix, last = (
            batch.spans[segment][row].nonzero().flatten().tolist()
            for segment in (Segment.QUESTION, Segment.SUFFIX, Segment.LAST)
        )
        assert suffix == list(range(question[-1] + 1, last[0]))


def test_without_a_question_there_is_no_suffix_and_no_option(
    processor: CheckpointProcessor,
) -> None:
    batch = collate(Collator(processor, PlainPrompt()), jar())

    for segment in (
        Segment.SUFFIX,
        Segment.TRUE_OPTION,
        Segment.FALSE_OPTION,
        Segment.QUESTION_REST,
    ):
        assert not batch.spans[segment].any()


def test_options_are_looked_for_in_the_last_question(processor: CheckpointProcessor) -> None:
    first = [Turn("user", "Is it red or blue?", images=1), Turn("assistant", "red")]
    sample = replace(
        jar(), conversation=[*first, Turn("user", "Blue or red?"), Turn("assistant", "red")]
    )
    batch = collate(Collator(processor, VICUNA), replace(sample, options=Options("red", "blue")))

    assert decode(processor, batch, Segment.FALSE_OPTION).strip() == "Blue"
    with pytest.raises(DataError, match="sample 'jar' does not name its false option 'full'"):
        collate(Collator(processor, VICUNA), replace(sample, options=Options("red", "full")))
    with pytest.raises(DataError, match="sample 'jar' does not name its true option 'it'"):
        Collator(processor, VICUNA).check_turns(replace(sample, options=Options("it", "red")))


@every_checkpoint
def test_answer_forms_are_the_tokens_that_stand_behind_the_prompt(
    tiny_checkpoint: TinyBuilder, name: str
) -> None:
    processor = hub_processor(name, tiny_checkpoint)
    collator = Collator(processor, HUB[name])

    (forms,) = collate(
        collator, jar(answer="black and white", question="Full or black and white?")
    ).answers

    assert forms is not None and forms.false is not None
    written = {"black and white": forms.true.lower, "Black and white": forms.true.capitalised}
    written |= {"full": forms.false.lower, "Full": forms.false.capitalised}
    for word, ids in written.items():
        batch = collate(
            collator,
            replace(
                jar(),
                options=None,
                conversation=[Turn("user", "What?", images=1), Turn("assistant", word)],
            ),
        )
        (behind,) = batch.input_ids[batch.spans[Segment.ANSWER]][None].tolist()
        assert tuple(behind[:-1]) == ids
        assert behind[-1] == batch.end_id


def test_only_samples_with_a_kind_have_answer_forms(processor: CheckpointProcessor) -> None:
    batch = collate(Collator(processor, VICUNA), chat_sample(), replace(jar(), options=None))

    assert batch.answers[0] is None
    assert isinstance(batch.answers[1], AnswerForms) and isinstance(batch.answers[1].true, Forms)
    assert batch.answers[1].false is None


def test_an_instruction_of_its_own_stays() -> None:
    turns = [
        Turn("user", "a", "b", images=1),
        Turn("assistant", "c"),
        Turn("user", "", images=1),
        Turn("assistant", "d"),
    ]
    dialogue = VICUNA.dialogue(Sample(id="x", images=[picture()] * 2, conversation=turns), (), 0)

    assert [turn.instruction for turn in dialogue.turns] == ["b", "", "", ""]


@pytest.mark.parametrize(
    ("files", "prompt"), [(["data/gqa"], VICUNA), (["data/gqa", "prompts/gqa_llama3"], LLAMA3)]
)
def test_the_configs_say_so(files: list[str], prompt: ConversationPrompt) -> None:
    config = yaml.safe_load(Path(CONFIGS / f"{files[-1]}.yaml").read_text())
    options = config["data"]["init_args"]["prompt"]

    assert ConversationPrompt(**options["init_args"]) == prompt
