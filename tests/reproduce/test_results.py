"""From run folders to results.json and its page; the runner; and that what is committed says what its numbers say."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from yarn_train.errors import ConfigError
from yarn_train.reproduce import runner
from yarn_train.reproduce.__main__ import OUT, main
from yarn_train.reproduce.experiments import METHODS, TABLE1_WINDOWS, TABLE2_WINDOWS, Run, runs
from yarn_train.reproduce.judged import judged
from yarn_train.reproduce.page import blocks, name
from yarn_train.reproduce.results import collect

ROOT = Path(__file__).resolve().parents[2]


def row(method: str, factor: float, window: int, perplexity: float | None, stage: str | None, **more) -> dict:
    same = {"label": f"{method} {factor}", "method": method, "ramp": None, "factor": factor, "stage": stage}
    more = {"tokens": 5120, "documents": 10, **more}
    return {**same, "window": window, "mode": "token_mean", "perplexity": perplexity, **more}


def write_run(out: Path, name: str, seed: int, rows: list[dict], losses: list[float]) -> None:
    folder = out / "runs" / name / f"seed_{seed}"
    (folder / "eval").mkdir(parents=True)
    (folder / "eval/perplexity.json").write_text(json.dumps(rows))
    (folder / "01_s16").mkdir()
    lines = [json.dumps({"step": step, "loss": loss}) for step, loss in enumerate(losses, start=1)]
    (folder / "01_s16/metrics.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Two seeds of everything; the base is evaluated with the first seed. PI has not ended, NTK-aware is not done."""
    for seed, shift in ((0, 0.0), (1, 0.2)):
        rows = [row("yarn", 16.0, window, 20.0 - n + shift, "01_s16") for n, window in enumerate(TABLE2_WINDOWS[:5])]
        rows += [row("yarn", 16.0, TABLE2_WINDOWS[5], 90.0, "01_s16")]
        rows += [row("yarn", 32.0, window, 20.1 - n / 2, "02_s32") for n, window in enumerate(TABLE2_WINDOWS)]
        if seed == 0:
            rows += [row("none", 1.0, 256, 16.0, None), row("none", 1.0, 512, 50.0, None)]
            rows += [row("yarn", 16.0, 4096, 30.0, None)]
        write_run(tmp_path, "yarn_s16_s32", seed, rows, [5.0 - step / 10 + shift for step in range(20)])
        write_run(tmp_path, "pi_s16", seed, [row("pi", 16.0, 4096, None, "01_s16")], [7.0] * 12)
        write_run(tmp_path, "yarn_s2", seed, [row("yarn", 2.0, TABLE1_WINDOWS[0], 17.0, "01_s2")], [4.0] * 12)
    keys = [row("yarn", 16.0, 0, None, "01_s16", length=4096, correct=right, total=1) for right in (1, 1, 0)]
    for seed in (0, 1):
        write_run(tmp_path, "passkey", seed, [], [])
        (tmp_path / f"runs/passkey/seed_{seed}/eval/passkey.json").write_text(json.dumps(keys))
    done = [path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("runs/*/seed_*")]
    (tmp_path / runner.DONE).write_text(json.dumps({key: ["train.py"] for key in done}))
    write_run(tmp_path, "ntk_s16", 0, [row("ntk", 16.0, 4096, 21.0, "01_s16")], [6.0] * 12)  # it has not ended yet
    return tmp_path


def cell(found: dict, table: str, model: str, window: int) -> dict:
    (one,) = [c for c in found["tables"][table] if (c["model"], c["window"]) == (model, window)]
    return one


