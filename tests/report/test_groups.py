from __future__ import annotations

import json
import re
import shutil

import pytest
import yaml
from report_folders import options, write_run, write_sweep

from yarn_train.report.__main__ import main
from yarn_train.report.differences import common, differing
from yarn_train.report.group_page import commands
from yarn_train.report.groups import collect_group, collect_several
from yarn_train.report.terminal import show_comparison, show_report
from yarn_train.report.write import write_report

AXES = {"rope.alpha": [1, 2], "rope.beta": [16, 32, 64]}


@pytest.fixture
def sweep(tmp_path):
    """6 jobs, the second of which failed."""
    return write_sweep(tmp_path / "sweep", AXES, steps=20, fail=[1])


def test_a_sweep_is_read_whole(sweep):
    group = collect_group(sweep)
    assert [m.status for m in group.members] == ["complete", "failed", *["complete"] * 4]
    assert group.axes == ("rope.alpha", "rope.beta")
    assert group.best().name == "alpha_2__beta_32"
    assert group.missing() == 0
    assert group.problems == ()


def test_one_damaged_job_is_named_and_the_others_reported(sweep, capsys):
    (sweep / "alpha_1__beta_16" / "01_s16" / "metrics.jsonl").write_text('nothing\n{"step": 1}\n')
    (sweep / "jobs" / "alpha_1__beta_64.json").write_text("{")
    (sweep / "alpha_2__beta_16" / "eval" / "perplexity.json").write_text("")
    shutil.rmtree(sweep / "alpha_2__beta_64")
    show_report(sweep)
    text = (sweep / "report" / "report.md").read_text()
    failures = text[text.index("## What did not end well") : text.index("## rope.alpha and rope.beta")]
    assert re.findall(r"\[(alpha\S*)\]", failures) == [
        "alpha_1__beta_16", "alpha_1__beta_32", "alpha_2__beta_16", "alpha_1__beta_64",
    ]  # fmt: skip
    for said in ("metrics.jsonl: got", "loss is not finite", "perplexity.json: got", "alpha_1__beta_64.json: got"):
        assert said in failures
    assert "alpha_2__beta_32 (rope.alpha = 2, rope.beta = 32): perplexity at 8192 = 5.2." in text
    out = capsys.readouterr().out
    assert "best: alpha_2__beta_32" in out
    assert "alpha_2__beta_64" in out  # its record is there


def test_a_damaged_sweep_record_leaves_a_folder_of_runs(sweep):
    (sweep / "sweep.json").write_text("[]")
    group = collect_group(sweep)
    assert len(group.members) == 6
    assert group.axes == ("rope.alpha", "rope.beta")
    assert "sweep.json" in group.problems[0]
    write_report(sweep)
    assert "## What could not be read" in (sweep / "report" / "report.md").read_text()


def test_a_sweep_that_has_just_begun(tmp_path):
    sweep = write_sweep(tmp_path / "sweep", AXES, steps=20, left_out=range(6))
    assert write_report(sweep)
    text = (sweep / "report" / "report.md").read_text()
    assert "No job has begun." in text
    assert "Sweep of 6 jobs (grid, launcher basic): 6 not begun." in text


def test_a_folder_of_plain_runs_is_compared_by_what_differs(tmp_path):
    for number, alpha in enumerate([1.0, 2.0, 4.0]):
        write_run(tmp_path / str(number), options(rope__alpha=alpha), steps=20, final=5.5 - alpha / 10, seed=number)
    write_run(tmp_path / "killed", options(rope__alpha=8.0), steps=5, final=None, exit_reason=None)
    group = collect_group(tmp_path)
    assert group.axes == ("rope.alpha",)
    assert group.metric == "perplexity at 8192"
    assert [m.objective for m in group.members] == pytest.approx([5.4, 5.3, 5.1, None])
    assert [m.status for m in group.members] == ["complete"] * 3 + ["unknown"]
    write_report(tmp_path)
    text = (tmp_path / "report" / "report.md").read_text()
    assert "Comparison of 4 runs: 3 complete, 1 unfinished." in text


def test_runs_without_evaluation_are_compared_by_their_losses(tmp_path):
    for number, name in enumerate("ab"):
        write_run(tmp_path / name, options(), steps=20, final=None, seed=number)
    group = collect_group(tmp_path)
    assert group.metric == "training loss, last tenth"
    losses = [stage.series("loss") for m in group.members for stage in m.run.stages]
    assert [m.objective for m in group.members] == pytest.approx([sum(each[-2:]) / 2 for each in losses])


def test_several_folders_become_one_comparison(sweep, tmp_path, capsys):
    other = write_run(tmp_path / "other" / "run", options(optim__lr=1e-3), steps=20, final=5.0, seed=9)
    same = write_run(tmp_path / "again" / "run", options(), steps=20, final=5.6, seed=3)
    show_comparison([sweep, other, same], tmp_path / "out")
    group = collect_several([sweep, other, same])
    assert len(group.members) == 8
    assert {m.name for m in group.members[-2:]} == {"other/run", "again/run"}
    text = (tmp_path / "out" / "report.md").read_text()
    assert "[sweep/alpha_1__beta_16](../sweep/alpha_1__beta_16)" in text
    assert "Comparison of 8 runs: 7 complete, 1 failed." in text
    assert str(tmp_path / "out" / "index.html") in capsys.readouterr().out
    (sweep / "alpha_1__beta_16" / "report").mkdir()
    (sweep / "alpha_1__beta_16" / "report" / "index.html").write_text("x")
    show_comparison([sweep, other], tmp_path / "out")  # its own report may be replaced
    assert "(../sweep/alpha_1__beta_16/report/index.html)" in (tmp_path / "out" / "report.md").read_text()


