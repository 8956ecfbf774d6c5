"""``hydra/sweeper=optuna``: a study by Optuna chooses the values; see :mod:`yarn_train.sweep.study`.

Hydra imports this file in every start and takes sweepers from ``hydra_plugins`` only, so it imports what is heavy late.
"""

# no postponed annotations: Hydra runs this file before it is in sys.modules, where dataclasses would look them up
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.utils import JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class OptunaSweeperConf:
    """Options of ``hydra.sweeper``.

    Attributes:
        n_trials: jobs with a result that the study is to have; those of earlier starts count.
        n_jobs: jobs that are started together; the study learns from them when all have ended.
        sampler: tpe, random or grid.
        seed: of the sampler; null draws other values every time.
        startup_trials: of tpe: jobs with random values before it learns from them.
        pruner: median, hyperband or none.
        prune_after_trials: of median: jobs that must have ended before one is pruned.
        prune_after_steps: steps that every job may make.
        prune_every: steps between two reports of a job's loss.
        storage: database by its URL; null is <sweep>/study.db.
        study_name: name of the study; null is that of the sweep's folder.
        params: option -> choice(a,b) | range(a,b) | interval(a,b) | tag(log,interval(a,b)); the command line's win.
    """

    _target_: str = "hydra_plugins.yarn_train.optuna_sweeper.OptunaSweeper"
    n_trials: int = 20
    n_jobs: int = 1
    sampler: str = "tpe"
    seed: int | None = 0
    startup_trials: int = 5
    pruner: str = "median"
    prune_after_trials: int = 3
    prune_after_steps: int = 10
    prune_every: int = 5
    storage: str | None = None
    study_name: str | None = None
    params: dict[str, str] | None = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=OptunaSweeperConf, provider="yarn_train")


class OptunaSweeper(Sweeper):
    """Asks a study for values and has Hydra's launcher run them."""

    def __init__(self, params: Mapping[str, str] | None = None, **settings: Any) -> None:
        self.params, self.given = dict(params or {}), settings
        self.hydra_context: HydraContext | None = None
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's: before :meth:`sweep`."""
        from hydra.core.plugins import Plugins

        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the study to its end; a job that fails ends nothing but itself."""
        from yarn_train import cli
        from yarn_train.errors import YarnTrainError

        try:
            self._sweep(arguments)
        except YarnTrainError as error:
            cli.fail(error)

    def _sweep(self, arguments: list[str]) -> None:
        from yarn_train.sweep.names import job_name
        from yarn_train.sweep.record import read_job
        from yarn_train.sweep.settings import Settings
        from yarn_train.sweep.trials import run_study

        assert self.config is not None
        assert self.launcher is not None
        launcher, folder = self.launcher, Path(str(self.config.hydra.sweep.dir))
        folder.mkdir(parents=True, exist_ok=True)
        overrides = parsed(self.params, arguments)
        fixed = [word for word in overrides.values() if not word.is_sweep_override()]
        common = [f"{word.get_key_element()}={word.get_value_element_as_str()}" for word in fixed]
        keys = {key: word.get_key_element() for key, word in overrides.items()}

        def words(values: Mapping[str, str]) -> list[str]:
            return [f"{keys[key]}={value}" for key, value in values.items()]

        def name_of(values: Mapping[str, str]) -> str:
            told = OverridesParser.create().parse_overrides(words(values))
            return job_name({key: word.value() for key, word in zip(values, told, strict=True)})

        def launch(batch: Sequence[dict[str, str]], begun: int) -> None:
            jobs = [[*common, *words(values)] for values in batch]
            self.validate_batch_is_legal(jobs)
            for values, done in zip(batch, launcher.launch(jobs, initial_job_idx=begun), strict=True):
                if done.status == JobStatus.FAILED and read_job(folder, name_of(values)) is None:
                    _ = done.return_value  # raises what kept it from beginning

        run_study(folder, Settings(**self.given), axes(overrides), name_of, launch, print)


def parsed(params: Mapping[str, str], arguments: Sequence[str]) -> dict[str, Override]:
    """Option -> what is said of it last, in the configuration or on the command line."""
    words = [f"{key}={value}" for key, value in params.items()] + list(arguments)
    return {word.key_or_group: word for word in OverridesParser.create().parse_overrides(words)}


def axes(overrides: Mapping[str, Override]) -> dict[str, Any]:
    """Option -> :class:`yarn_train.sweep.space.Axis` of what is swept.

    Raises:
        ConfigError: an interval with nothing in it.
    """
    from yarn_train import multirun

    swept = [(key, word) for key, word in overrides.items() if word.is_sweep_override()]
    ordered = sorted(swept, key=lambda one: multirun.place(multirun.axis_of(one[1])))  # job names depend on it
    return {key: _axis(key, word) for key, word in ordered}


def _axis(key: str, word: Override) -> Any:
    from yarn_train.sweep import space

    value = word.value()
    if isinstance(value, IntervalSweep):
        assert value.start is not None
        assert value.end is not None
        whole = isinstance(value.start, int) and isinstance(value.end, int)
        return space.interval(key, value.start, value.end, "log" in value.tags, whole)
    values = list(word.sweep_string_iterator())
    if isinstance(value, RangeSweep) and not value.shuffle and len(values) > 1:
        numbers = sorted(float(text) for text in values)
        whole = all(isinstance(end, int) for end in (value.start, value.stop, value.step))
        return space.Between(numbers[0], numbers[-1], whole=whole, step=abs(float(value.step)))
    return space.Choices(tuple(dict.fromkeys(values)))
