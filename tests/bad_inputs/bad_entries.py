"""The other programs: the same words get the same answers."""

from __future__ import annotations

from collections.abc import Callable

from bad_inputs.bad_input import Bad, Place, nothing

from yarn_train import cli, export, prepare
from yarn_train.doctor import __main__ as doctor
from yarn_train.eval import __main__ as evaluate
from yarn_train.plan import __main__ as plan
from yarn_train.report import __main__ as report

ENTRIES: dict[str, Callable[[], object]] = {
    "python -m yarn_train.eval": lambda: cli.run(
        evaluate.evaluate_model, evaluate.start_workers, evaluate.check_evaluation
    ),
    "python -m yarn_train.plan": lambda: cli.run(plan.plan_run, check=plan.check_plan),
    "python data/prepare.py": prepare.main,
    "python -m yarn_train.export": export.main,
    "python -m yarn_train.report": report.main,
    "python -m yarn_train.doctor": doctor.main,
}


def bad(program: str, *words: str, spoil: Callable[[Place], object] = nothing, code: int = 2) -> Bad:
    told = " ".join(words).replace("{w}", "/w")
    spoiled: Callable[[Place], None] = lambda place: (spoil(place), None)[1]  # noqa: E731
    return Bad("Other programs", f"{program} {told}", words, spoiled, code=code, entry=ENTRIES[program])


EVAL, PLAN, PREPARE, EXPORT, REPORT, DOCTOR = ENTRIES
CASES = [
    bad(EVAL, "eval.windws=[64]", "model.path={w}/nothing", "parallel.context=2"),
    bad(EVAL, "eval=none", "model.path={w}/model", "run.dir={w}/run"),
    bad(PLAN, "plan.gpsu=8", "plan.gpu=h1000", "experiment=smoke", "model.path={w}/nothing"),
    bad(PREPARE, "data.sorce=text", "data.path={w}/nothing", "model.path={w}/nothing"),
    bad(PREPARE, "--show", "many"),
    bad(PREPARE, "shard=5/4"),
    bad(EXPORT, "{w}/nothing", "{w}/out"),
    bad(EXPORT, "{w}/model", "{w}/books"),
    bad(REPORT, "{w}/nothing", code=1),
    bad(DOCTOR, "--experiment", "smoek"),
    bad(DOCTOR, "--experiment", "smoke", "train.stpes=4"),
]
