import json
import shutil
from pathlib import Path

import pytest

from lightning_mllm.data.images.processor import limit_length, load_processor
from lightning_mllm.errors import CheckpointError

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "chat_template.jinja")


def copy(checkpoint: str, folder: Path, *without: str) -> str:
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors", *without))
    return str(folder)


def test_pixels_come_from_the_pil_backend(tiny_llava_next: str) -> None:
    processor = load_processor(tiny_llava_next)

    assert type(processor.image_processor).__name__ == "LlavaNextImageProcessorPil"
    assert processor.tokenizer.backend == "tokenizers"


def test_the_context_is_the_lesser_of_tokenizer_and_model(tiny_llava: str) -> None:
    processor = load_processor(tiny_llava)

    assert limit_length(None, processor, tiny_llava) == 1024
    processor.tokenizer.model_max_length = 100
    assert limit_length(None, processor, tiny_llava) == 100
    processor.tokenizer.model_max_length = int(1e30)
    assert limit_length(None, processor, tiny_llava) == 1024


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"No multimodal checkpoint can be read from .*Give a hub id"
    ):
        load_processor(str(tmp_path))


def test_a_text_only_checkpoint_is_refused(tiny_llava: str, tmp_path: Path) -> None:
    path = copy(tiny_llava, tmp_path / "text", *PROCESSOR_FILES)
    config = json.loads((tmp_path / "text" / "config.json").read_text())["text_config"]
    (tmp_path / "text" / "config.json").write_text(
        json.dumps({**config, "architectures": ["LlamaForCausalLM"]})
    )

    with pytest.raises(CheckpointError, match=r"text' is a text-only model \(model_type 'llama'\)"):
        load_processor(path)


def test_a_checkpoint_without_image_processor_is_refused(tiny_llava: str, tmp_path: Path) -> None:
    path = copy(tiny_llava, tmp_path / "text", *PROCESSOR_FILES)
    tokenizer = json.loads((tmp_path / "text" / "tokenizer_config.json").read_text())
    del tokenizer["processor_class"]
    (tmp_path / "text" / "tokenizer_config.json").write_text(json.dumps(tokenizer))

    with pytest.raises(CheckpointError, match="image processor"):
        load_processor(path)


def test_a_checkpoint_without_chat_template_is_refused(tiny_llava: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no chat template"):
        load_processor(copy(tiny_llava, tmp_path / "bare", "chat_template.jinja"))


def test_token_ids_beyond_the_embedding_are_refused(tiny_llava: str, tmp_path: Path) -> None:
    path = copy(tiny_llava, tmp_path / "more")
    tokenizer = load_processor(path).tokenizer
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(path)

    with pytest.raises(
        CheckpointError, match=r"has token '<tool>' with id 512, .* embeds only 512 tokens"
    ):
        load_processor(path)
