"""Benchmarks by lm-evaluation-harness on our loaded model: the harness's own numbers, kept, resumed, refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import harness_ranks
import pytest
import torch.multiprocessing as mp
import transformers
from harness_ranks import TASKS
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from yarn_train.dist import runtime as dist_runtime
from yarn_train.errors import DataError
from yarn_train.eval.harness import task as harness
from yarn_train.eval.job import Job

pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def scaled(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with YaRN s=4 in its config and weights large enough that answers depend on positions."""
    folder = tmp_path_factory.mktemp("scaled")
    config = transformers.AutoConfig.from_pretrained(tiny_model)
    config.initializer_range = 0.3
    config.max_position_embeddings = 128
    config.rope_parameters = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "rope_theta": 10000.0,
    }
    transformers.set_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def job(model: Path, own_tasks: Path, folder: Path, *labels: str, tasks: list[str], **options: Any) -> Job:
    """On this process alone."""
    return harness_ranks.job(model, own_tasks, folder, dist_runtime.start(), *labels, tasks=tasks, **options)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "harness.json").read_text())


def values(rows: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    return {(row["task"], row["metric"]): row["value"] for row in rows}


@pytest.fixture(scope="module")
def reference(scaled: Path, own_tasks: Path) -> dict[str, Any]:
    """The harness's own transformers model, one request at a time."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    with pytest.MonkeyPatch.context() as patch:
        absent = ModuleType("accelerate")  # it is imported there and not used for a model that is given
        absent.Accelerator = absent.InitProcessGroupKwargs = absent.find_executable_batch_size = None
        patch.setitem(sys.modules, "accelerate", absent)
        patch.setitem(sys.modules, "accelerate.utils", absent)
        absent.get_max_memory = None
        from lm_eval.models.huggingface import HFLM
    model = AutoModelForCausalLM.from_pretrained(scaled).eval()
    own = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(scaled), batch_size=1, max_length=96)
    manager = TaskManager(include_path=str(own_tasks), include_defaults=False)
    results: dict[str, Any] = {"results": {}}
    for name in TASKS:  # the same seeds as ours: each task by itself
        found = lm_eval.simple_evaluate(
            model=own, tasks=[name], num_fewshot=2, task_manager=manager, fewshot_random_seed=5, log_samples=False
        )
        results["results"] |= {k: v for k, v in found["results"].items() if k not in results["results"]}
    return results["results"]


def test_the_numbers_are_those_of_the_harness_itself(reference, scaled, own_tasks, tmp_path, monkeypatch):
    def refused(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a second model is loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refused)
    harness.run(job(scaled, own_tasks, tmp_path, "a", tasks=TASKS))
    rows = [row for row in rows_of(tmp_path) if not row["metric"].endswith("_macro")]
    assert {row["task"] for row in rows} == {*TASKS, "own_twin"}
    for row in rows:
        told = reference[row["task"]]
        assert row["value"] == pytest.approx(told[f"{row['metric']},none"], rel=1e-5), row
        error = told[f"{row['metric']}_stderr,none"]
        assert row["stderr"] == (None if error == "N/A" else pytest.approx(error, rel=1e-5)), row
    assert 0 < values(rows)["own_choice", "acc"] < 1
    assert values(rows)["own_write", "length"] > 0


def test_every_variant_is_asked_the_same_whatever_else_is_asked(scaled, own_tasks, tmp_path):
    made = job(scaled, own_tasks, tmp_path / "two", "base", "b", tasks=["own_text", "own_choice"])
    harness.run(made)
    rows = rows_of(tmp_path / "two")
    first, second = (values([row for row in rows if row["label"] == label]) for label in ("base", "b"))
    assert first == second
    harness.run(job(scaled, own_tasks, tmp_path / "one", "base", tasks=["own_choice"], batch_tokens=1))
    alone = values(rows_of(tmp_path / "one"))
    assert alone == pytest.approx({key: first[key] for key in alone}, rel=1e-5)


def test_what_is_there_stays_and_only_the_rest_is_evaluated(scaled, own_tasks, tmp_path):
    harness.run(job(scaled, own_tasks, tmp_path, "a", tasks=["own_choice"]))
    rows = rows_of(tmp_path)
    rows[0]["value"] = 0.123
    (tmp_path / "harness.json").write_text(json.dumps(rows))
    harness.run(job(scaled, own_tasks, tmp_path, "a", tasks=["own_choice", "own_group"]))
    both = rows_of(tmp_path)
    assert both[: len(rows)] == rows
    assert {row["group"] for row in both[len(rows) :]} == {None, "own_group"}
    nothing = tmp_path / "no weights needed"
    harness.run(job(scaled, own_tasks, tmp_path, "a", tasks=["own_group", "own_choice"], weights=nothing))
    assert rows_of(tmp_path) == both
    harness.run(job(scaled, own_tasks, tmp_path, "a", tasks=["own_choice"], limit=4))
    assert {row["samples"] for row in rows_of(tmp_path)} == {4}
    assert json.loads((tmp_path / "harness.1.json").read_text()) == both
    harness.run(job(scaled, own_tasks, tmp_path, "a", tasks=["own_choice"], limit=4, shots=0))
    assert [row["shots"] for row in rows_of(tmp_path)] == [2] * 3 + [0] * 3


def test_the_papers_four_have_the_papers_shots_and_metrics(scaled, own_tasks, tmp_path):
    """Under the names of the paper's tasks, questions of our own: the real ones are on the hub."""
    for file in ("helpers.py", "own_choice.yaml", "own_twin.yaml"):
        (tmp_path / file).write_text((own_tasks / file).read_text())
    for name, task in (("arc_challenge", "own_choice"), ("hellaswag", "own_twin"), ("truthfulqa_mc2", "own_choice")):
        zero = "num_fewshot: 0\n" if name == "truthfulqa_mc2" else ""
        (tmp_path / f"{name}.yaml").write_text(f"include: {task}.yaml\ntask: {name}\n{zero}")
    (tmp_path / "mmlu.yaml").write_text((own_tasks / "own_group.yaml").read_text().replace("own_group", "mmlu"))
    made = job(scaled, tmp_path, tmp_path / "out", "base", "b", tasks=["paper"], shots=None, max_length=300)
    harness.run(made)
    asked = {(row["task"], row["shots"]) for row in rows_of(tmp_path / "out") if row["group"] is None}
    assert asked == {("arc_challenge", 25), ("hellaswag", 10), ("mmlu", 5), ("truthfulqa_mc2", 0)}
    said = [line.split(": ")[1] for line in made.say if line.startswith("b: ") and "shot: " in line]
    assert said == [
        "arc_challenge acc_norm, 25-shot",
        "hellaswag acc_norm, 10-shot",
        "mmlu acc_macro, 5-shot",
        "truthfulqa_mc2 acc, 0-shot",
    ]
    harness.run(job(scaled, tmp_path, tmp_path / "few", "a", tasks=["paper"], shots=1))
    assert {row["task"]: row["shots"] for row in rows_of(tmp_path / "few")}["truthfulqa_mc2"] == 0
    assert {row["shots"] for row in rows_of(tmp_path / "few")} == {0, 1}


def test_data_of_a_task_that_makes_its_own_has_the_models_length_and_tokenizer(scaled, own_tasks, tmp_path):
    harness.run(job(scaled, own_tasks, tmp_path, "a", tasks=["own_made"], shots=0, max_length=None))
    assert rows_of(tmp_path)[0]["samples"] == 128
    harness.run(job(scaled, own_tasks, tmp_path, "a", tasks=["own_made"], shots=0, max_length=40))
    assert rows_of(tmp_path)[0]["samples"] == 40


def test_prompts_that_are_cut_are_counted(scaled, own_tasks, tmp_path):
    made = job(scaled, own_tasks, tmp_path, "a", tasks=["own_choice"], shots=8, max_length=24)
    harness.run(made)
    assert "a: own_choice: 27 prompts lost their beginning to fit 24 tokens" in made.say


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ("do_sample: false", {}, "do_sample: true, temperature: 0.7 -> generate greedily"),
        ("do_sample: false", {}, "do_sample: false, num_beams: 3 -> generate greedily"),
        ("max_gen_toks: 12", {"max_length": 12}, "max_gen_toks: 12 -> harness.max_length: got 12"),
    ],
)
def test_writing_that_cannot_be_done_as_asked_is_refused(change, options, said, scaled, own_tasks, tmp_path):
    new, message = said.split(" -> ")
    for file in own_tasks.iterdir():
        (tmp_path / file.name).write_text(file.read_text().replace(change, new))
    with pytest.raises(DataError, match=message):
        harness.run(job(scaled, tmp_path, tmp_path / "out", "a", tasks=["own_write"], **options))


