"""Every shipped config by what the tests do with it, and the tables of `configs/README.md`.

`python -m tests.support.shipped_configs` writes the tables.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lightning_mllm.models.backbone import Part
from lightning_mllm.models.freeze import ProjectorAndLLM, ProjectorOnly
from tests.support.command_line import CONFIGS, files_below
from tests.support.hf_tables import classes, questions, save_splits
from tests.support.published_datasets import (
    write_crisismmd,
    write_dermnet,
    write_dtd,
    write_plantdoc,
)

PROJECTOR, LLM, VISION, LORA = Part.PROJECTOR, Part.LLM, Part.VISION, Part.LLM_LORA

QUICKSTART = "quickstart.yaml"
MODELS: dict[str, tuple[str, str | None]] = {  # tiny checkpoint of its kind, and chat style
    "model/aya-vision-8b.yaml": ("aya_vision", None),
    "model/gemma-3-4b.yaml": ("gemma3", None),
    "model/granite-vision-2b.yaml": ("granite_vision", None),
    "model/idefics3-8b.yaml": ("idefics3", None),
    "model/internvl3-1b.yaml": ("internvl", None),
    "model/llava-1.5-13b.yaml": ("llava", "vicuna"),
    "model/llava-1.5-7b.yaml": ("llava", "vicuna"),
    "model/llava-1.5-7b-nf4.yaml": ("llava", "vicuna"),
    "model/llava-1.6-vicuna-7b.yaml": ("llava_next", "vicuna"),
    "model/llava-next-llama3-8b.yaml": ("llava_next", "llama3"),
    "model/llava-onevision-0.5b.yaml": ("llava_onevision", None),
    "model/mistral-small-24b.yaml": ("mistral3", None),
    "model/pixtral-12b.yaml": ("llava_pixtral", None),
    "model/qwen2-vl-2b.yaml": ("qwen2_vl", None),
    "model/qwen2.5-vl-3b.yaml": ("qwen2_5_vl", None),
    "model/qwen2.5-vl-7b.yaml": ("qwen2_5_vl", None),
    "model/qwen3-vl-4b.yaml": ("qwen3_vl", None),
    "model/smolvlm-256m.yaml": ("idefics3", None),
    "model/smolvlm2-500m.yaml": ("smolvlm", None),
    "model/vip-llava-7b.yaml": ("vipllava", None),
}

# ---- data ----
DATA = ("data/digits.yaml", "data/image_folder.yaml", "data/llava_json.yaml")
HUB: dict[str, Callable[[Path], str]] = {  # who writes a table with the columns of the dataset
    "data/food101.yaml": lambda folder: save_splits(
        folder, train=classes(0, 10), validation=classes(10, 4)
    ),
    "data/hf_dataset.yaml": lambda folder: save_splits(folder, train=classes(0, 12)),
    "data/vqa_rad.yaml": lambda folder: save_splits(
        folder, train=questions(0, 10), test=questions(10, 4)
    ),
}
PUBLISHED: dict[str, tuple[str, Callable[[Path], Path], int]] = {
    # the folder that the config names, who writes a replica of it, and how many classes that has
    "data/crisismmd.yaml": ("CrisisMMD_v2.0", write_crisismmd, 4),
    "data/dermnet.yaml": ("dermnet", write_dermnet, 3),
    "data/dtd.yaml": ("dtd", write_dtd, 3),
    "data/plantdoc.yaml": ("PlantDoc-Dataset", write_plantdoc, 4),
}
GQA = ("data/gqa.yaml", "prompts/gqa_llama3.yaml")  # the second goes after the first

# ---- what is trained ----
POLICIES = {  # the parts that learn
    "policy/by_pattern.yaml": {PROJECTOR, LLM},
    "policy/everything.yaml": {VISION, PROJECTOR, LLM},
    "policy/ft_e2e.yaml": {PROJECTOR, LLM},
    "policy/ft_proj.yaml": {PROJECTOR},
    "policy/last_layers.yaml": {LLM},
    "policy/llm_only.yaml": {LLM},
    "policy/lora.yaml": {LORA},
    "policy/lora_and_projector.yaml": {LORA, PROJECTOR},
    "policy/lora_projector_and_vision.yaml": {LORA, PROJECTOR, VISION},
    "policy/lora_vision.yaml": {Part.VISION_LORA},
    "policy/projector_and_vision.yaml": {PROJECTOR, VISION},
    "policy/rate_and_schedule_per_part.yaml": {VISION, PROJECTOR, LLM},
}
OPTIMIZERS = {  # dtype of the trained weights
    "optimizer/adamw_8bit.yaml": "float32",
    "optimizer/bfloat16_adamw.yaml": "bfloat16",
    "optimizer/bfloat16_adamw_8bit.yaml": "bfloat16",
}
NOT_FOR_FIT = "policy/zero_shot.yaml"
PRESETS: dict[str, tuple[type, int, float]] = {  # policy, global batch, rate of the projector
    "presets/llava_default/ft_e2e.yaml": (ProjectorAndLLM, 128, 2e-5),
    "presets/llava_default/ft_proj.yaml": (ProjectorOnly, 256, 1e-3),
    "presets/matched/ft_proj.yaml": (ProjectorOnly, 32, 2e-5),
    "presets/paper/ft_e2e.yaml": (ProjectorAndLLM, 32, 2e-5),
    "presets/paper/ft_proj.yaml": (ProjectorOnly, 64, 1e-3),
    "presets/released_code/ft_e2e.yaml": (ProjectorAndLLM, 32, 2e-5),
    "presets/released_code/ft_proj.yaml": (ProjectorOnly, 64, 1e-3),
}
SKIP_BLOCKS = "presets/skip_blocks.yaml"

# ---- analyses ----
ANALYSES = {  # name of the folder, pictures in it; those about boxes are not drawn without any
    "analysis/answer_lens.yaml": ("answer_lens", {"lens.png"}),
    "analysis/information_flow.yaml": (
        "information_flow",
        {
            "to_last.png",
            "image_to_question.png",
            "heat_map.png",
        },
    ),
    "analysis/attention.yaml": (
        "attention",
        {"shares_last.png", "shares_question.png", "heads_last.png", "heads_question.png"},
    ),
    "analysis/pointing.yaml": ("pointing", {"image.png", "spatial_entropy.png"}),
    "analysis/dropping.yaml": ("token_dropping", {"accuracy.png"}),
    "analysis/skipping.yaml": ("computation_skipping", {"accuracy_ffn.png", "accuracy_block.png"}),
}
SHALLOW = {  # config -> options for a model of two layers
    "analysis/dropping.yaml": (
        "--analysis.drops",
        "[{layer: 1}, {layer: 1, choice: random}, {layer: 1, share: 1.0, choice: stride}]",
    )
}
ALIGNMENT, GROUNDING = "analysis/alignment.yaml", "analysis/grounding.yaml"
PATCHING, PICTURE_MAPS = "analysis/patching.yaml", "analysis/picture_maps.yaml"
MODALITY_GAP = "analysis/modality_gap.yaml"
SUBNETWORKS = (
    "analysis/subnetwork.yaml",
    "analysis/pruned_accuracy.yaml",
)  # the second reads what the first writes
STEERING = (  # the second and third read what the first writes
    "analysis/mean_states.yaml",
    "analysis/steering.yaml",
    "analysis/shift.yaml",
)
FLOW_ON_THE_TESTBED = "runs/testbed/information_flow.yaml"
OTHERS_ON_THE_TESTBED = {  # options that make it small, the name of the run, its folders
    "runs/testbed/alignment.yaml": (
        ["--data.init_args.test_scenes", "8"],
        "testbed-alignment",
        {"alignment", "distinguishability", "token_map", "vocabulary"},
    ),
    "runs/testbed/subnetwork.yaml": (
        ["--data.init_args.train_per_kind", "1"],
        "testbed-subnetwork",
        {"sparsity_30", "sparsity_50", "sparsity_50_full", "sparsity_70"},
    ),
    "runs/testbed/pruned_accuracy.yaml": (
        ["--data.init_args.per_kind", "1"],
        "testbed-pruned-accuracy",
        {"pruned_accuracy"},
    ),
    "runs/testbed/attention.yaml": (
        ["--data.init_args.per_kind", "1"],
        "testbed-attention",
        {"attention", "pointing", "heads", "chosen_heads"},
    ),
    "runs/testbed/picture_maps.yaml": (
        ["--data.init_args.per_kind", "1", "--analysis.samples", "3"],
        "testbed-picture-maps",
        {"picture_maps"},
    ),
    "runs/testbed/dropping.yaml": (
        ["--data.init_args.per_kind", "1"],
        "testbed-dropping",
        {"token_dropping"},
    ),
    "runs/testbed/modality_gap.yaml": (
        ["--data.init_args.test_scenes", "8"],
        "testbed-modality-gap",
        {"modality_gap"},
    ),
    "runs/testbed/skipping.yaml": (
        ["--data.init_args.per_kind", "1"],
        "testbed-skipping",
        {"perceptual", "textual"},
    ),
    "runs/testbed/patching.yaml": (
        ["--data.init_args.per_kind", "1"],
        "testbed-patching",
        {"patching", "outputs", "outputs_of_all_layers", "heads"},
    ),
}
PATCH_WORDS = "analysis/patch_words.yaml"
PATCH_WORDS_ON_THE_TESTBED = {  # options that make it small; the second reads what the first makes
    "runs/testbed/bank.yaml": ["--data.init_args.test_scenes", "20"],
    "runs/testbed/patch_words.yaml": ["--data.init_args.per_kind", "1"],
}
STEERING_ON_THE_TESTBED = {  # options that make it small, the name of the run, its folders
    "runs/testbed/steering_states.yaml": (
        ["--data.init_args.train_per_kind", "24"],
        "testbed-steering-states",
        {"mean_states"},
    ),
    "runs/testbed/steering.yaml": (
        ["--data.init_args.per_kind", "24"],
        "testbed-steering",
        {"layers", "elsewhere", "scales"},
    ),
    "runs/testbed/shift_before.yaml": (
        ["--data.init_args.train_per_kind", "4"],
        "testbed-shift-before",
        {"types", "colours"},
    ),
    "runs/testbed/shift_after.yaml": (
        ["--data.init_args.train_per_kind", "4"],
        "testbed-shift-after",
        {"types", "colours"},
    ),
    "runs/testbed/shift.yaml": (
        ["--data.init_args.per_kind", "1", "--analysis.random_vectors", "2"],
        "testbed-shift",
        {"shift_sweep"},
    ),
}

# ---- the test-bed's own models ----
START = "testbed_training/0_start.yaml"
TRAINED = {  # the parts that learn
    "testbed_training/1_words.yaml": {LLM},
    "testbed_training/2_language.yaml": {LLM},
    "testbed_training/3a_shapes.yaml": {VISION, PROJECTOR, LLM},
    "testbed_training/3b_vision.yaml": {VISION, PROJECTOR, LLM},
    "testbed_training/4_aligned.yaml": {PROJECTOR},
    "testbed_training/5_instructed.yaml": {PROJECTOR, LLM},
}
EXAMINATION = "runs/testbed/eval.yaml"
PROJECTION_CHANGE = "runs/testbed/projection_change.yaml"
FEW_PICTURES = [  # of each of its kinds, so that neighbours can be found
    *("--data.init_args.per_kind", "7", "--data.init_args.train_per_kind", "2"),
]

# ---- studies ----
PROJECTION_STUDY, PROJECTION_TESTBED = (
    "studies/projection/study.yaml",
    "studies/projection_testbed/study.yaml",
)
PROJECTION_STUDIES = {
    PROJECTION_STUDY: 180,
    PROJECTION_TESTBED: 125,
}  # and how many cells they have
PROJECTION_PARTS = {  # what they are made of
    *(f"studies/projection/{name}.yaml" for name in ("common", "zero_shot")),
    *(
        f"studies/projection_testbed/{name}.yaml"
        for name in ("common", "digits", "domain", "zero_shot")
    ),
    *(
        f"studies/projection_testbed/{name}.yaml"
        for name in ("own_ft_proj", "matched_ft_proj", "ft_e2e")
    ),
    *(
        f"studies/projection_testbed/{name}.yaml"
        for name in ("glyphs", "textures", "leaves", "lesions")
    ),
}
ALIGNMENT_STUDY, ALIGNMENT_TESTBED = (
    "studies/alignment/study.yaml",
    "studies/alignment_testbed/study.yaml",
)
ALIGNMENT_STUDIES = {ALIGNMENT_STUDY: 24, ALIGNMENT_TESTBED: 12}
ALIGNMENT_PARTS = {
    *(f"studies/alignment/{name}.yaml" for name in ("task", "presence", "captions", "scores")),
    *(
        f"studies/alignment_testbed/{name}.yaml"
        for name in ("common", "questions", "presence", "captions")
    ),
    *(f"studies/alignment_testbed/{name}.yaml" for name in ("chair", "scores")),
}
ALIGNMENT_SERIES = (
    "studies/alignment_testbed/series.yaml"  # further checkpoints, and the training that makes them
)
ALIGNMENT_STEPS = "studies/alignment_testbed/steps.yaml"

REAL = {  # tests/real tries them
    *("real/1_captions.yaml", "real/2_questions.yaml", "real/3_captions_short.yaml"),
    *("real/grounding.yaml", "real/described.yaml", "real/alignment.yaml"),
    *("real/answers.yaml", "real/information_flow.yaml"),
}

COVERED = {
    *REAL,
    *(
        QUICKSTART,
        NOT_FOR_FIT,
        SKIP_BLOCKS,
        ALIGNMENT,
        GROUNDING,
        PATCHING,
        PICTURE_MAPS,
        FLOW_ON_THE_TESTBED,
        START,
        EXAMINATION,
    ),
    *(PROJECTION_CHANGE, MODALITY_GAP),
    *(ALIGNMENT_SERIES, ALIGNMENT_STEPS),
    *(*MODELS, *DATA, *HUB, *PUBLISHED, *GQA, *POLICIES, *OPTIMIZERS, *PRESETS),
    *(PATCH_WORDS, *PATCH_WORDS_ON_THE_TESTBED),
    *(*ANALYSES, *SUBNETWORKS, *STEERING, *OTHERS_ON_THE_TESTBED, *TRAINED),
    *STEERING_ON_THE_TESTBED,
    *(*PROJECTION_STUDIES, *PROJECTION_PARTS, *ALIGNMENT_STUDIES, *ALIGNMENT_PARTS),
}
TABLE = CONFIGS / "README.md"
_INTRODUCTION = """# Configs

A command takes several configs, e.g. a model, data, and a policy or a preset; where two set the
same option, the later one counts. `quickstart.yaml`, the files in `runs/` and `testbed_training/`
and the `study.yaml` of each study are complete: their comments say the command. The tables are made
from the first line of each file.
"""


def shipped_yaml() -> set[str]:
    """Return the paths of all YAML files below `configs/`, relative to it."""
    return {name for name in files_below(CONFIGS) if name.endswith((".yaml", ".yml"))}


def first_line(name: str) -> str:
    """Return what the first line of a config says of it."""
    return (CONFIGS / name).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def table() -> str:
    """Return the text of `configs/README.md`."""
    folders: dict[str, list[str]] = {}
    for name in sorted(shipped_yaml(), key=lambda name: name.rpartition("/")):
        folders.setdefault(name.rpartition("/")[0], []).append(name)
    parts = [_INTRODUCTION]
    for folder, names in folders.items():
        rows = [f"| [{name.rpartition('/')[2]}]({name}) | {first_line(name)} |" for name in names]
        parts.append(
            "\n".join(
                [f"## {folder or 'Start here'}\n", "| file | what it is |", "|---|---|", *rows, ""]
            )
        )
    return "\n".join(parts)


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
