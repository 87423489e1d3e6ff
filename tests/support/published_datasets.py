"""Small datasets in the layouts in which the real ones are published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.command_line import picture, write_image_folder

PLANTDOC = ("Apple Scab Leaf", "Bell_pepper leaf", "Bell_pepper leaf spot")
TRAIN_ONLY = "Tomato two spotted spider mites leaf"
DERMNET = (
    "Acne and Rosacea Photos",
    "Poison Ivy Photos and other Contact Dermatitis",
    "Urticaria Hives",
)
DTD_CLASSES = ("banded", "cobwebbed", "zigzagged")
HUMANITARIAN = {
    "affected_individuals": 2,
    "injured_or_dead_people": 2,
    "infrastructure_and_utility_damage": 4,
    "rescue_volunteering_or_donation_effort": 4,
    "vehicle_damage": 4,
    "not_humanitarian": 3,
    "other_relevant_information": 1,
}
COLUMNS = (
    *("event_name", "tweet_id", "image_id", "tweet_text", "image"),
    *("label", "label_text", "label_image", "label_text_image"),
)
TSV = "crisismmd_datasplit_all/task_humanitarian_text_img_{}.tsv"


def write_plantdoc(root: Path) -> Path:
    counts = {f"{split}/{name}": n for split, n in (("train", 5), ("test", 2)) for name in PLANTDOC}
    return write_image_folder(root, {**counts, f"train/{TRAIN_ONLY}": 2})


def write_dermnet(root: Path) -> Path:
    return write_image_folder(
        root, {f"{split}/{name}": 4 for split in ("train", "test") for name in DERMNET}
    )


def write_dtd(root: Path) -> Path:
    """Write 12 images per class, a third to each split; the second official split shifts them."""
    (root / "labels").mkdir(parents=True)
    for k, name in enumerate(DTD_CLASSES):
        (root / "images" / name).mkdir(parents=True)
        for i in range(12):
            picture(100 * k + i).save(root / "images" / name / f"{name}_{i + 2:04d}.jpg")
    for number in (1, 2):
        for third, split in enumerate(("train", "val", "test")):
            rows = [
                f"{name}/{name}_{i + 2:04d}.jpg"
                for name in DTD_CLASSES
                for i in range(12)
                if (i // 4 + number - 1) % 3 == third
            ]
            (root / "labels" / f"{split}{number}.txt").write_text("\n".join(rows) + "\n")
    return root


def write_crisismmd(root: Path) -> Path:
    for k, split in enumerate(("train", "dev", "test")):
        labels = [label for label, count in HUMANITARIAN.items() for _ in range(count)]
        write_tsv(
            root, split, [entry(f"{900 + 100 * k + i}", label) for i, label in enumerate(labels)]
        )
    return root


def entry(tweet: str, label: str, number: int = 0, **changes: str) -> dict[str, str]:
    """Return a row of a split file."""
    row = {
        "event_name": "hurricane_harvey",
        "tweet_id": tweet,
        "image_id": f"{tweet}_{number}",
        # quotes open and never close
        "tweet_text": f'RT @someone: "The water is here ({tweet}) https://t.co/x',
        "image": f"data_image/hurricane_harvey/8_9_2017/{tweet}_{number}.jpg",
        "label": label,
        "label_text": label,
        "label_image": label,
        "label_text_image": "Positive",
    }
    return {**row, **changes}


def write_tsv(
    root: Path,
    split: str,
    rows: Sequence[Mapping[str, str]],
    columns: Sequence[str] = COLUMNS,
    image: str = "image",
) -> Path:
    """Write a split file and the pictures that its rows name."""
    file = root / TSV.format(split)
    file.parent.mkdir(parents=True, exist_ok=True)
    for row in rows:
        if row[image].startswith("data_image"):
            (root / row[image]).parent.mkdir(parents=True, exist_ok=True)
            picture(int(row["tweet_id"])).save(root / row[image])
    lines = ["\t".join(columns), *("\t".join(row[column] for column in columns) for row in rows)]
    file.write_text("\n".join(lines) + "\n")
    return file
