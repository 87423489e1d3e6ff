from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from lightning_mllm.errors import ConfigError
from lightning_mllm.network import is_reachable
from lightning_mllm.tracking.loggers import (
    finish,
    log_config,
    log_image,
    log_table,
    make_loggers,
)
from lightning_mllm.tracking.metrics_file import MetricsFile
from tests.support.servers import serving
from tests.support.wandb_run_file import config, history, run_record

SENTINEL = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def without_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr("lightning_mllm.tracking.loggers.is_reachable", lambda url: True)
    wandb.teardown()  # settings are read from the environment once
    yield
    wandb.teardown()


def modes(run_dir: Path, **options: object) -> list[str]:
    """Return the W&B modes of the loggers made, without starting a run."""
    loggers = make_loggers(run_dir, name="run", **options)  # type: ignore[arg-type]
    return [logger._wandb_init["mode"] for logger in loggers if isinstance(logger, WandbLogger)]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ---- which loggers --------------------------------------------------------------------------------------------------


def test_without_a_key_auto_is_offline_and_says_once_how_to_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("lightning_mllm.tracking.loggers.rank_zero_info", said.append)

    assert modes(tmp_path / "run") == ["offline"]
    (message,) = said
    assert f"wandb sync {tmp_path / 'run' / 'wandb'}/offline-run-*" in message


def test_with_a_key_in_the_environment_auto_is_online(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SENTINEL)

    assert modes(tmp_path) == ["online"]


