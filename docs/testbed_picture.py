"""Draws docs/testbed.png: scenes, questions, and what the test-bed's model answers.

One of the scenes is docs/scene.png, too.

Run it: `python docs/testbed_picture.py`.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import AutoModelForImageTextToText, AutoProcessor

from lightning_mllm.testbed import (
    Draw,
    QuestionType,
    Scene,
    ask,
    caption,
    checkpoint,
    draw_image,
    draw_scene,
)
from lightning_mllm.testbed.language.captions import CAPTION_REQUEST

COLUMNS, ZOOM, GAP, LINE = 3, 5, 16, 17
SIDE = 64 * ZOOM
BLACK, RIGHT, WRONG = (0, 0, 0), (20, 110, 50), (180, 30, 30)
Line = tuple[str, tuple[int, int, int]]  # text and colour


class Model:
    """The instructed model, asked through its own chat template."""

    def __init__(self) -> None:
        self.processor = AutoProcessor.from_pretrained(checkpoint("instructed"))
        self.model = AutoModelForImageTextToText.from_pretrained(
            checkpoint("instructed"), dtype=torch.float32
        )

    def answer(self, image: Image.Image, question: str) -> str:
        """Return the greedy answer."""
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
        text = self.processor.apply_chat_template([turn], add_generation_prompt=True)
        inputs = self.processor(images=[image], text=text, return_tensors="pt")
        tokens = self.model.generate(**inputs, max_new_tokens=60, do_sample=False)
        answer: str = self.processor.tokenizer.decode(
            tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return answer.strip()


def exchanges(scene: Scene) -> list[tuple[str, str]]:
    """Return a question of each type that the scene has one of, with its answer."""
    draw = Draw("picture", scene.id)
    asked = [question for type in QuestionType if (question := ask(type, scene, draw)) is not None]
    return [(question.text, question.answer) for question in asked]


def wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Break a text into lines of the width of a picture."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > SIDE:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def spoken(
    model: Model, scene: Scene, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> list[Line]:
    """Return the lines below a picture: questions and answers; behind a wrong one the right one."""
    image, lines = draw_image(scene), []
    for question, expected in exchanges(scene):
        said = model.answer(image, question)
        shown, colour = (
            (said, RIGHT) if said == expected else (f"{said} (right: {expected})", WRONG)
        )
        lines += [(line, BLACK) for line in wrap(question, font)] + [
            (line, colour) for line in wrap(shown, font)
        ]
    return lines


def main() -> None:
    """Draw the picture."""
    model, font = Model(), ImageFont.load_default(13)
    scenes = list(
        islice((draw_scene(f"readme/{number}", objects=(3, 5)) for number in range(99)), COLUMNS)
    )
    texts = [spoken(model, scene, font) for scene in scenes]
    height = SIDE + 3 * GAP + max(map(len, texts)) * LINE
    canvas = Image.new("RGB", (COLUMNS * (SIDE + GAP) + GAP, height), "white")
    pen = ImageDraw.Draw(canvas)
    for column, (scene, lines) in enumerate(zip(scenes, texts, strict=True)):
        left = GAP + column * (SIDE + GAP)
        canvas.paste(draw_image(scene).resize((SIDE, SIDE), Image.Resampling.NEAREST), (left, GAP))
        for row, (line, colour) in enumerate(lines):
            pen.text((left, SIDE + 2 * GAP + row * LINE), line, fill=colour, font=font)
        print(caption(scene), "\n ", model.answer(draw_image(scene), CAPTION_REQUEST))
    canvas.save(Path(__file__).parent / "testbed.png")
    alone = draw_image(scenes[1]).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    alone.save(Path(__file__).parent / "scene.png")


if __name__ == "__main__":
    main()
