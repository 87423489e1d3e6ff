"""The tasks of the information-flow study: questions about GQA's pictures, with boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from lightning_mllm.data.datasets.gqa.rows import TaskRow, find_task_of_rows, read_task_rows
from lightning_mllm.data.images.geometry import Size
from lightning_mllm.data.images.inspection import look_at_image_files
from lightning_mllm.data.loading.bad_rows import IMAGE_FILE, IMAGE_PATH
from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.errors import DataError
from lightning_mllm.types import Sample, Turn

_ABSENT = "missing picture"


class GQATasks(MLLMDataModule):
    """Task files as released by "Cross-modal Information Flow in Multimodal Large Language Models".

    Each file is one task, after which its name ends ("..._ChooseAttr.csv") and which is the kind of
    its questions. Questions are free-form; those of the Choose tasks name their options, and each
    has the boxes of what it is about. The study's prompt is in configs/data/gqa.yaml. There is a
    test split only: the questions were chosen from GQA's validation split to look into models that
    answer them, not to train any.

    Files made from GQA's own by `extract_tasks`, or from the test-bed's by
    `write_questions_as_gqa`, are read too.

    Args:
        files: CSV files, one or more tasks.
        image_root: Folder of GQA's pictures, which are named after their ids: `<img_id>.jpg`.
        **kwargs: Options that all datasets have (see `MLLMDataModule`).
    """

    splits: ClassVar[tuple[Split, ...]] = ("test",)

    def __init__(self, *, files: Sequence[str], image_root: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.files, self.image_root = tuple(files), image_root

    def load(self, split: Split) -> Sequence[Sample]:
        """Return the questions, in the order of the files.

        Raises:
            DataError: A file is missing or malformed, pictures are missing, or a picture is not of
                the size that its row says; the message names file and row.
        """
        root = Path(self.image_root).resolve()
        if not root.is_dir():
            raise DataError(
                f"The image root {root} is not a folder. Set `image_root` to the folder of the "
                "pictures."
            )
        tasks = {file: read_task_rows(Path(file), self.bad_rows) for file in self.files}
        images: dict[str, Path] = {}
        for row in chain(*tasks.values()):
            images[row.image_id] = (root / f"{row.image_id}.jpg").resolve()
        inside = [image for image in images.values() if image.is_relative_to(root)]
        sizes, problems = look_at_image_files(image for image in inside if image.is_file())
        self.bad_rows.titles[_ABSENT] = (
            f"of {len(images):,} pictures are not there. Fetch GQA's images, or correct "
            "`image_root`"
        )
        samples = []
        for file, rows in tasks.items():
            for row in rows:
                image = images[row.image_id]
                with self.bad_rows.catch():
                    _check_picture(row, image, root, sizes, problems)
                    samples.append(make_task_sample(row, find_task_of_rows(Path(file)), image))
        self.bad_rows.settle()
        return samples


def _check_picture(
    row: TaskRow,
    image: Path,
    root: Path,
    sizes: Mapping[Path, Size],
    problems: Mapping[Path, str],
) -> None:
    """Refuse a row whose picture is not there, can't be read, or has another size than it says."""
    if not image.is_relative_to(root):
        problem = f"the image id {row.image_id!r} leads out of {root}. Give a file's name without"
        raise row.at.error(f"{problem} .jpg", IMAGE_PATH)
    if image in problems:
        raise DataError(problems[image], IMAGE_FILE)
    if image not in sizes:
        raise DataError(str(image), _ABSENT)
    if sizes[image] != row.size:
        found = "{} x {}".format(*sizes[image])
        stated = "{} x {}".format(*row.size)
        raise row.at.error(
            f"the picture {image} has {found} pixels, but the row says {stated}, so that its boxes "
            "would be elsewhere. Use the pictures of GQA as they were published",
            "picture's size",
        )


def make_task_sample(row: TaskRow, task: str, image: Path) -> Sample:
    """Return the sample of a question, its task as its kind."""
    return Sample(
        id=row.question_id,
        images=[image],
        conversation=[Turn("user", row.question, images=1), Turn("assistant", row.answer)],
        kind=task,
        boxes=row.boxes,
        options=row.options,
        picture=row.image_id,
    )
