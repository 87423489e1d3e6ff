"""The chat templates of the checkpoints on the hub, on tokenizers like those they come with."""

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lightning_mllm.data import (
    VICUNA_SYSTEM,
    ClassificationPrompt,
    Collator,
    ConversationPrompt,
    load_processor,
)
from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.text.prompts import Dialogue
from lightning_mllm.data.text.rendering import Renderer
from lightning_mllm.types import IGNORE_INDEX, Segment, Turn
from tests.conftest import TinyBuilder
from tests.data.conftest import NAMES, TEXT_ONLY, chat_sample, collate, decode, labelled, tokens
from tests.data.text.test_sentencepiece import llama_tokenizer

_IMAGES = "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
_TEXTS = "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"

LLAVA_15 = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}" + _IMAGES + "{{ '<image>\n' }}{% endfor %}"
    "{# Render all text next #}{% if message['role'] != 'assistant' %}"
    + _TEXTS
    + "{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}"
    + _TEXTS
    + "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
LLAVA_16_VICUNA = (  # writes a system text twice
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ message['content'][0]['text'] }}{% else %}"
    "{{ message['role'].upper() + ': '}}{% endif %}"
    + _IMAGES
    + "{{ '<image>\n' }}{% endfor %}"
    + _TEXTS
    + ""
    "{{ content['text'] + ' '}}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
LLAVA_16_MISTRAL = (  # its end of turn is a slip of the pen
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<<SYS>>\n' + message['content'][0]['text'] + '\n<</SYS>>\n\n' }}"
    "{% elif message['role'] == 'user' %}"
    "{{ '[INST] ' }}"
    + _IMAGES
    + "{{ '<image>\n' }}{% endfor %}"
    + _TEXTS
    + "{{ content['text'] }}{% endfor %}"
    "{{' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'][0]['text'] + '<\\\\s> '}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}"
    "{% endif %}{% endfor %}"
)
LLAVA_NEXT_LLAMA3 = (
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'}}"
    + _IMAGES
    + "{{ '<image>' }}{% endfor %}"
    + _TEXTS
    + "{{ '\n' + content['text'] + '<|eot_id|>' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
TEMPLATES = {
    "llava-1.5": LLAVA_15,
    "v1.6-vicuna": LLAVA_16_VICUNA,
    "v1.6-mistral": LLAVA_16_MISTRAL,
    "llama-3": LLAVA_NEXT_LLAMA3,
}
LLAMA3_SPECIAL = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<image>",
    "<pad>",
]
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


def llama3_tokenizer() -> PreTrainedTokenizerFast:
    """Byte pairs behind Llama 3's split, with one token each for two and for three line breaks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=LLAMA3_SPECIAL,
    )
    tokenizer.train_from_iterator(
        ["a\n\nb\n\n\nc three two user assistant Output:\n\n Bell pepper leaf"] * 20, trainer
    )
    bos = LLAMA3_SPECIAL[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token="<|eot_id|>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=8192,
    )


def hub_processor(template: str, tiny_checkpoint: TinyBuilder) -> CheckpointProcessor:
    """Make a processor with a template of the hub and a tokenizer like its own."""
    processor = load_processor(
        tiny_checkpoint("llava" if template == "llava-1.5" else "llava_next", "vicuna")
    )
    processor.hf.tokenizer = llama3_tokenizer() if template == "llama-3" else llama_tokenizer()
    number = processor.tokenizer.convert_tokens_to_ids("<image>")
    processor.config.image_token_id = processor.hf.image_token_id = number  # type: ignore[attr-defined]
    processor.hf.chat_template = TEMPLATES[template]
    return processor


@pytest.fixture(params=TEMPLATES)
def hub(request: pytest.FixtureRequest, tiny_checkpoint: TinyBuilder) -> CheckpointProcessor:
    return hub_processor(request.param, tiny_checkpoint)


def test_llama_3_reads_three_line_breaks_as_one_token() -> None:
    assert llama3_tokenizer().tokenize("\n\n\ntwo")[0] == "ĊĊĊ"


@pytest.mark.parametrize("system", [None, VICUNA_SYSTEM])
def test_a_question_and_its_spans(hub: CheckpointProcessor, system: str | None) -> None:
    prompt = ClassificationPrompt(system=system)
    collator = Collator(hub, prompt, NAMES)
    sample = labelled(label="Bell pepper leaf")

    batch, labels = collate(collator, sample), collator.label_set(sample)

    assert (
        decode(hub, batch, Segment.QUESTION).strip()
        == prompt.dialogue(sample, NAMES, 0).turns[0].text
    )
    assert decode(hub, batch, Segment.INSTRUCTION).strip() == prompt.instruction
    assert decode(hub, batch, Segment.SYSTEM).strip() == (system or "")
    assert batch.end_id == hub.tokenizer.eos_token_id
    for name, ids in zip(NAMES, labels.token_ids, strict=True):
        answer = collate(collator, labelled(label=name))
        assert tuple(answer.labels[answer.labels != IGNORE_INDEX].tolist()) == ids
        assert str(hub.tokenizer.decode([*ids[:-1]])).strip() == name
    assert tokens(batch, 0).count(hub.tokenizer.bos_token_id) == 1


def test_a_conversation_and_its_spans(hub: CheckpointProcessor) -> None:
    batch = collate(
        Collator(hub, ConversationPrompt(), padding_side="left"), chat_sample(images=3), TEXT_ONLY
    )

    answers = str(hub.tokenizer.decode(batch.labels[0][batch.labels[0] != IGNORE_INDEX]))
    end = hub.tokenizer.eos_token
    assert answers.replace(" ", "") == f"Red.{end}blue{end}"
    assert decode(hub, batch, Segment.QUESTION).startswith("Which colour? Rot, grün — oder 赤?")
    assert decode(hub, batch, Segment.QUESTION, row=1).strip() == "Is there any?"


@pytest.mark.parametrize("hub", ["llama-3"], indirect=True)
def test_llama_3_answers_begin_behind_the_prompts_line_breaks(hub: CheckpointProcessor) -> None:
    turns = (
        Turn("user", "One?"),
        Turn("assistant", "two"),
        Turn("user", "And?"),
        Turn("assistant", "three"),
    )

    rendered = Renderer(hub).render(Dialogue(turns))

    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    user, assistant = header.format("user"), header.format("assistant")
    assert rendered.text == (
        f"{user}\nOne?<|eot_id|>{assistant}two<|eot_id|>{user}\nAnd?<|eot_id|>{assistant}three<|eot_id|>"
    )
    assert [rendered.text[place.start : place.end] for place in rendered.answers] == [
        "two<|eot_id|>",
        "three<|eot_id|>",
    ]


@pytest.mark.parametrize("hub", ["v1.6-vicuna"], indirect=True)
def test_a_system_text_that_the_template_writes_twice_stands_once(hub: CheckpointProcessor) -> None:
    dialogue = Dialogue(
        (Turn("user", "What?", images=1), Turn("assistant", "two")), system="Be brief."
    )
    assert (
        Renderer(hub).render(dialogue).text == "Be brief. USER: <image>\nWhat? ASSISTANT: two</s>"
    )