class Scripted:
    """A model that always writes the same, and goes on after its end as one of several sharded ones does."""

    batch_tokens = 64

    def __init__(self, tokens: list[int]):
        self.tokens, self.asked = tokens, []

    def continuations(self, prompts):
        self.asked += prompts
        return {slot: self.tokens for batch in prompts for slot in batch.slots}


@pytest.mark.parametrize(("until", "expected"), [([], "ab cd"), (["d"], "ab c"), (["zz", " "], "ab")])
def test_writing_ends_at_the_end_of_text_or_at_a_stop_string(until, expected, tiny_tokenizer):
    from lm_eval.api.instance import Instance

    from yarn_train.eval.harness.language_model import LanguageModel

    written = [*tiny_tokenizer.encode("ab cd"), tiny_tokenizer.eos_token_id, *tiny_tokenizer.encode("ef")]
    model = LanguageModel(tiny_tokenizer, scripted := Scripted(written), max_length=32)
    asked = {"until": until, "max_gen_toks": 9, "do_sample": False}
    requests = [
        Instance("generate_until", {}, (text, dict(asked)), n) for n, text in enumerate(["a b", "abc " * 40, "c d"])
    ]
    assert model.generate_until(requests) == [expected] * 3
    assert model.cut == 1
    for batch in scripted.asked:
        assert batch.tokens.shape[1] <= 32 - 9
        texts = [tiny_tokenizer.decode([i]) for i in sorted(batch.stop)]
        assert all(any(stop in text for stop in [*until, "</s>"]) for text in texts)
        assert "</s>" in texts


