"""Whether the evaluations that are asked for can run: found before anything loads, also where they end a training."""

from __future__ import annotations

from transformers import PretrainedConfig

from ..config import Config
from ..errors import problem
from ..eval.tasks import task_problems
from ..model.matrices import length_problems
from ..options_eval import STUDIES, TASKS
from ..problem_list import ProblemList
from ..rope import hf as rope_hf


def problems_at_the_end(whole: Config, base: PretrainedConfig | None) -> list[str]:
    """Of a training that evaluates when it is done; `base` is the unscaled config, None where it cannot be read."""
    if not whole.eval.enabled:
        return []
    if studies := [name for name in whole.eval.tasks if name in STUDIES]:
        fix = (
            "leave it out here; it needs no training, only an unscaled base: "
            f"python -m yarn_train.eval eval={studies[0]} model.path={whole.model.path}"
        )
        return [problem("eval.tasks", studies[0], " | ".join(TASKS), fix)]
    return [] if base is None else of_tasks(whole, base) + _matrix_problems(whole, base, whole.rope.factor)


def problems_of_a_model(cfg: Config, base: PretrainedConfig) -> list[str]:
    """Of one model that is evaluated as its config reads, or studied."""
    studies = [name for name in cfg.eval.tasks if name in STUDIES]
    kind = rope_hf.method_of(base)[0]
    if studies and kind != "none":
        got = f"a model whose RoPE is scaled already ({kind})"
        allowed = f"an unscaled base, as eval.tasks={studies[0]} scales it"
        return [problem("model.path", got, allowed, "name the base that it was made from")]
    found = _length_problems(cfg, base) or of_tasks(cfg, base)
    return found or _matrix_problems(cfg, base, rope_hf.method_of(base)[1])


def of_tasks(cfg: Config, base: PretrainedConfig) -> list[str]:
    """What the tasks say, each problem once."""
    found = ProblemList()
    with found.collecting():
        found.add(task_problems(cfg, base))
    return found.lines


def _matrix_problems(cfg: Config, base: PretrainedConfig, factor: float) -> list[str]:
    """Windows and prompts too long for eager attention; `factor` is s of the longest that is evaluated by default."""
    if cfg.model.attention != "eager":
        return []
    default = int((rope_hf.pretrained_length(base) or 0) * factor)
    asked = {"perplexity": ("eval.windows", cfg.eval.windows), "passkey": ("passkey.lengths", cfg.passkey.lengths)}
    found = ProblemList()
    for task, (option, lengths) in asked.items():
        if task in cfg.eval.tasks:
            found.add(length_problems(option, max(lengths, default=default), 1, base.num_attention_heads))
    return found.lines


def _length_problems(cfg: Config, base: PretrainedConfig) -> list[str]:
    """Sizes that follow from a length that the model's config does not tell."""
    if rope_hf.pretrained_length(base) is not None:
        return []
    found = []
    for task, key, given in (
        ("perplexity", "eval.windows", cfg.eval.windows),
        ("passkey", "passkey.lengths", cfg.passkey.lengths),
    ):
        if task in cfg.eval.tasks and not given:
            fix = f"its config does not say how long it was pretrained: {key}=[4096,8192]"
            found.append(problem(key, [], f"explicit {key.partition('.')[2]} for this model", fix))
    return found
