"""Where the time of a profiled step goes: the largest costs, in groups that a person knows. Never imports torch."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

LARGEST, NAMED = 10, 0.03  # so many costs are listed, and all with a larger share of the step
ATTENTION, PRODUCTS, OPTIMIZER = "attention kernels", "matrix products", "optimizer"
COMMUNICATION, COPIES, OTHER = "communication", "copies", "other"
LONGEST = 72  # characters of a cost's name

# In this order: what is inside of attention, the optimizer or a gather belongs there, whatever it is called. The last
# column says whether the operators around count too.
GROUPS: tuple[tuple[str, re.Pattern[str], bool], ...] = (
    (COMMUNICATION, re.compile(r"nccl|gloo|c10d|fsdp::|all_?reduce|reduce_?scatter|all_?gather|all_?to_?all"), True),
    (ATTENTION, re.compile(r"yarn_train::|attention|flash|fmha|sdpa"), True),
    (OPTIMIZER, re.compile(r"optimizer\.step|adam|_foreach_|multi_tensor_apply|vector_norm"), True),
    (
        COPIES,
        re.compile(r"memcpy|memset|^(?!.*fused).*copy|aten::(to|clone|contiguous|cat|fill_|zero_)$"),
        False,
    ),
    (
        PRODUCTS,
        re.compile(r"gemm|nvjet|xmma|cublas|cutlass|mkldnn|aten::(mm|bmm|addmm|matmul|linear)\b"),
        False,
    ),
)


@dataclass(frozen=True)
class Event:
    """What took time: an operator on the CPU (without those that it called), or a kernel on a GPU.

    Attributes:
        seconds: of all its calls.
        within: names of the operators around it, the innermost first.
        operator: that launched the kernel; empty for what is an operator itself.
        shapes: of its inputs, for a person; empty where they are not recorded.
    """

    name: str
    seconds: float
    within: tuple[str, ...] = ()
    operator: str = ""
    calls: int = 1
    shapes: str = ""


@dataclass(frozen=True)
class Cost:
    """All events of one name in one step: `seconds` and `calls` per step, `share` of the step's duration."""

    name: str
    group: str
    seconds: float
    share: float
    calls: float


@dataclass(frozen=True)
class Costs:
    """Of one rank.

    Attributes:
        step_seconds: duration of a profiled step; profiling itself makes it longer.
        rest: what the time is called in which none of the events ran, and its seconds per step.
        costs: the largest first.
    """

    step_seconds: float
    rest: tuple[str, float]
    costs: tuple[Cost, ...]

    def groups(self) -> list[tuple[str, float, float]]:
        """(group, seconds per step, share) with the rest, the largest first; shares add up to more than 1 where a GPU
        does several things at once."""
        sums: dict[str, float] = defaultdict(float)
        for cost in self.costs:
            sums[cost.group] += cost.seconds
        sums[self.rest[0]] += self.rest[1]
        rows = [(name, seconds, seconds / self.step_seconds) for name, seconds in sums.items()]
        return sorted(rows, key=lambda row: -row[1])

    def largest(self) -> list[Cost]:
        """The ten largest, and all others above 3 %."""
        return [cost for place, cost in enumerate(self.costs) if place < LARGEST or cost.share > NAMED]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: everything, the small ones too."""
        return {
            "step_seconds": self.step_seconds,
            "groups": [dict(zip(("group", "seconds", "share"), row, strict=True)) for row in self.groups()],
            "costs": [asdict(cost) for cost in self.costs],
        }


def costs_of(events: Iterable[Event], steps: int, seconds: float, rest: tuple[str, float]) -> Costs:
    """Add up the events of `steps` steps that took `seconds` together; `rest` is (name, seconds of all steps)."""
    spent: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event in events:
        sums = spent[shown(event), group_of(event)]
        sums[0] += event.seconds
        sums[1] += event.calls
    costs = [
        Cost(name, group, took / steps, took / seconds, calls / steps) for (name, group), (took, calls) in spent.items()
    ]
    return Costs(
        seconds / steps, (rest[0], rest[1] / steps), tuple(sorted(costs, key=lambda cost: (-cost.seconds, cost.name)))
    )


def group_of(event: Event) -> str:
    """What kind of work it is, by its name and, for attention and the optimizer, by what is around it."""
    for group, pattern, inside in GROUPS:
        names = (event.name, event.operator, *(event.within if inside else ()))
        if any(pattern.search(name.lower()) for name in names):
            return group
    return OTHER


def shown(event: Event) -> str:
    """A name for a person: a kernel's without namespaces and template arguments, behind what launched it."""
    name = event.name
    if event.operator:
        bare = re.sub(r"<.*|\(.*", "", name.removeprefix("void ")).rpartition("::")[2].strip()
        name = f"{event.operator}: {bare or name}"
    name = name if len(name) <= LONGEST else f"{name[: LONGEST - 3]}..."
    return f"{name} {event.shapes}" if event.shapes else name


def markdown(title: str, costs: Costs) -> str:
    """A page with both tables, groups and largest costs."""
    return "\n\n".join([f"# {title}", *(_table(header, rows) for header, rows in tables(costs))]) + "\n"


def text(costs: Costs) -> list[str]:
    """The same for a terminal, a line each."""
    lines = []
    for header, rows in tables(costs):
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
        for row in [header, *rows]:
            cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            lines.append("  " + "  ".join(cells).rstrip())
        lines.append("")
    return lines[:-1]


Table = tuple[Sequence[str], list[list[str]]]


def tables(costs: Costs) -> list[Table]:
    """(header, rows) of the groups, and of the largest costs."""
    groups = [[name, _milliseconds(seconds), f"{share:.1%}"] for name, seconds, share in costs.groups()]
    groups.append(["a step, profiled", _milliseconds(costs.step_seconds), "100.0%"])
    named = [
        [cost.name, _milliseconds(cost.seconds), f"{cost.share:.1%}", f"{cost.calls:g}", cost.group]
        for cost in costs.largest()
    ]
    return [
        (("what", "ms per step", "share"), groups),
        (("largest costs", "ms per step", "share", "calls per step", "part of"), named),
    ]


def _table(header: Sequence[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *(["---:"] * (len(header) - 1))], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.2f}"
