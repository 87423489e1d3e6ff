from __future__ import annotations

from pathlib import Path

import pytest

from lightning_mllm.errors import DataError
from lightning_mllm.evaluation.hallucination.objects import ObjectVocabulary, read_objects
from lightning_mllm.testbed.world.scenes import SHAPES
from tests.support.command_line import CONFIGS

FILE = """\ufeff# what the pictures show
person, man, men, woman
dog, puppy
hot dog,hotdog
dining table, table
plate, dish
knife, knives

  # an indented comment, dish
-, home plate, dog-house
dog, hound
"""


@pytest.fixture
def vocabulary(tmp_path: Path) -> ObjectVocabulary:
    (tmp_path / "objects.txt").write_text(FILE, encoding="utf-8")
    return ObjectVocabulary.read(tmp_path / "objects.txt")


def test_the_objects_of_a_file_are_the_names_of_its_lines(vocabulary: ObjectVocabulary) -> None:
    assert vocabulary.names == ("person", "dog", "hot dog", "dining table", "plate", "knife")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("A man feeds his puppy; the PUPPY, a hound, is glad.", ("person", "dog", "dog", "dog")),
        ("Two puppies under the tables, three dishes.", ("dog", "dining table", "plate")),
        ("men, knives", ("person", "knife")),
        ("hot dogs", ("hot dog",)),  # no dogs
        # as CHAIR's code has it
        ("There is no dog, and the table is not a plate.", ("dog", "dining table", "plate")),
        ("a  hot\ndog, a hot-dog and a hotdog", ("hot dog",) * 3),
        ("home plate beside a dog house, and a plate", ("plate",)),
        ("mankind's doggy bag, tabletop, dogs'", ("dog",)),  # whole words
        ("", ()),
    ],
)
def test_words_are_found_whole_and_once_the_longest_first(
    vocabulary: ObjectVocabulary, text: str, named: tuple[str, ...]
) -> None:
    assert vocabulary.named(text) == named


def test_the_shipped_vocabulary_of_the_test_bed_is_its_shapes() -> None:
    vocabulary = ObjectVocabulary.read(CONFIGS / "studies/alignment_testbed/objects.txt")

    assert vocabulary.names == SHAPES
    assert vocabulary.named("small red striped circle at 3 5, two crosses") == ("circle", "cross")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("# nothing\n", r"has no object\. Give it a line per object"),
        ("-, home plate\n", r"has no object"),
        ("dog, puppy,\n", r"'dog' has an empty word"),
        ("dog, pet\ncat, Pet\n", r"'pet' stands for 'dog' and for 'cat'"),
    ],
)
def test_what_is_no_vocabulary_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "objects.txt").write_text(content)

    with pytest.raises(DataError, match=message):
        ObjectVocabulary.read(tmp_path / "objects.txt")


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xfe")

    with pytest.raises(DataError, match=r"does not exist\. Correct the path"):
        ObjectVocabulary.read(tmp_path / "nowhere.txt")
    with pytest.raises(DataError, match=r"is not UTF-8 text"):
        ObjectVocabulary.read(tmp_path / "picture.png")


def test_a_table_says_what_is_in_each_picture(tmp_path: Path, vocabulary: ObjectVocabulary) -> None:
    table = tmp_path / "objects.csv"
    table.write_text(
        'sample_id,objects\na,dog; hot dog\n"b,1",\n\n"c\n2",dog\nd\u2028\x0c3,plate\n\n'
    )

    assert read_objects(table, vocabulary) == {
        **{"a": {"dog", "hot dog"}, "b,1": frozenset()},
        **{"c\n2": {"dog"}, "d\u2028\x0c3": {"plate"}},  # ids are kept to the letter
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"has the columns \(none\); expected are sample_id, objects"),
        ("id,objects\n", r"has the columns id, objects"),
        ("sample_id,objects\na,dog\na,\n", r"line 3: sample 'a' is there twice"),
        ("sample_id,objects\na,dog,cat\n", r"line 2: 3 cells, not 2"),
        ("sample_id,objects\na,puppy\n", r"line 2: the object 'puppy' is not in the vocabulary"),
    ],
)
def test_a_malformed_table_is_refused(
    tmp_path: Path, vocabulary: ObjectVocabulary, content: str, message: str
) -> None:
    (tmp_path / "objects.csv").write_text(content)

    with pytest.raises(DataError, match=message):
        read_objects(tmp_path / "objects.csv", vocabulary)
