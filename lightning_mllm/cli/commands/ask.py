"""`lightning ask`: one question, about pictures or without. What arguments show is checked here."""

from __future__ import annotations

import os.path
import sys
from collections import defaultdict
from importlib import import_module
from pathlib import Path

from PIL import Image

from lightning_mllm.cli.class_lists import CLASSES, split_class_lists
from lightning_mllm.errors import ConfigError, DataError, UserError

_WITHOUT_VALUE = ("--help", "-h", "--print_config")


def run(name: str, arguments: list[str]) -> None:
    """Ask."""
    arguments = split_class_lists(arguments)
    try:
        check_asking(arguments)
    except UserError as error:
        sys.exit(f"error: {error}")
    import_module(f"{__package__}.asking").run(name, arguments)


def check_asking(arguments: list[str]) -> None:
    """Refuse what can be seen to be wrong before anything is loaded.

    Raises:
        ConfigError: There is no question, more than one, or a file where it should be.
        DataError: A file of `--image` is not there, or is not a picture.
    """
    options, questions = _sort_arguments(arguments)
    for named in options.get("--image", ()):
        _check_picture(named)
    for question in questions:
        if os.path.isfile(question):  # a long question is no path at all, which Path refuses
            raise ConfigError(f"{question} is a file. Did you mean `--image {question}`?")
    among = [name for name in options.get(CLASSES, ()) if name.rstrip().endswith("?")]
    if not questions and among:
        raise ConfigError(
            f"The question {among[0]!r} stands among the classes. Write it before --classes."
        )
    if len(questions) > 1:
        raise ConfigError(
            f"There are {len(questions)} questions: {', '.join(map(repr, questions))}. Put the "
            "question in quotes, and --image before each picture."
        )
    knows_what = {CLASSES, "--config", *_WITHOUT_VALUE} & options.keys()
    if not knows_what and not any(question.strip() for question in questions):
        raise ConfigError(
            'There is no question. Write one, e.g. lightning ask --image cat.jpg "What is this?", '
            "or name the classes to choose from: --classes cat dog."
        )


def _sort_arguments(arguments: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Return option -> its values, and what belongs to no option."""
    options: defaultdict[str, list[str]] = defaultdict(list)
    questions = []
    takes, wants = "", 0  # the option that the next values belong to, and how many of them
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if option.startswith("-") and " " not in option:
            options[option] += [value] if equals else []
            is_done = bool(equals) or option in _WITHOUT_VALUE
            takes, wants = option, 0 if is_done else len(arguments) if option == CLASSES else 1
        elif wants:
            options[takes].append(argument)
            wants -= 1
        else:
            questions.append(argument)
    return dict(options), questions


def _check_picture(named: str) -> None:
    path = Path(named)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(
            f"--image {named}: {found}. Name a picture; for a folder of them there is "
            "`lightning predict --images FOLDER`."
        )
    try:
        with Image.open(path):
            pass
    except (OSError, Image.DecompressionBombError) as error:
        raise DataError(
            f"--image {named} is not a picture that can be read. Name a file such as .jpg or .png."
        ) from error
