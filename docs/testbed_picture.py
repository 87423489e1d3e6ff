"""Draws docs/testbed.png: scenes with a question and its answer. Run it: `python docs/testbed_picture.py`."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lightning_mllm.testbed import Draw, QuestionType, ask, draw_image, draw_scene

TYPES = tuple(QuestionType)
SIDE, GAP, LINE = 256, 16, 18


def wrap(text: str, pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Break a text into lines of the width of a picture."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if pen.textlength(longer, font=font) > SIDE:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def main() -> None:
    """Draw the picture."""
    font = ImageFont.load_default(14)
    columns = len(TYPES) // 2
    height = SIDE + 4 * LINE + GAP
    canvas = Image.new("RGB", (columns * (SIDE + GAP) + GAP, 2 * height + GAP), "white")
    pen = ImageDraw.Draw(canvas)
    for number, type in enumerate(TYPES):
        tries = (draw_scene(f"docs/{type}/{attempt}", objects=(3, 5)) for attempt in range(20))
        scene, question = next(
            (scene, question) for scene in tries if (question := ask(type, scene, Draw("docs", scene.id))) is not None
        )
        left, top = GAP + number % columns * (SIDE + GAP), GAP + number // columns * height
        canvas.paste(draw_image(scene).resize((SIDE, SIDE), Image.Resampling.NEAREST), (left, top))
        lines = wrap(question.text, pen, font)
        for row, line in enumerate(lines):
            pen.text((left, top + SIDE + 4 + row * LINE), line, fill="black", font=font)
        pen.text((left, top + SIDE + 4 + len(lines) * LINE), question.answer, fill=(20, 110, 50), font=font)
    canvas.save(Path(__file__).parent / "testbed.png")


if __name__ == "__main__":
    main()