def test_a_comparison_overwrites_nothing_but_a_report(sweep, run_folder, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("<h1>my page</h1>")
    assert main([str(sweep), str(run_folder), "-o", str(tmp_path / "mine")]) == 1
    assert "allowed: a new or empty folder, or an earlier report" in capsys.readouterr().err
    assert (tmp_path / "mine" / "index.html").read_text() == "<h1>my page</h1>"
    assert main([str(sweep), str(run_folder), "-o", str(sweep)]) == 1
    assert main([str(sweep), str(run_folder)]) == 1
    assert "name one, such as -o outputs/comparison" in capsys.readouterr().err
    assert main([str(sweep), str(run_folder), str(tmp_path / "nothing"), "-o", str(tmp_path / "new")]) == 0
    assert "no such folder" in (tmp_path / "new" / "report.md").read_text()
    assert main([str(tmp_path / "nothing"), str(tmp_path / "mine"), "-o", str(tmp_path / "more")]) == 1
    assert not (tmp_path / "more").exists()


def test_what_to_type_for_the_best_job(sweep):
    group = collect_group(sweep)
    alone, longer = commands(group.best())
    assert alone == (
        "python train.py experiment=extend train.steps=400 rope.alpha=2 rope.beta=32 run.name=alpha_2__beta_32_alone"
    )
    assert longer == (
        "python train.py experiment=extend rope.alpha=2 rope.beta=32 train.steps=4000 run.name=alpha_2__beta_32_longer"
    )


def test_the_table_of_jobs_sorts_by_values_not_texts(sweep):
    write_report(sweep)
    page = (sweep / "report" / "index.html").read_text()
    table = page[page.index('<table class="sortable">') :].partition("</table>")[0]
    assert 'data-v="1800">30 min 0 s<' in table
    assert table.count("<tr") == 7
    assert '<td data-v="5.2"><b>5.200</b></td>' in table


def test_options_that_differ_and_those_that_do_not():
    a, b = options(rope__alpha=1), options(rope__alpha=2.0)
    b["run"]["name"] = "another"
    assert differing([a, b, None]) == {"rope.alpha": [1, 2.0, None]}
    assert differing([a, options(rope__alpha=1.0)]) == {}
    old = json.loads(json.dumps(a))
    del old["tracking"]  # of a version without it: its defaults had no effect then
    assert differing([a, old]) == {}
    assert common([old, a])["tracking.wandb"] == "auto"
    assert common([a, b])["rope.beta"] == 32.0
    assert "rope.alpha" not in common([a, b])


def test_differences_of_many_runs_are_counted(tmp_path):
    folder = write_sweep(tmp_path / "sweep", {"rope.alpha": [1, 2, 4, 8], "rope.beta": [16, 32]}, steps=4)
    path = folder / "alpha_1__beta_16" / "config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "optim": {"lr": 0.5}}))
    write_report(folder)
    text = (folder / "report" / "report.md").read_text()
    assert "| rope.beta | 16 (4 runs); 32 (4 runs) |" in text
    assert "only alpha_1__beta_16 has 0.5" in text
    study = tmp_path / "study"
    for number in range(8):
        write_sweep(study, {"rope.alpha": [1 + number / 4]}, steps=4)
    write_report(study)
    assert "| rope.alpha | 1 to 2.75 (8 values) |\n" in (study / "report" / "report.md").read_text()


def test_markdown_and_pictures_of_a_sweep(sweep):
    written = write_report(sweep)
    assert [p.name for p in written] == ["index.html", "report.md", "sweep.png", "perplexity.png", "losses.png"]
    text = written[1].read_text()
    assert re.findall(r"!\[.*?\]\((.*?)\)", text) == ["sweep.png", "perplexity.png", "losses.png"]
    assert "python train.py -m experiment=extend train.steps=400 rope.alpha=1,2 rope.beta=16,32,64" in text
    assert "exit code 4" in text
    assert str(sweep / "alpha_1__beta_32" / "job.log") in text


def test_every_job_can_have_its_own_report_that_the_sweep_links_to(sweep, run_folder, capsys):
    (sweep / "alpha_1__beta_64" / "01_s16" / "metrics.jsonl").write_text('nothing\n{"step": 1}\n')
    assert main([str(sweep), "--jobs"]) == 0
    assert len(list(sweep.glob("*/report/index.html"))) == 5
    text = (sweep / "report" / "report.md").read_text()
    assert len(set(re.findall(r"\((\.\./[^)]*/report/index\.html)\)", text))) == 5
    assert main([str(run_folder), "--jobs"]) == 1
    assert "allowed: a sweep or a folder of runs" in capsys.readouterr().err
    assert main([str(sweep), str(run_folder), "--jobs"]) == 1


def test_markdown_has_no_heading_with_nothing_below(sweep):
    text = write_report(sweep)[1].read_text()
    for heading in re.findall(r"^#+ .*$", text, re.MULTILINE):
        below = text.split(f"{heading}\n", 1)[1].strip()
        assert below, heading
        assert not below.startswith("#"), heading


def test_links_are_quoted(sweep):
    (sweep / "alpha_1__beta_16").rename(sweep / "a <b> &")
    (sweep / "jobs" / "alpha_1__beta_16.json").unlink()
    write_report(sweep)
    page = (sweep / "report" / "index.html").read_text()
    assert '<a href="../a%20%3Cb%3E%20%26">a &lt;b&gt; &amp;</a>' in page
