"""Checkpoints that the whole suite shares; each is built once, and only if a test asks for it."""

import gc
from collections.abc import Callable, Generator
from functools import cache
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from lightning_mllm.models.tiny import Chat, TinyFamily, build_tiny_checkpoint
from tests.support.clip_checkpoints import DualEncoder, build_clip

TinyBuilder = Callable[[TinyFamily, Chat | None], str]
FamilyBuilder = Callable[[str], str]
ClipBuilder = Callable[[DualEncoder], str]
FIGURES = Path(__file__).parent / "tracking" / "figures"


def pytest_configure() -> None:
    torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Collect garbage seldom, and never go through the objects of all imported libraries."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Write figures as one pixel, in fixtures too; slow tests and those of figures draw them."""
    drawn = FIGURES in item.path.parents or item.get_closest_marker("slow") is not None
    with pytest.MonkeyPatch.context() as patch:
        if not drawn:
            patch.setattr(Figure, "savefig", _save_pixel)
        return (yield)


def _save_pixel(figure: Figure, path: Path, **options: object) -> None:
    Image.new("RGB", (1, 1)).save(path, format="PNG")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> TinyBuilder:
    """A function from family and chat style to the path of a tiny checkpoint."""

    @cache
    def build(family: TinyFamily, chat: Chat | None) -> str:
        return str(
            build_tiny_checkpoint(
                tmp_path_factory.mktemp("checkpoints") / f"{family}-{chat}", family, chat
            )
        )

    return build


@pytest.fixture(scope="session")
def tiny_family(tmp_path_factory: pytest.TempPathFactory) -> FamilyBuilder:
    """A function from a family, or a variant of one, to the path of a tiny checkpoint."""

    @cache
    def build(name: str) -> str:
        folder = tmp_path_factory.mktemp("families") / name
        return str(build_tiny_checkpoint(folder, name))  # type: ignore[arg-type]

    return build


@pytest.fixture(scope="session")
def tiny_llava(tiny_checkpoint: TinyBuilder) -> str:
    return tiny_checkpoint("llava", "vicuna")


@pytest.fixture(scope="session")
def tiny_llava_llama3(tiny_checkpoint: TinyBuilder) -> str:
    return tiny_checkpoint("llava", "llama3")


@pytest.fixture(scope="session")
def tiny_llava_next(tiny_checkpoint: TinyBuilder) -> str:
    return tiny_checkpoint("llava_next", "vicuna")


@pytest.fixture(scope="session")
def tiny_llava_next_llama3(tiny_checkpoint: TinyBuilder) -> str:
    return tiny_checkpoint("llava_next", "llama3")


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> ClipBuilder:
    """A function from a dual encoder's family to the path of a tiny checkpoint."""

    @cache
    def build(family: DualEncoder) -> str:
        return build_clip(tmp_path_factory.mktemp("clips") / family, family)

    return build