def test_cells_are_means_over_seeds_and_name_their_runs(out: Path) -> None:
    found = collect(out)
    assert found["seeds"] == [0, 1]
    one = cell(found, "table2", "yarn_s16", 4096)
    assert one["mean"] == pytest.approx(16.1)
    assert one["spread"] == pytest.approx(0.2 / 2**0.5)  # standard deviation of two values
    assert [value["run"] for value in one["values"]] == ["runs/yarn_s16_s32/seed_0", "runs/yarn_s16_s32/seed_1"]
    assert cell(found, "table2", "yarn_s16_untrained", 4096)["mean"] == 30.0
    assert cell(found, "table2", "pi_s16", 4096)["mean"] is None
    assert cell(found, "table1", "yarn_s2", 128)["spread"] == 0
    assert cell(found, "table2", "base", 256)["spread"] is None
    assert not [c for c in found["tables"]["table2"] if c["model"] == "ntk_s16"]


def test_losses_are_the_first_the_tenth_and_the_mean_of_the_last_ten(out: Path) -> None:
    rows = {(r["method"], r["seed"]): r for r in collect(out)["losses"]}
    assert set(rows) == {("yarn", 0), ("yarn", 1), ("pi", 0), ("pi", 1)}
    assert rows["yarn", 0]["first"] == 5.0
    assert rows["yarn", 0]["tenth"] == pytest.approx(4.1)
    assert rows["yarn", 0]["last"] == pytest.approx(5.0 - (10 + 19) / 2 / 10)


def test_claims_are_judged_on_means_and_for_every_seed(out: Path) -> None:
    found = {claim["name"]: claim for claim in collect(out)["claims"]}
    falls = found["longer is better up to s L"]
    assert (falls["holds"], falls["seeds_holding"], falls["seeds"]) == (True, 2, 2)
    base = found["the base breaks inside 2L"]  # one evaluation, whatever the seeds
    assert (base["holds"], base["seeds_holding"], base["seeds"]) == (True, 0, 0)
    assert found["YaRN at s=16"]["holds"] is None


def test_claims_compare_the_seeds_that_all_models_have(out: Path) -> None:
    done = json.loads((out / runner.DONE).read_text())
    del done["runs/pi_s16/seed_1"]
    (out / runner.DONE).write_text(json.dumps(done))
    found = {claim["name"]: claim for claim in collect(out)["claims"]}
    falls = found["longer is better up to s L"]
    assert (falls["seeds"], falls["numbers"]["16L"]) == (1, 16.0)
    assert cell(collect(out), "table2", "yarn_s16", 4096)["mean"] == pytest.approx(16.1)


