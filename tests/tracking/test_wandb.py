"""Real wandb, offline and with a server of this machine: what a resumed run leaves is one run with each step once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import metrics
from wandb_files import Start, starts
from wandb_server import WandbServer, serving

from yarn_train.metrics.wandb_log import offline_logs
from yarn_train.sweep.record import Sweep, write

pytest.importorskip("wandb")
KEY = "0123456789abcdef0123456789abcdef01234567"
SECRET = "a-password-that-nobody-must-see"
TWO_STAGES = (
    *("+curriculum.stages.a.rope.factor=2", "+curriculum.stages.a.train.steps=4"),
    *("+curriculum.stages.b.rope.factor=4", "+curriculum.stages.b.train.steps=3"),
)
Train = Callable[..., Path]


def losses(rows: list[dict[str, Any]]) -> list[tuple[int, float]]:
    return [(row["train/step"], row["train/loss"]) for row in rows if "train/loss" in row]


def only_id(found: list[Start]) -> str:
    (run_id,) = {start.run.run_id for start in found}
    return str(run_id)


def files_with(folder: Path, text: str) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [str(path) for path in files if text.encode() in path.read_bytes()]


def test_a_resumed_run_of_two_ranks_is_one_run_with_each_step_once(
    forked: Callable[..., subprocess.CompletedProcess[str]],
    tiny_args: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")  # of tracking.wandb=auto
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    sweep, run = tmp_path / "sweep", tmp_path / "sweep" / "run"
    write(sweep, Sweep("sweep", "", "grid", "basic", {}))
    words = [*tiny_args, f"run.dir={run}", f"tracking.wandb_tags=[fast,'{SECRET}']"]
    first = forked(*words, "train.stop_after=5")
    assert first.stdout.count(f"wandb: offline in {run}/wandb, project yarn-train") == 1
    shutil.rmtree(run / "01_s4" / "checkpoints" / "step_00000005")  # as if it had been killed before that was complete
    second = forked(*words)
    assert f"wandb sync {run}/wandb" in second.stdout
    assert "wandb sync" not in first.stdout

    found = starts(run)
    assert len(found) == 2, "one process tracks, whatever the number of ranks"
    run_id = only_id(found)
    assert json.loads((run / "tracking.json").read_text())["wandb"]["id"] == run_id
    rows = [row for start in found for row in start.history]
    assert [row["_step"] for row in rows] == list(range(1, 9))
    assert [start.history[0]["_step"] for start in found] == [1, 6], "step 5 was done again and is not sent again"
    assert losses(rows) == [(row["step"], row["loss"]) for row in metrics(run / "01_s4")]
    record = found[1].run
    assert (record.run_group, record.project, list(record.tags)) == ("sweep", "yarn-train", ["fast", "***"])
    assert found[1].config.items() >= yaml.safe_load((run / "config.yaml").read_text()).items()
    assert found[1].config["about"]["world_size"] == 2
    assert found[1].config["about"]["git"] == json.loads((run / "run.json").read_text())["git"]
    assert [start.exit_codes for start in found] == [[1], [0]]
    assert [start.kinds.get("preempting") for start in found] == [1, None], "a stopped run may go on"
    assert files_with(run / "wandb", SECRET) == []


def test_stages_share_one_axis_and_the_evaluation_and_the_model_belong_to_the_run(
    train: Train, tiny_args: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    small = ["eval=perplexity", "eval.windows=[64]", "eval.stride=16", "eval.documents=1", "eval.baselines=false"]
    plain = [word for word in tiny_args if not word.startswith(("rope.factor", "train.steps", "eval="))]
    words = [*plain, *small, *TWO_STAGES, "tracking.wandb=offline", "tracking.wandb_model=true"]
    train(run, *words, f"run.dir={run}")
    (start,) = starts(run)
    a, b = metrics(run / "01_a"), metrics(run / "02_b")
    assert losses(start.history) == [(i, row["loss"]) for i, row in enumerate([*a, *b], start=1)]
    assert [row["train/stage"] for row in start.history] == [1] * 4 + [2] * 3
    assert start.history[-1]["train/tokens"] == a[-1]["tokens"] + b[-1]["tokens"]
    assert [start.config["stages"][name]["rope"]["factor"] for name in ("01_a", "02_b")] == [2, 4]
    results = json.loads((run / "eval" / "perplexity.json").read_text())
    scored = {key: value for key, value in start.summary.items() if key.startswith("eval/perplexity/")}
    assert sorted(scored.values()) == sorted(row["perplexity"] for row in results if row["mode"] == "token_mean")
    assert scored
    assert start.summary["eval/perplexity"]["nrows"] == len(results)
    (artifact,) = start.models
    entries = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    assert entries["model.safetensors"] == run / "02_b" / "model" / "model.safetensors"
    copies = [p for p in (run / "wandb").rglob("*") if p.is_file() and p.stat().st_size > 50_000]
    assert copies == [], "the model is not copied"

    train(run, *words, f"run.dir={run}")  # complete: nothing is left to train
    assert [(len(s.history), len(s.models)) for s in starts(run)] == [(7, 1), (0, 0)]


@pytest.fixture
def logged_in(alone: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def log_in(address: str) -> None:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", KEY)

    return log_in


def synced(run: Path, server: WandbServer, log_in: Callable[[str], None]) -> list[dict[str, Any]]:
    """What the server has of a run's only wandb run after the command that runs tell their users."""
    log_in(server.address)
    command = [sys.executable, "-m", "wandb", "sync", str(run / "wandb")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert list(server.runs) == [only_id(starts(run))], done.stderr
    return server.history(only_id(starts(run)))


def test_wandb_sync_makes_one_run_of_all_offline_starts(
    train: Train, tiny_args: list[str], tmp_path: Path, logged_in: Callable[[str], None]
) -> None:
    run = tmp_path / "run"
    words = [*tiny_args, "tracking.wandb=offline", f"run.dir={run}"]
    train(run, *words, "train.stop_after=3")
    train(run, *words)
    with serving() as server:
        history = synced(run, server, logged_in)
    assert [row["_step"] for row in history] == list(range(1, 9))
    assert losses(history) == [(row["step"], row["loss"]) for row in metrics(run / "01_s4")]


def test_logged_in_is_online_and_a_resumed_run_goes_on_where_the_server_stands(
    train: Train,
    tiny_args: list[str],
    tmp_path: Path,
    logged_in: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    with serving() as server:
        logged_in(server.address)
        words = [*tiny_args, f"run.dir={run}"]
        train(run, *words, "train.stop_after=3")
        (run_id,) = server.runs
        assert server.preempting == {run_id}
        shutil.rmtree(run / "01_s4" / "checkpoints" / "step_00000003")
        train(run, *words)
        assert f"wandb: {server.address}/team/yarn-train/runs/{run_id}" in capsys.readouterr().out
    assert list(server.runs) == [run_id]
    assert [row["_step"] for row in server.history(run_id)] == list(range(1, 9))
    assert losses(server.history(run_id)) == [(row["step"], row["loss"]) for row in metrics(run / "01_s4")]
    assert server.exits[run_id] == [1, 0]
    assert files_with(run / "wandb", KEY) == []


def test_what_was_not_tracked_is_sent_when_tracking_begins(train: Train, tiny_args: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, *tiny_args, f"run.dir={run}", "train.stop_after=3")
    assert not (run / "tracking.json").exists()
    train(run, *tiny_args, f"run.dir={run}", "tracking.wandb=offline")
    (start,) = starts(run)
    assert losses(start.history) == [(row["step"], row["loss"]) for row in metrics(run / "01_s4")]


def test_a_process_ends_though_wandb_waits_for_a_server_that_never_answers(
    tmp_path: Path, logged_in: Callable[[str], None]
) -> None:
    program = f"""
import time
from pathlib import Path
from yarn_train.metrics.background import Background
from yarn_train.metrics.tracker import COMPLETE, Record
from yarn_train.metrics.wandb_sink import WandbRun, WandbTracker

folder = Path({str(tmp_path)!r})
tracker = WandbTracker(WandbRun("online", folder, "n", "p"), Record(folder / "tracking.json"))
tracker.patience = 3.0
background = Background(tracker, [], print)
background.end(COMPLETE)
background.wait()
print("waited")
"""
    with serving(silent=True) as server:
        logged_in(server.address)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "wandb: not waited for any longer, after 3 s; it has all\nwaited\n"


KILLED = """
import json, os, signal, time
from pathlib import Path
from yarn_train.metrics.tracked import placed
from yarn_train.metrics.tracker import Record
from yarn_train.metrics.tracking import Trackers
from yarn_train.metrics.wandb_sink import WandbRun, WandbTracker

folder = Path({folder!r})
begin, end = {steps}
record = Record(folder / "tracking.json")
tracker = WandbTracker(WandbRun("offline", folder, "n", "p"), record)
trackers = Trackers(placed([(folder / "a", 9, False)]), [tracker])
rows = trackers.stage("a", begin - 1)
for step in range(begin, end + 1):
    with (folder / "a" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({{"step": step, "tokens": step, "loss": 1.0}}) + chr(10))
    rows.write({{"step": step}})
if {killed}:
    while record.read("wandb").get("sent") != end:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
trackers.close("complete")
"""


def test_rows_that_a_killed_process_took_along_are_sent_by_the_next(
    tmp_path: Path, logged_in: Callable[[str], None]
) -> None:
    (tmp_path / "a").mkdir()
    for steps, killed, code in (((1, 4), True, -9), ((5, 6), False, 0), ((7, 8), False, 0)):
        program = KILLED.format(folder=str(tmp_path), steps=steps, killed=killed)
        assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == code
        if steps == (5, 6):  # as a process leaves it that is killed while it writes
            log = offline_logs(tmp_path / "wandb", "*")[-1]
            log.write_bytes(log.read_bytes()[:-3])
    assert [row["_step"] for start in starts(tmp_path) for row in start.history] == list(range(1, 9))
    with serving() as server:
        history = synced(tmp_path, server, logged_in)
    assert [row["_step"] for row in history] == list(range(1, 9))
