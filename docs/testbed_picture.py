"""Draws docs/testbed.png: scenes, questions, and what the test-bed's model answers.

Run it: `python docs/testbed_picture.py`.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import AutoModelForImageTextToText, AutoProcessor

from lightning_mllm.testbed import Draw, QuestionType, Scene, ask, caption, checkpoint, draw_image, draw_scene

COLUMNS, ZOOM, GAP, LINE = 3, 5, 16, 17
SIDE, TEXT = 64 * ZOOM, 9 * LINE
RIGHT, WRONG = (20, 110, 50), (180, 30, 30)


class Model:
    """The instructed model, asked through its own chat template."""

    def __init__(self) -> None:
        self.processor = AutoProcessor.from_pretrained(checkpoint("instructed"))
        self.model = AutoModelForImageTextToText.from_pretrained(checkpoint("instructed"), dtype=torch.float32)

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
    """Return a question of each type with its answer, and the caption."""
    draw = Draw("picture", scene.id)
    asked = [question for type in QuestionType if (question := ask(type, scene, draw)) is not None]
    return [(question.text, question.answer) for question in asked]


def main() -> None:
    """Draw the picture."""
    model, font = Model(), ImageFont.load_default(13)
    scenes = islice((draw_scene(f"readme/{number}", objects=(3, 5)) for number in range(99)), COLUMNS)
    canvas = Image.new("RGB", (COLUMNS * (SIDE + GAP) + GAP, SIDE + TEXT + 2 * GAP), "white")
    pen = ImageDraw.Draw(canvas)
    for column, scene in enumerate(scenes):
        image = draw_image(scene)
        left = GAP + column * (SIDE + GAP)
        canvas.paste(image.resize((SIDE, SIDE), Image.Resampling.NEAREST), (left, GAP))
        top = SIDE + GAP + 6
        for question, expected in exchanges(scene):
            said = model.answer(image, question)
            pen.text((left, top), question, fill="black", font=font)
            shown = said if said == expected else f"{said} ({expected})"
            width = pen.textlength(shown, font=font)
            row = top if pen.textlength(question + "  ", font=font) + width <= SIDE else top + LINE
            pen.text((left + SIDE - width, row), shown, fill=RIGHT if said == expected else WRONG, font=font)
            top = row + LINE
        print(caption(scene), "\n ", model.answer(image, "Describe the picture from left to right."))
    canvas.save(Path(__file__).parent / "testbed.png")


if __name__ == "__main__":
    main()
