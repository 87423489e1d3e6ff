from typing import Any

import pytest

from lightning_mllm.data.datasets.hf_columns import (
    HFColumns,
    find_feature,
    find_layout,
    name_feature,
    pick_field,
)
from lightning_mllm.errors import DataError

TEXT = {"dtype": "string", "_type": "Value"}
NUMBER = {"dtype": "int64", "_type": "Value"}
BYTES = {"dtype": "binary", "_type": "Value"}
IMAGE = {"_type": "Image"}
CLASSES = {"names": ["cat", "dog"], "_type": "ClassLabel"}


def many(feature: Any) -> dict[str, Any]:
    return {"feature": feature, "_type": "List"}


TURNS = many({"from": TEXT, "value": TEXT})
MESSAGES = many({"role": TEXT, "content": TEXT})


def found(features: dict[str, Any], *, asks: bool = False, **given: str) -> dict[str, str]:
    return dict(find_layout(features, HFColumns(**given), "beans", asks=asks).columns)


def refusal(features: dict[str, Any], **given: str) -> str:
    with pytest.raises(DataError) as caught:
        find_layout(features, HFColumns(**given), "beans", asks=False)
    return str(caught.value)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"img": IMAGE, "fine": CLASSES}, {"image": "img", "label": "fine"}),
        ({"image": IMAGE, "label": NUMBER}, {"image": "image", "label": "label"}),
        ({"jpg": IMAGE, "cls": NUMBER, "__key__": TEXT}, "jpg cls __key__"),
        ({"x": many(IMAGE), "talk": TURNS}, {"image": "x", "conversation": "talk"}),
        ({"image_path": TEXT, "messages": MESSAGES}, "image_path messages"),
        ({"images": many(BYTES), "messages": {"_type": "Json"}}, "images messages"),
        ({"image": IMAGE, "question": TEXT, "answer": TEXT, "kind": TEXT}, "image question answer"),
        ({"image": IMAGE, "query": TEXT, "answer": TEXT, "partner": NUMBER}, "image query partner"),
        ({"image": IMAGE, "query": TEXT, "answers": many(TEXT)}, "image query answers"),
        ({"image": IMAGE, "texts": many({"user": TEXT, "assistant": TEXT})}, "image texts"),
    ],
)
def test_columns_are_found_by_type_and_name(features: dict[str, Any], expected: object) -> None:
    columns = found(features)

    if isinstance(expected, str):
        assert set(expected.split()) <= set(columns.values())
    else:
        assert columns == expected


def test_a_named_column_says_what_is_learnt() -> None:
    features = {"image": IMAGE, "label": CLASSES, "question": TEXT, "answer": TEXT, "talk": TURNS}

    assert found(features, label="label") == {"image": "image", "label": "label"}
    assert set(found(features, answer="answer")) == {"image", "question", "answer"}
    assert set(found(features, conversation="talk")) == {"image", "conversation"}
    assert set(found(features, answer="answer", asks=True)) == {"image", "answer"}


def test_an_empty_name_is_no_column() -> None:
    features = {"image": IMAGE, "id": TEXT, "question": TEXT, "answer": TEXT}

    assert "image" not in found(features, image="")
    assert "id" not in found(features, id="")
    assert found({"label": CLASSES, "talk": TURNS}, image="", label="") == {"conversation": "talk"}


def test_more_than_one_way_is_refused_with_all_columns() -> None:
    features = {"image": IMAGE, "label": CLASSES, "talk": TURNS}

    assert refusal(features) == (
        "beans: its rows can be read in more than one way: conversation 'talk'; or label 'label'. "
        "Name one. The columns are 'image' (image), 'label' (class label), 'talk' (list of object)."
    )
    assert "more than one column of pictures" in refusal({"a": IMAGE, "b": IMAGE, "talk": TURNS})
    assert "not clear what is to be learnt" in refusal({"a": IMAGE, "x": CLASSES, "y": CLASSES})


def test_what_is_missing_is_named() -> None:
    features = {"image": IMAGE, "caption": TEXT, "talk": TURNS}

    assert "no column 'captoin', which is to be the answer. Did you mean \"caption\"?" in refusal(
        features, answer="captoin"
    )
    assert "or give one `question` for all rows" in refusal(features, answer="caption")
    assert 'say that there is none: ""' in refusal({"talk": TURNS})
    assert "has the type list of object; it can be class label, integer, text" in refusal(
        features, label="talk"
    )


def test_a_field_within_a_column_is_named_with_dots() -> None:
    features = {
        "json": {"q": TEXT, "more": {"a": TEXT}},
        "answers": many({"answer": TEXT, "id": NUMBER}),
    }

    assert name_feature(find_feature(features, "json.more.a")) == "text"
    assert name_feature(find_feature(features, "answers.answer")) == "list of text"
    assert find_feature(features, "json.x") is None
    assert find_feature(features, "x.y") is None
    assert pick_field({"more": {"a": "b"}}, ["more", "a"]) == "b"
    assert pick_field([{"answer": "b"}, {"answer": "c"}], ["answer"]) == ["b", "c"]
    assert pick_field(None, ["a"]) is None
    columns = found(features, image="", question="json.q", answer="answers.answer")
    assert columns == {"question": "json.q", "answer": "answers.answer"}


def test_the_columns_that_are_not_read_are_known() -> None:
    features = {"image": IMAGE, "label": CLASSES, "url": TEXT, "json": {"id": TEXT}}
    layout = find_layout(features, HFColumns(id="json.id"), "beans", asks=False)

    assert layout.unread == ("url",)
    assert layout.classes == {"label": ("cat", "dog")}