def test_answers_that_are_longer_than_the_model_are_refused(scaled, own_tasks, tmp_path):
    with pytest.raises(DataError, match=r"harness.max_length: got 2; allowed: at least an answer's \d+ tokens"):
        harness.run(job(scaled, own_tasks, tmp_path, "a", tasks=["own_choice"], max_length=2))


def test_changed_task_files_begin_anew(scaled, own_tasks, tmp_path):
    for file in own_tasks.iterdir():
        (tmp_path / file.name).write_text(file.read_text())
    harness.run(job(scaled, tmp_path, tmp_path / "out", "a", tasks=["own_choice"]))
    task = tmp_path / "own_choice.yaml"
    task.write_text(task.read_text().replace("Question:", "Quiz:"))
    harness.run(job(scaled, tmp_path, tmp_path / "out", "a", tasks=["own_choice"]))
    assert values(rows_of(tmp_path / "out")) != values(json.loads((tmp_path / "out" / "harness.1.json").read_text()))


def test_tasks_that_run_what_a_model_writes_are_refused(scaled, own_tasks, tmp_path):
    for file in own_tasks.iterdir():
        (tmp_path / file.name).write_text(file.read_text())
    (tmp_path / "own_write.yaml").write_text((own_tasks / "own_write.yaml").read_text() + "unsafe_code: true\n")
    with pytest.raises(DataError, match="got 'own_write, which runs what the model writes'"):
        harness.run(job(scaled, tmp_path, tmp_path / "out", "a", tasks=["own_write"], weights=tmp_path / "nothing"))


def test_a_tokenizer_without_a_first_token_is_refused(tiny_tokenizer):
    from yarn_train.eval.harness.language_model import LanguageModel

    bare = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer)
    with pytest.raises(DataError, match=r"model\.path: got 'a tokenizer with neither'"):
        LanguageModel(bare, Scripted([]), max_length=32)


def test_more_examples_than_there_are_is_one_clear_error_before_weights_are_read(scaled, own_tasks, tmp_path):
    made = job(scaled, own_tasks, tmp_path, "a", tasks=["own_choice"], shots=31, weights=tmp_path / "nothing")
    with pytest.raises(DataError, match=r"harness.shots: got 31; allowed: what the 30 examples of own_choice can give"):
        harness.run(made)


def test_data_that_is_not_here_is_one_clear_error_before_weights_are_read(scaled, own_tasks, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    text = (own_tasks / "own_choice.yaml").read_text()
    (tmp_path / "far.yaml").write_text(
        "\n".join(line for line in text.replace("path: json", "path: nobody/quiz").splitlines() if "kwargs" not in line)
    )
    made = job(scaled, tmp_path, tmp_path / "out", "a", tasks=["own_choice"], weights=tmp_path / "nothing")
    expected = r"harness.tasks: got 'own_choice'; allowed: tasks whose data can be read; nobody/quiz: .*HF_HOME"
    with pytest.raises(DataError, match=expected):
        harness.run(made)
    (line,) = harness.problems(made.cfg, made.base)
    assert line.startswith("harness.tasks: got 'own_choice'; allowed: tasks whose data can be read; nobody/quiz: ")


@pytest.mark.parametrize(("offline", "tried"), [(False, ["nobody/a"]), (True, ["nobody/a", "nobody/b"])])
def test_a_hub_that_does_not_answer_is_asked_once(offline, tried, tiny_model, tmp_path, monkeypatch):
    asked = []

    def unreachable(path: str, *args: Any, **kwargs: Any) -> None:
        asked.append(path)
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    for name in "ab":
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\ndataset_path: nobody/{name}\n")
    made = job(tiny_model, tmp_path, tmp_path / "out", "a", tasks=["a", "b"])
    assert [f"nobody/{line[20]}" for line in harness.problems(made.cfg, made.base)] == tried == asked


@pytest.fixture(scope="module")
def ranks(scaled, own_tasks, tmp_path_factory):
    """What two ranks wrote."""
    out = tmp_path_factory.mktemp("ranks")
    mp.spawn(harness_ranks.main, (str(scaled), str(own_tasks), str(out)), nprocs=harness_ranks.WORLD)
    return out


@pytest.mark.parametrize("name", ["whole", "sharded"])
def test_two_ranks_find_what_one_finds(name, ranks, scaled, own_tasks, tmp_path):
    harness.run(job(scaled, own_tasks, tmp_path, "a", tasks=TASKS))
    one, two = rows_of(tmp_path), rows_of(ranks / name)
    assert [(row["task"], row["metric"], row["samples"]) for row in two] == [
        (row["task"], row["metric"], row["samples"]) for row in one
    ]
    assert values(two) == pytest.approx(values(one), rel=1e-5)
    assert not (ranks / "nothing is written here").exists()


def test_what_stops_the_rank_that_asks_stops_all(ranks):
    for rank in range(harness_ranks.WORLD):
        assert (ranks / f"no room, {rank}.txt").read_text().startswith("harness.max_length: got 12")
