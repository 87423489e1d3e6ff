"""Gives a language model's chat template a place for pictures."""

from __future__ import annotations

IMAGE_TOKEN = "<image>"

# A picture before the text has a line of its own, as in LLaVA-1.5; one in mid-sentence has not.
_FLATTEN = """{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message['content'] is string -%}
{%- set flat.messages = flat.messages + [message] -%}
{%- else -%}
{%- set written = namespace(text='') -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{%- set written.text = written.text + IMAGE + ('' if written.wrote_text else '\\n') -%}
{%- elif part['type'] == 'text' -%}
{%- set written.text = written.text + part['text'] -%}
{%- set written.wrote_text = true -%}
{%- endif -%}
{%- endfor -%}
{%- set flat.messages = flat.messages + [dict(message, content=written.text)] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
""".replace("IMAGE", repr(IMAGE_TOKEN))


def add_place_for_images(template: str) -> str:
    """Return a chat template that takes messages of texts and images, and plain strings as before.

    A message of parts becomes the one string that the language model's own template expects, with
    `<image>` where an image stands.

    Args:
        template: Template of a language model, in Jinja.
    """
    return _FLATTEN + template
