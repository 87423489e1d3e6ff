"""Chat templates of the shape of the real checkpoints'."""

from __future__ import annotations

_TEXT = (
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
)


def _images(image: str) -> str:
    """Return Jinja that writes a placeholder per image."""
    return (
        "{% for part in message['content'] if part['type'] == 'image' %}" + image + "{% endfor %}"
    )


def _parts(image: str, text: str = "part['text']") -> str:
    """Return Jinja that writes images and texts in the order of the message."""
    return (
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
        + image
        + "{% elif part['type'] == 'text' %}{{ "
        + text
        + " }}{% endif %}{% endfor %}"
    )


def chatml_template(
    image: str, system: str = "", after: str = "\n", images_first: bool = False
) -> str:
    """Return the template of the families whose turns are `<|im_start|>role ... <|im_end|>`.

    Args:
        image: Placeholder of an image.
        system: Text of the system turn that is written where the dialogue has none.
        after: What stands behind a turn.
        images_first: Whether a message's images stand before its texts.
    """
    default = "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    return (
        "{% for message in messages %}"
        + (f"{default}{system}<|im_end|>{after}{{% endif %}}" if system else "")
        + "<|im_start|>{{ message['role'] }}\n"
        + (_images(image) + _TEXT if images_first else _parts(image))
        + f"<|im_end|>{after}"
        + "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def gemma_template(opening: str, closing: str, image: str) -> str:
    """Return Gemma's template: a system text begins the first user turn, texts are trimmed."""
    return (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{% set first = messages[0]['content'][0]['text'] + '\n\n' %}"
        "{% set turns = messages[1:] %}"
        "{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
        "{% for message in turns %}"
        "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
        f"{opening}{{{{ role + '\n' + (first if loop.first else '') }}}}"
        + _parts(image, "part['text'] | trim")
        + f"{closing}{{{{ '\n' }}}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{opening}{{{{ 'model\n' }}}}{{% endif %}}"
    )


CHAT_TEMPLATES: dict[str, str] = {
    "vicuna": (
        "{% for message in messages %}{% if message['role'] != 'system' %}{{ "
        "message['role'].upper() }}: {% endif %}"
        + _images("<image>\n")
        + _TEXT
        + " {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ "
        "message['role'] }}<|end_header_id|>\n\n"
        + _images("<image>\n")
        + _TEXT
        + "<|eot_id|>{% endfor %}"
        + "{% if add_generation_prompt %}"
        + "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
}
# before an answer stands "assistant " and a line break, in the prompt "assistant" and a line break
ONEVISION = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    + _images("<image>")
    + "{% for part in message['content'] if part['type'] == 'text' %}"
    "{{ '\n' + part['text'] }}{% endfor %}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GRANITE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
    + _parts("<image>\n")
    + "{{ '<|end_of_text|>' if message['role'] == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
IDEFICS = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    + _parts("<image>")
    + "{{ '<end_of_utterance>\n' }}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "[SYSTEM_PROMPT]"
    + _TEXT
    + "[/SYSTEM_PROMPT]{% elif message['role'] == 'user' %}[INST]"
    + _parts("[IMG]")
    + "[/INST]{% else %}"
    + _TEXT
    + "{{ eos_token }}{% endif %}{% endfor %}"
)
AYA = (
    "{{ bos_token }}{% for message in messages %}<|START_OF_TURN_TOKEN|>"
    "{{ {'user': '<|USER_TOKEN|>', 'assistant': '<|CHATBOT_TOKEN|>', 'system': '<|SYSTEM_TOKEN|>'}"
    "[message['role']] }}{% if message['role'] == 'assistant' %}<|START_RESPONSE|>{% endif %}"
    + _images("<image>")
    + _TEXT
    + "{% if message['role'] == 'assistant' %}<|END_RESPONSE|>{% endif %}<|END_OF_TURN_TOKEN|>"
    "{% endfor %}{% if add_generation_prompt %}"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>{% endif %}"
)
# the Hub's checkpoints have none; this writes what their processor makes of a picture and a text
PALIGEMMA = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    + _images("<image>")
    + "{{ bos_token }}"
    + _TEXT
    + "{{ '\n' }}{% else %}"
    + _TEXT
    + "{{ eos_token }}{% endif %}{% endfor %}"
)
GLM = (
    "[gMASK]<sop>{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
    + _parts("<|begin_of_image|><|image|><|end_of_image|>")
    + "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
PADDLE = (
    "<|begin_of_sentence|>{% for message in messages %}{% if message['role'] == 'user' %}User: "
    + _parts("<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>")
    + "\n{% elif message['role'] == 'assistant' %}Assistant:\n"
    + _TEXT
    + "</s>{% else %}"
    + _TEXT
    + "\n{% endif %}{% endfor %}{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
ARIA = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    + _parts("<fim_prefix><|img|><fim_suffix>")
    + "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
