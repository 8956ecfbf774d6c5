"""Sweeps that cannot be: nothing of them is left, so that what is corrected starts in the same folder."""

from __future__ import annotations

from bad_inputs.bad_input import Bad


def sweep(*given: str) -> Bad:
    return Bad("Sweeps", " ".join(("-m", *given)), ("-m", *given))


JOBLIB = ("rope.alpha=1,2", "hydra/launcher=joblib")
SUBMITIT = ("rope.alpha=1,2", "hydra/launcher=submitit_local")
OPTUNA = ("rope.alpha=interval(1,4)", "hydra/sweeper=optuna")
CASES = [
    Bad("Sweeps", "rope.alpha=1,2 optim.lr=1e-5,2e-5 without -m", ("rope.alpha=1,2", "optim.lr=1e-5,2e-5")),
    sweep("rope.alpha=1,2", "hydra/launcher=jobib"),
    sweep("rope.alpha=1,2", "hydra.launcher.n_jobs=2"),
    sweep("rope.alpha=1,2", "hydra/launcher=basic,joblib"),
    sweep("rope.alpha=1,2", "hydra.launcher.cores=2"),
    sweep(*JOBLIB, "hydra.launcher.njobs=2"),
    sweep(*JOBLIB, "hydra.launcher.n_jobs=two"),
    sweep("rope.alpha=1,2", "hydra/sweeper=optuna", "hydra.sweeper.n_trial=3", "hydra.sweeper.n_jobs=1.5"),
    sweep(*JOBLIB, "hydra.launcher.n_jobs=0"),
    sweep(*JOBLIB, "hydra.launcher.prefer=gpus"),
    sweep(*JOBLIB, "hydra.launcher.require=sharedmem"),
    sweep(*JOBLIB, "hydra.launcher.batch_size=0"),
    sweep(*SUBMITIT, "hydra.launcher.timeout_min=0", "hydra.launcher.cpus_per_task=0"),
    sweep(*OPTUNA, "hydra.sweeper.n_trials=0", "hydra.sweeper.sampler=bayes"),
    sweep(*OPTUNA, "hydra.sweeper.sampler=grid"),
    sweep("rope.alpha=interval(4,1)", "hydra/sweeper=optuna"),
]
