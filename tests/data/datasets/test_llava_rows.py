"""What is in a row is taken, or the row is refused by name; what is not read is said."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_mllm.data import LlavaJson, load_processor
from lightning_mllm.data.loading import datamodule as base_module
from lightning_mllm.errors import CheckpointError, DataError
from lightning_mllm.types import Segment, Turn
from tests.data.conftest import collate, decode
from tests.data.datasets.test_llava_json import Row, images, load, row, write
from tests.data.text.test_rendering import CHATML

__all__ = ["images"]  # a fixture

TURNS = [Turn("user", "Which?", images=1), Turn("assistant", "two")]


def says(*turns: tuple[str, object], **others: object) -> Row:
    """Write a row with one image in the other common format."""
    return {
        "id": "a",
        "image": "a.png",
        "messages": [{"role": r, "content": c} for r, c in turns],
        **others,
    }


def test_rows_become_turns(images: Path) -> None:
    rows = [
        row("a", ["a.png", "sub/b.png"], "Both? <image>\n<image>", " yes ", "Sure?", "yes"),
        row("", None, "x", "y") | {"id": 7},
    ]

    multi, text = load(images, rows)

    assert multi.images == [images / "a.png", images / "sub" / "b.png"]
    assert multi.conversation == [
        Turn("user", "Both? \n", images=2, places=(6, 7)),
        Turn("assistant", "yes"),
        Turn("user", "Sure?"),
        Turn("assistant", "yes"),
    ]
    assert text.id == "7"
    assert not text.images


def test_images_in_a_text_keep_their_place(images: Path) -> None:
    (sample,) = load(
        images, [row("a", ["a.png", "a.png"], "<image> Is this older than <image>?", "no")]
    )

    assert sample.conversation[0] == Turn("user", "Is this older than ?", images=2, places=(0, 19))


def test_parts_count_images_over_all_turns(images: Path) -> None:
    turns = [
        (role, content)
        for k in (0, 1)
        for role, content in (("user", [{**IMAGE, "index": k}]), ("assistant", "x"))
    ]

    (sample,) = load(images, [says(*turns, image=None) | {"images": ["a.png", "sub/b.png"]}])

    assert [path.name for path in sample.images] == ["a.png", "b.png"]
    assert [turn.images for turn in sample.conversation] == [1, 0, 1, 0]


def test_a_row_may_name_the_kind_of_its_question(images: Path) -> None:
    asked, plain = load(images, [row("a") | {"kind": "colour"}, row("b")])

    assert (asked.kind, plain.kind) == ("colour", None)


IMAGE: dict[str, Any] = {"type": "image"}
WHICH: dict[str, Any] = {"type": "text", "text": "Which?"}
SAME: dict[str, Row] = {
    "LLaVA": row("a", "a.png", "<image>\nWhich?", "two"),
    "images": {**row("a", None, "<image>\nWhich?", "two"), "images": ["a.png"]},
    "messages": says(("user", "<image>\nWhich?"), ("assistant", "two")),
    "human in messages": says(("human", "<image>Which?"), ("gpt", "two")),
    "user and assistant": {
        "image": "a.png",
        "conversations": [
            {"from": "user", "value": "<image>Which?"},
            {"from": "assistant", "value": "two"},
        ],
    },
    "parts": says(("user", [IMAGE, WHICH]), ("assistant", [{"type": "text", "text": "two"}])),
    "parts of one schema": says(
        ("user", [{**IMAGE, "index": 0, "text": None}, {**WHICH, "index": None}]),
        ("assistant", "two"),
    ),
    "parts with paths": says(
        ("user", [{**IMAGE, "image": "a.png"}, WHICH]), ("assistant", "two"), image=None
    ),
    "empty keys": {
        **row("a", "a.png", "<image>Which?", "two"),
        "video": None,
        "tools": [],
        "system": "",
        "audio": "",
    },
    "weight 1": {
        "image": "a.png",
        "conversations": [
            {"from": "human", "value": "<image>Which?", "weight": 1},
            {"from": "gpt", "value": "two", "train": True},
        ],
    },
}


@pytest.mark.parametrize("case", SAME)
def test_what_is_usual_is_taken(images: Path, case: str, caplog: pytest.LogCaptureFixture) -> None:
    (sample,) = load(images, [SAME[case]])

    assert sample.images == [images / "a.png"]
    assert sample.conversation == TURNS
    assert sample.system is None
    assert "not read" not in caplog.text


def test_parts_keep_their_order_and_words_are_not_glued(images: Path) -> None:
    text = {"type": "text", "text": "One."}
    (sample,) = load(
        images,
        [says(("user", [text, WHICH, IMAGE, {"type": "text", "text": " here?"}]), ("gpt", "two"))],
    )

    assert sample.conversation[0] == Turn("user", "One. Which? here?", images=1, places=(11,))


SYSTEM: dict[str, Row] = {
    "key": {**row("a"), "system": " Be brief. "},
    "turn": {
        **row("a"),
        "conversations": [{"from": "system", "value": "Be brief."}, *row("a")["conversations"]],
    },
    "message": says(("system", "Be brief."), ("user", "<image>What is it?"), ("assistant", "two")),
}


@pytest.mark.parametrize("case", SYSTEM)
def test_a_system_text_is_written_in_place_of_the_prompts(
    images: Path, tiny_llava: str, case: str
) -> None:
    file = write(images.parent / "train.json", [row("b"), SYSTEM[case]])
    module = LlavaJson(train=file, val=file, image_root=str(images), checkpoint=tiny_llava)
    module.setup("fit")

    batch = collate(module.collator, *module.samples["train"])

    assert decode(module.processor, batch, Segment.SYSTEM, row=1).strip() == "Be brief."
    assert not batch.spans[Segment.SYSTEM][0].any()


def test_a_system_text_that_the_template_can_not_write_is_found_in_any_row(
    images: Path, tiny_llava: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_other(*options: object) -> Any:
        processor = load_processor(tiny_llava)
        processor.hf.chat_template = CHATML.replace(
            "messages %}", "messages if m['role'] != 'system' %}", 1
        )
        return processor

    monkeypatch.setattr(base_module, "load_processor", load_other)
    rows = [row(str(k), "a.png", "<image>" + "long " * 20, "two") for k in range(9)]
    file = write(images.parent / "train.json", [*rows, SYSTEM["key"]])

    with pytest.raises(
        CheckpointError, match=r"does not write the system text .* give samples no system text"
    ):
        LlavaJson(train=file, val=file, image_root=str(images), checkpoint=tiny_llava).setup("fit")


def test_an_answer_to_nothing_is_left_out_and_counted(
    images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    greeting = {"from": "gpt", "value": "Hello."}
    rows = [row("a") | {"conversations": [greeting, *row("a")["conversations"]]}, row("b")]

    with caplog.at_level(logging.WARNING):
        first, second = load(images, rows)

    assert first.conversation == second.conversation
    assert "1 conversations of" in caplog.text
    assert "begin with an answer without a question" in caplog.text


def test_keys_that_are_not_read_are_named_once_with_their_count(
    images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd = row("b") | {"source": "x", "width": 3}
    odd["conversations"][0]["lang"] = "en"

    with caplog.at_level(logging.WARNING):
        load(images, [row("a") | {"source": "x"}, odd])

    (record,) = caplog.records
    assert "keys that are not read: source (2 times)" in record.message
    assert "width (1 times)" in record.message
    assert "conversations[].lang (1 times)" in record.message


BAD: dict[str, tuple[Any, str]] = {
    "no object": (["a"], "a list where an object was expected"),
    "odd id": ({"id": ["a"]}, "field 'id': a list where text or a number was expected"),
    "kind no text": (row() | {"kind": 3}, "field 'kind': 3 is not text. Give the kind of question"),
    "kind empty": (row() | {"kind": " "}, "field 'kind': ' ' is not text"),
    "image no path": (row(image=3), "field 'image': 3 is not a path"),
    "image leaving": (row(image="../secret.png"), "field 'image': .* leads out of"),
    "image absolute": (row(image="/etc/passwd"), "field 'image': .* leads out of"),
    "image missing": (
        row(image="gone.png"),
        r"field 'image': .*gone.png does not exist\. Correct the path, or `image_root`",
    ),
    "image as bytes": (
        row(image=None) | {"images": [{"bytes": "x" * 99}]},
        "'images': {'bytes': 'x+ is not a path",
    ),
    "image twice": (
        row() | {"images": ["a.png"]},
        "field 'images': is given beside 'image', which means the same",
    ),
    "no conversations": ({"id": "a"}, "field 'conversations': None; pairs"),
    "two conversations": (
        row() | {"messages": []},
        "field 'messages': is given beside 'conversations'",
    ),
    "odd turns": (row("a", None, "hello"), "field 'conversations': 1 turns; pairs"),
    "an answer alone": (
        says(("assistant", "x"), image=None),
        r"'messages\[0\]': is from 'assistant', but 'user'",
    ),
    "wrong order": (
        {
            "id": "a",
            "conversations": [{"from": "gpt", "value": "x"}, {"from": "human", "value": "y"}],
        },
        r"field 'conversations\[0\]': is from 'gpt', but 'human' was expected",
    ),
    "late system": (
        says(("user", "a"), ("assistant", "b"), ("system", "c"), ("user", "d"), image=None),
        r"field 'messages\[2\]': is from 'system', but 'user' was expected",
    ),
    "system twice": (
        says(("system", "a"), ("user", "b"), ("assistant", "c"), system="d"),
        "field 'system': is given",
    ),
    "system no text": (row() | {"system": ["a"]}, "field 'system': a list where text was expected"),
    "unknown role": (
        says(("tool", "x"), ("assistant", "y")),
        r"field 'messages\[0\]': is from 'tool'; it can be",
    ),
    "no role": (
        {"id": "a", "conversations": [{"value": "x"}, {"from": "gpt", "value": "y"}]},
        r"field 'conversations\[0\]': no object with 'from'",
    ),
    "two roles": (
        {"id": "a", "conversations": [{"from": "gpt", "role": "user", "value": "x"}]},
        r"field 'conversations\[0\].role': is given beside 'from'",
    ),
    "empty value": (row("a", None, "x", " "), r"field 'conversations\[1\]': 'value' is missing"),
    "content of parts empty": (
        says(("user", []), ("assistant", "x")),
        r"'messages\[0\]': 'content' is missing",
    ),
    "odd part": (
        says(("user", [{"type": "video", "path": "a"}]), ("assistant", "x")),
        r"field 'messages\[0\].content\[0\]': .*'video'.* is neither a text nor the next image",
    ),
    "placeholder in a part": (
        says(("user", [{"type": "text", "text": "<image>"}]), ("assistant", "x")),
        r"field 'messages\[0\].content\[0\]': .* is neither a text",
    ),
    "parts out of order": (
        says(("user", [{"type": "image", "index": 1}, WHICH]), ("assistant", "x")),
        r"field 'messages\[0\].content\[0\]': .* is neither a text nor the next image",
    ),
    "a picture shown again": (
        {
            **says(
                *[("user", [{"type": "image", "index": 0}, WHICH]), ("assistant", "x")] * 2,
                image=None,
            ),
            "images": ["a.png", "b.png"],
        },
        r"field 'messages\[2\].content\[0\]': .* is neither a text nor the next image",
    ),
    "paths twice": (
        says(("user", [{**IMAGE, "path": "a.png"}]), ("assistant", "x")),
        "'image': images are named here",
    ),
    "fewer placeholders": (
        row("a", "a.png", "What?", "two"),
        r"fewer <image> placeholders \(0\) than images \(1\)",
    ),
    "more placeholders": (
        row("a", "a.png", "<image><image>What?", "two"),
        r"more <image> placeholders \(2\) than images \(1\)",
    ),
    "placeholder in answer": (
        row("a", "a.png", "What?", "<image>"),
        r"'conversations\[1\]': <image> in an answer",
    ),
    "placeholder in system": (
        says(("system", "<image>"), ("user", "a"), ("assistant", "b")),
        r"'messages\[0\]': <image> in a system text",
    ),
    "images of a turn": (
        {"id": "a", "messages": [{"role": "user", "content": "x", "images": ["a.png"]}]},
        r"field 'messages\[0\].images': is not read here",
    ),
    "masked turn": (
        {
            "id": "a",
            "messages": [
                {"role": "user", "content": "x"},
                {"role": "gpt", "content": "y", "weight": 0},
            ],
        },
        r"field 'messages\[1\].weight': has content that can't be taken",
    ),
    **{
        key: (row() | {key: ["x"]}, f"field '{key}': has content that can't be taken")
        for key in ("video", "videos", "audio", "tools", "function_call", "chosen", "rejected")
    },
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named_with_its_field(images: Path, case: str) -> None:
    bad, message = BAD[case]
    with pytest.raises(DataError, match=rf"train\.json, row 3.*{message}"):
        load(images, [row("first"), row("second"), bad])


def test_the_same_rows_give_the_same_tokens_in_any_format(images: Path, tiny_llava: str) -> None:
    file = write(images.parent / "train.json", [{**SAME[case], "id": case} for case in SAME])
    module = LlavaJson(train=file, val=file, image_root=str(images), checkpoint=tiny_llava)
    module.setup("fit")

    batch = collate(module.collator, *module.samples["train"])

    assert torch.equal(batch.input_ids, batch.input_ids[:1].expand_as(batch.input_ids))


def test_a_row_names_its_partner_by_an_id(images: Path) -> None:
    asked = row("a", "a.png", "<image>Which?", "two")

    (first, second) = load(images, [{**asked, "partner": 7}, {**asked, "id": "7"}])

    assert (first.partner, second.partner) == ("7", None)
    with pytest.raises(DataError, match=r"field 'partner': \[\] is no id"):
        load(images, [{**asked, "partner": []}])