def test_the_page_is_written_with_every_part_that_has_numbers(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--report", "--out", str(out)]) == 0
    text = (out / "results.md").read_text()
    assert "16.10 ± 0.14" in text
    assert "Table 1" in text
    assert "## Figure 5" not in text
    assert "YaRN s=16, untrained" in text
    assert json.loads((out / "results.json").read_text()) == collect(out)
    assert "plotly" in (out / "index.html").read_text()
    assert (out / "results_table2.png").read_bytes().startswith(b"\x89PNG")
    assert "| runs/yarn_s16_s32 |" in text
    assert "| YaRN s=16 | 4/6 |" in text


def test_an_empty_folder_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--report", "--out", str(tmp_path)]) == 1
    assert "the folder of a reproduction" in capsys.readouterr().err
    assert main(["--books", str(tmp_path), "--list"]) == 1
    assert "PG19's layout" in capsys.readouterr().err
    assert main(["--only", "yarm", "--list"]) == 1
    assert "yarn_s16_s32" in capsys.readouterr().err


def test_every_run_has_a_folder_of_its_own_and_its_options_are_right(compose) -> None:
    from yarn_train import config as schema

    everything = runs(False, (0, 1))
    assert len({run.key for run in everything}) == len(everything)
    for run in everything:
        if run.program == ("train.py",):
            words = runner.command_of(run, Path("out"), None)[1:]
            cfg, problems = schema.examine(
                compose(*(f"+{w}" if w.startswith(("curriculum.", "data.mixture")) else w for w in words))
            )
            assert problems == []
            assert cfg.run.dir == f"out/{run.key}"
    methods = {run.key.split("/")[1].rsplit("_s", 1)[0] for run in everything if run.key.startswith("runs/")}
    assert {*METHODS[:-1], "yarn", "yarn_s16"} <= methods


@pytest.fixture
def python() -> tuple[str, ...]:
    return ("-c", "import pathlib, sys; pathlib.Path(sys.argv[1]).open('a').write('x'); sys.exit(int(sys.argv[2]))")


def test_the_runner_runs_what_is_missing_and_only_that(tmp_path: Path, python: tuple[str, ...]) -> None:
    said: list[str] = []
    first = Run("a", "first", ("{out}/a", "0"), python)
    second = Run("b", "second", ("{out}/b", "3"), python)
    third = Run("c", "third", ("{out}/c", "0"), python, needs=("b",))
    fourth = Run("d", "fourth", ("{out}/d", "0"), python)
    failed = runner.run_all([first, second, third, fourth], tmp_path, None, said.append)
    assert [(one.run.key, one.code) for one in failed] == [("b", 3)]
    written = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert written == {"a", "b", "d", runner.DONE, runner.INPUTS, runner.LOCK}
    assert any("left out: it needs b" in line for line in said)
    mended = Run("b", "second", ("{out}/b", "0"), python)
    assert runner.run_all([first, mended, third, fourth], tmp_path, None, said.append) == []
    assert {name: (tmp_path / name).read_text() for name in "abcd"} == {"a": "x", "b": "xx", "c": "x", "d": "x"}
    changed = Run("a", "first", ("{out}/a", "0", "more"), python)  # other options: it is run again
    runner.run_all([changed], tmp_path, None, said.append)
    assert (tmp_path / "a").read_text() == "xx"
    assert sys.executable


def test_a_folder_belongs_to_one_set_of_books_and_one_process(tmp_path: Path, python: tuple[str, ...]) -> None:
    for books, size in (("one", 3), ("two", 4)):
        (tmp_path / books / "train").mkdir(parents=True)
        (tmp_path / books / "train/book.txt").write_text("x" * size)
    run, out = Run("a", "first", ("{out}/a", "0"), python), tmp_path / "out"
    assert runner.run_all([run], out, str(tmp_path / "one"), print) == []
    with pytest.raises(ConfigError, match="results of another input \\(books\\)"):
        runner.run_all([run], out, str(tmp_path / "two"), print)
    with pytest.raises(ConfigError, match="books"):
        runner.run_all([run], out, None, print)
    with FileLock(out / runner.LOCK), pytest.raises(ConfigError, match="no other reproduction runs"):
        runner.run_all([run], out, str(tmp_path / "one"), print)
    (out / runner.DONE).write_text("{")
    with pytest.raises(ConfigError, match="a readable JSON object"):
        runner.run_all([run], out, str(tmp_path / "one"), print)
    assert (out / "a").read_text() == "x"


def test_what_a_command_needs_comes_with_it_all_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "runs/passkey/seed_0", "--list"]) == 0
    listed = capsys.readouterr().out
    keys = [line.partition(":")[0] for line in listed.splitlines()]
    assert keys == ["data/passkey_short", "data/passkey_long", "runs/passkey_base/seed_0", "runs/passkey/seed_0"]
    words = shlex.split(listed.splitlines()[-1].partition(": python ")[2])
    assert words == runner.command_of(next(r for r in runs(False, (0,)) if r.key == keys[-1]), Path(OUT), None)


def test_names_of_models_are_readable() -> None:
    assert name("base") == "base, no scaling"
    assert name("yarn_s16") == "YaRN s=16"
    assert name("ntk_by_parts_s16_untrained") == "NTK-by-parts s=16, untrained"
    assert name("yarn_eq18_s2_untrained") == "YaRN, Eq. 18 ramp s=2, untrained"


def test_what_is_committed_is_what_its_numbers_say() -> None:
    found = json.loads((ROOT / "docs/results.json").read_text())
    assert found["claims"] == judged(found)
    from yarn_train.report.markdown import as_markdown

    generated = as_markdown(blocks(found)[1:]).strip()
    assert generated in (ROOT / "docs/results.md").read_text()
