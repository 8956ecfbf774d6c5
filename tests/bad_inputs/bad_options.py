"""Options that are wrong in themselves, in words or with each other."""

from __future__ import annotations

from bad_inputs.bad_input import Bad

WORDS = "The command line"
VALUES = "Values of options"
RULES = "Options that contradict each other"
STAGES = "Stages"


def words(title: str, *given: str) -> Bad:
    return Bad(WORDS, title, given)


def value(word: str) -> Bad:
    return Bad(VALUES, word, (word,))


def rule(*given: str) -> Bad:
    return Bad(RULES, " ".join(given), given)


def stages(title: str, *given: str) -> Bad:
    return Bad(STAGES, title, given)


CASES = [
    words("a misspelt option: train.stpes=5", "train.stpes=5"),
    words("an option of another section: train.lr=1e-5", "train.lr=1e-5"),
    words("a section without an option: schedule=4", "schedule=4"),
    words("a value for a whole section: optim=fast", "optim=fast"),
    words("a group's option that does not exist: data=pg91", "data=pg91"),
    words("an experiment that does not exist: experiment=quickstrat", "experiment=quickstrat"),
    words("a value that Hydra cannot read: optim.betas=[0.9", "optim.betas=[0.9"),
    words("a reference to nothing: run.name=${nam}", "run.name=${nam}"),
    words("an option without a value: train.steps", "train.steps"),
    words("an option that is taken away: ~train.steps", "~train.steps"),
    words("a group that is taken away: ~data", "~data"),
    words("two options of one group: data=[pg19,stdlib]", "data=[pg19,stdlib]"),
    words("no experiment: experiment=null", "experiment=null"),
    words(
        "all at once: two misspelt options, a wrong value, a missing model, a missing package's option and a wrong "
        "number of ranks",
        *("train.stpes=5", "optim.lrr=1", "optim.lr=-1", "model.path={w}/nothing", "memory.loss=fused"),
        "parallel.context=3",
    ),
    value("eval.windows=[0]"),
    value("run.seed=99999999999999999999"),
    value("rope.factor=1e308"),
    value("train.steps=99999999999999999999999999"),
    value("train.global_batch_size=10000000000000000000"),
    value("train.steps=many"),
    value("train.steps=-1"),
    value("train.steps=2.5"),
    value("train.steps=null"),
    value("train.steps=true"),
    value("train.global_batch_size=-1"),
    value("train.max_skipped=-1"),
    value("train.spike_factor=1"),
    value("optim.lr=nan"),
    value("optim.lr=inf"),
    value("optim.lr=-1e-5"),
    value("optim.lr=fast"),
    value("optim.betas=0.9"),
    value("optim.betas=[0.9]"),
    value("optim.betas=[0.9,a]"),
    value("optim.betas=[0.9,1.0]"),
    value("optim.eps=0"),
    value("adapter.rank=0"),
    value("adapter.rank=4"),
    rule("adapter.name=lora", "engine.name=deepspeed"),
    rule("adapter.name=lora", "adapter.targets=[c_attn]"),
    value("model.revision=v1"),
    value("rope.sliding_window=wide"),
    value("rope.sliding_window=64"),
    value("model.base_rope=maybe"),
    value("rope.factor=0.5"),
    value("rope.factor=inf"),
    value("rope.method=yran"),
    value("rope.temperature=0"),
    value("rope.temperature=-1"),
    value("rope.temperature=nan"),
    value("rope.temperature=warm"),
    value("rope.alpha=40"),
    value("data.seq_len=1"),
    value("data.held_out=1"),
    value("checkpoint.keep=0"),
    value("eval.windows=[64.5]"),
    value("model.dtype=bf16"),
    value("model.path=null"),
    value("run.max_hours=0"),
    value("run.allow_change=[optim.lrr]"),
    rule("schedule.warmup_steps=5"),
    rule("rope.method=none"),
    rule("data.source=mixture"),
    rule("data.source=stdlib"),
    rule("launch.max_restarts=3"),
    rule("launch.nnodes=2"),
    rule("launch.nproc_per_node=all"),
    rule("launch.dry_run=true"),
    rule("engine.zero_stage=2"),
    rule("memory.offload=true"),
    rule("parallel.context=4", "parallel.ulysses=3"),
    rule("train.micro_batch_size=3"),
    rule("profile.steps=2", "profile.start=1000000"),
    rule("profile.steps=1", "profile.start=1", "profile.ranks=[1]"),
    rule("data.seq_len=8388608", "memory.loss=full"),
    stages("stages that are no section", "curriculum.stages=[a,b]"),
    stages("a stage that is no section", "+curriculum.stages.a=4"),
    stages("an option that a stage does not have", "+curriculum.stages.a.rope.fcator=4"),
    stages("a section that a stage cannot have", "+curriculum.stages.a.model.path=x"),
    stages("a name that is no folder's", "+curriculum.stages={a/b: {rope: {factor: 2}}}"),
    stages("rope.factor for all stages", "+curriculum.stages.a.rope.factor=4", "rope.factor=4"),
]
