from __future__ import annotations

import csv
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
from lightning.pytorch.loggers import Logger, WandbLogger
from PIL import Image

from lightning_mllm.errors import ConfigError
from lightning_mllm.network import is_reachable
from lightning_mllm.tracking.loggers import (
    finish_loggers,
    log_config,
    log_image,
    log_metrics,
    log_table,
    make_loggers,
)
from lightning_mllm.tracking.metrics_file import MetricsFile
from tests.support.fake_wandb import fake_wandb
from tests.support.servers import serving

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


# ---- which loggers -------------------------------------------------------------------------------


def test_without_a_key_auto_is_offline_and_says_once_how_to_sync(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "lightning_mllm"):
        assert modes(tmp_path / "run") == ["offline"]

    said = [each.getMessage() for each in caplog.records if each.name.startswith("lightning_mllm")]
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
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "lightning_mllm"):
        assert modes(tmp_path / "run") == ["offline"]

    said = [each.getMessage() for each in caplog.records if each.name.startswith("lightning_mllm")]
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
        (run,) = (logger.experiment for logger in auto if isinstance(logger, WandbLogger))
        assert dict(run.config)["a"] == 1
        finish_loggers(auto)

    wandb.teardown()
    assert list((tmp_path / "auto").glob("wandb/offline-run-*/run-*.wandb"))


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


# ---- what is in a run ----------------------------------------------------------------------------

SETTINGS = {
    "lr": 0.1,
    "hf_token": "secret",
    "url": f"https://{SENTINEL}@host",
    "max_new_tokens": 8,
}


def log_everything(run_dir: Path, picture: Path) -> list[Logger]:
    """Begin an offline run, log one thing of each kind, and finish it."""
    loggers = make_loggers(
        run_dir, name="digits", group="group", tags=["tag"], mode="offline", project="project"
    )
    log_config(loggers, {"model": SETTINGS})
    log_metrics(loggers, {"val/accuracy": 0.25}, step=0)
    log_metrics(loggers, {"val/accuracy": 0.75}, step=10)
    table = [[Image.new("RGB", (8, 8)), "zero"]]
    log_table(loggers, "predictions", ["image", "answer"], table, step=10)
    log_image(loggers, "curve", picture, step=10)
    finish_loggers(loggers)
    return loggers


@pytest.fixture
def picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A picture, in an environment with secrets."""
    monkeypatch.setenv("WANDB_API_KEY", SENTINEL)
    monkeypatch.setenv("HF_TOKEN", "hf_" + SENTINEL)
    path = tmp_path / "picture.png"
    Image.new("RGB", (8, 8), "red").save(path)
    return path


def test_a_run_holds_what_was_logged(
    tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = fake_wandb(monkeypatch)
    log_everything(tmp_path / "run", picture)
    (run,) = runs
    accuracies = [
        (row["trainer/global_step"], row["val/accuracy"])
        for row in run.history
        if "val/accuracy" in row
    ]
    named = {key: run.options[key] for key in ("project", "name", "group", "tags", "mode")}

    assert accuracies == [(0, 0.25), (10, 0.75)]
    assert named == {
        "project": "project",
        "name": "digits",
        "group": "group",
        "tags": ["tag"],
        "mode": "offline",
    }
    assert run.keys >= {"predictions", "curve"}
    assert run.finished


def test_the_csv_file_holds_the_same_scalars(
    tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_wandb(monkeypatch)
    log_everything(tmp_path / "run", picture)

    assert [row["val/accuracy"] for row in rows(tmp_path / "run/metrics.csv")] == ["0.25", "0.75"]


def test_secrets_are_masked_in_the_config(
    tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = fake_wandb(monkeypatch)
    log_everything(tmp_path / "run", picture)
    (run,) = runs

    assert run.config["model"] == {
        "lr": 0.1,
        "hf_token": "********",
        "url": "********",
        "max_new_tokens": 8,
    }


def test_the_environment_is_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_wandb(monkeypatch)
    before = dict(os.environ)

    log_table(make_loggers(tmp_path, name="run", mode="offline"), "table", ["a"], [[1]])

    assert {**os.environ, "PYTEST_CURRENT_TEST": ""} == {**before, "PYTEST_CURRENT_TEST": ""}


def test_real_offline_runs_stay_apart_lie_in_their_folders_and_hold_no_secret(
    tmp_path: Path, picture: Path
) -> None:
    """W&B itself: that it takes what we hand over, and what it writes by itself."""
    run_dir = tmp_path / "run"
    other = make_loggers(tmp_path / "other", name="other", mode="offline")
    log_metrics(other, {"val/accuracy": 0.5}, step=0)
    loggers = log_everything(run_dir, picture)  # while the other one is open
    finish_loggers(other)
    wandb.teardown()  # waits until the background process has written everything

    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert loggers[1].version != other[1].version  # two runs in one process are two
    for folder in (run_dir, tmp_path / "other"):
        assert len(list(folder.glob("wandb/offline-run-*/run-*.wandb"))) == 1
    assert list(run_dir.rglob("media/images/*.png"))
    staged = list(run_dir.glob("wandb/artifacts/staging/*"))
    assert staged, "images of tables must travel with the run"
    assert len(files) > 5
    assert not [path for path in files if SENTINEL.encode() in path.read_bytes()]