def test_with_a_key_in_netrc_auto_is_online(tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {SENTINEL}\n")

    assert modes(tmp_path) == ["online"]


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key, and nobody who asks for it."""
    monkeypatch.setenv("WANDB_API_KEY", SENTINEL)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("lightning_mllm.tracking.loggers.is_reachable", is_reachable)


@pytest.mark.usefixtures("no_server")
def test_without_a_server_auto_is_offline_at_once_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("lightning_mllm.tracking.loggers.rank_zero_info", said.append)

    assert modes(tmp_path / "run") == ["offline"]
    assert said[0] == "The W&B server http://127.0.0.1:9 can't be reached."
    assert "wandb sync" in said[1]
    assert "before the folder is moved" in said[1]


@pytest.mark.usefixtures("no_server")
def test_online_without_a_server_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"http://127\.0\.0\.1:9 can't be reached"):
        make_loggers(tmp_path, name="run", mode="online")


@pytest.mark.slow
def test_a_key_that_the_server_refuses_is_said_in_one_sentence_or_goes_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SENTINEL)
    with serving(401) as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        online = make_loggers(tmp_path / "online", name="run", mode="online")
        with pytest.raises(
            ConfigError, match=r"W&B refuses to be online: .*401.*wandb login --relogin"
        ):
            log_config(online, {"a": 1})

        auto = make_loggers(tmp_path / "auto", name="run", mode="auto")
        log_config(auto, {"a": 1})
        finish(auto)

    wandb.teardown()
    assert config(tmp_path / "auto")["a"] == 1


@pytest.mark.parametrize(
    ("variable", "expected"), [("offline", ["offline"]), ("dryrun", ["offline"]), ("disabled", [])]
)
def test_auto_does_what_wandb_mode_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, expected: list[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SENTINEL)
    monkeypatch.setenv("WANDB_MODE", variable)

    assert modes(tmp_path) == expected


def test_online_without_a_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Run `wandb login`, or use mode offline"):
        make_loggers(tmp_path, name="run", mode="online")


def test_disabled_leaves_the_csv_file(tmp_path: Path) -> None:
    (logger,) = make_loggers(tmp_path, name="run", mode="disabled")

    assert isinstance(logger, MetricsFile)


def test_without_wandb_installed_auto_is_csv_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_mllm.tracking.loggers.find_spec", lambda name: None)

    assert modes(tmp_path) == []
    with pytest.raises(ConfigError, match="pip install wandb, or use mode disabled"):
        make_loggers(tmp_path, name="run", mode="offline")


# ---- an offline run, read back from its file -------------------------------------------------------------------------


@pytest.fixture
def offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a finished offline run in an environment with secrets."""
    monkeypatch.setenv("WANDB_API_KEY", SENTINEL)
    monkeypatch.setenv("HF_TOKEN", "hf_" + SENTINEL)
    run_dir = tmp_path / "run"
    picture = tmp_path / "picture.png"
    Image.new("RGB", (8, 8), "red").save(picture)
    loggers = make_loggers(
        run_dir, name="digits", group="group", tags=["tag"], mode="offline", project="project"
    )
    settings = {
        "lr": 0.1,
        "hf_token": "secret",
        "url": f"https://{SENTINEL}@host",
        "max_new_tokens": 8,
    }
    log_config(loggers, {"model": settings})
    for logger in loggers:
        logger.log_metrics({"val/accuracy": 0.25}, step=0)
        logger.log_metrics({"val/accuracy": 0.75}, step=10)
    log_table(
        loggers, "predictions", ["image", "answer"], [[Image.new("RGB", (8, 8)), "zero"]], step=10
    )
    log_image(loggers, "curve", picture, step=10)
    finish(loggers)
    wandb.teardown()  # waits until the background process has written everything
    assert len(list((run_dir / "wandb").glob("offline-run-*"))) == 1
    return run_dir


def test_an_offline_run_holds_what_was_logged(offline_run: Path) -> None:
    logged = history(offline_run)
    accuracies = [
        (row["trainer/global_step"], row["val/accuracy"]) for row in logged if "val/accuracy" in row
    ]
    run = run_record(offline_run)

    assert accuracies == [(0, 0.25), (10, 0.75)]
    assert (run.project, run.display_name, run.run_group, list(run.tags)) == (
        "project",
        "digits",
        "group",
        ["tag"],
    )
    assert any("predictions" in key for row in logged for key in row)
    assert any("curve" in key for row in logged for key in row)
    assert list(offline_run.rglob("media/images/*.png"))
    assert config(offline_run)["model"]["lr"] == 0.1


def test_the_csv_file_holds_the_same_scalars(offline_run: Path) -> None:
    assert [row["val/accuracy"] for row in rows(offline_run / "metrics.csv")] == ["0.25", "0.75"]


def test_everything_lies_in_the_folder_of_the_run(offline_run: Path) -> None:
    assert list(offline_run.glob("wandb/artifacts/staging/*")), (
        "images of tables must travel with the run"
    )


def test_no_secret_is_in_any_file(offline_run: Path) -> None:
    logged = config(offline_run)["model"]
    files = [path for path in offline_run.rglob("*") if path.is_file()]

    assert logged == {"lr": 0.1, "hf_token": "********", "url": "********", "max_new_tokens": 8}
    assert len(files) > 5
    assert not [path for path in files if SENTINEL.encode() in path.read_bytes()]


def test_the_environment_is_as_before(tmp_path: Path) -> None:
    import os

    before = dict(os.environ)
    loggers = make_loggers(tmp_path, name="run", mode="offline")
    log_table(loggers, "table", ["a"], [[1]])
    finish(loggers)

    ours = {"WANDB_MODE", "WANDB_DATA_DIR"}
    assert {name: os.environ.get(name) for name in ours} == {
        name: before.get(name) for name in ours
    }


def test_two_runs_in_one_process_stay_apart(tmp_path: Path) -> None:
    first = make_loggers(tmp_path / "a", name="a", mode="offline")
    second = make_loggers(tmp_path / "b", name="b", mode="offline")
    for loggers, value in ((first, 1.0), (second, 2.0)):
        for logger in loggers:
            logger.log_metrics({"x": value}, step=0)
    finish([*first, *second])
    wandb.teardown()  # waits until the background process has written everything

    assert [row["x"] for row in history(tmp_path / "a")] == [1.0]
    assert [row["x"] for row in history(tmp_path / "b")] == [2.0]
