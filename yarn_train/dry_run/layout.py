"""Which groups of ranks stay on one machine's links, which cross the network, and what would keep them at home."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PretrainedConfig

from .. import config as schema
from ..config import Config
from ..dist.mesh import DIMENSIONS, ulysses_size
from ..errors import ConfigError
from ..plan.estimate import Target
from ..plan.machines import fixed_bytes, usable_bytes
from ..plan.memory import lower_bound
from ..plan.sizes import Sizes
from .ranks import RankView


@dataclass(frozen=True)
class Spread:
    """The groups of one kind: how many, of how many ranks, and on how many machines at most one of them lies."""

    name: str
    groups: int
    ranks: int
    nodes: int

    @property
    def crosses(self) -> bool:
        """Whether a group needs the network between machines."""
        return self.nodes > 1

    @property
    def text(self) -> str:
        """For the user."""
        place = f"over up to {self.nodes} nodes" if self.crosses else "each on one node"
        return f"{self.name}: {self.groups} x {self.ranks} ranks, {place}"


def spreads(views: Sequence[RankView], per_node: int) -> list[Spread]:
    """The groups of more than one rank; ranks are numbered node by node."""
    found = []
    for name in views[0].groups:
        groups = {view.groups[name] for view in views}
        size = max(map(len, groups))
        if size > 1:
            nodes = max(len({rank // per_node for rank in group}) for group in groups)
            found.append(Spread(name, len(groups), size, nodes))
    return found


def mesh_line(views: Sequence[RankView]) -> str:
    """The sizes of the mesh, as its ranks see them."""
    sizes = [max(axis) + 1 for axis in zip(*(view.coordinates for view in views), strict=True)]
    return " x ".join(f"{name} {size}" for name, size in zip(DIMENSIONS, sizes, strict=True))


def warnings(views: Sequence[RankView], cfg: Config, base: PretrainedConfig, target: Target, sizes: Sizes) -> list[str]:
    """Groups that cross machines and need not, each with the sizes that keep them on one."""
    found = []
    crossing = {spread.name: spread for spread in spreads(views, target.gpus_per_node) if spread.crosses}
    for name in ("ulysses", "ring"):
        if name in crossing and (fix := _context_fix(name, cfg, base, target)):
            found.append(
                f"{crossing[name].text}: {_COST[name]} would use the network between nodes; {fix} keeps them on one"
            )
            break  # one change of sizes moves both
    spread = crossing.get("sharding")
    if spread and cfg.parallel.replicate > 1 and (fix := _copies_fix(cfg, target, sizes)):
        found.append(
            f"{spread.text}: every block's all-gather would use the network between nodes; {fix} keeps copies on one"
        )
    return found


_COST = {"ulysses": "all-to-all of every block, which the step waits for,", "ring": "keys and values of every block"}


def _context_fix(name: str, cfg: Config, base: PretrainedConfig, target: Target) -> str | None:
    """Options with which the groups of `name` stay on a node and the run is still a valid one."""
    node, context, heads = target.gpus_per_node, cfg.parallel.context, base.num_attention_heads
    if name == "ulysses":
        now = ulysses_size(cfg.parallel, heads)
        smaller = [n for n in range(now - 1, 0, -1) if not (context % n or heads % n or node % n)]
        for size in smaller if context > node else []:
            if _valid(cfg, target.gpus, context_method="auto", ulysses=size):
                return f"parallel.context_method=auto parallel.ulysses={size}"
    for size in [n for n in range(context - 1, 0, -1) if not node % n]:
        if context <= node and _valid(cfg, target.gpus, context=size, ulysses=None):
            return f"parallel.context={size}"
    return None


def _copies_fix(cfg: Config, target: Target, sizes: Sizes) -> str | None:
    """The fewest copies that lie on one node each, where their state does not rule it out."""
    context = cfg.parallel.context
    for ranks in range(target.gpus_per_node, 0, -1):
        if target.gpus_per_node % ranks or ranks % context or target.gpus % ranks:
            continue
        shard = None if cfg.parallel.shard is None else ranks // context
        changed = _valid(cfg, target.gpus, replicate=target.gpus // ranks, shard=shard)
        if changed is None:
            continue
        need = lower_bound(changed, sizes, target.gpus) + fixed_bytes(target.gpus)
        if need > usable_bytes(target.memory):
            return None  # smaller groups hold more yet
        again = "" if shard is None else f" parallel.shard={shard}"
        return f"parallel.replicate={changed.parallel.replicate}{again} (a plan says whether that fits)"
    return None


def _valid(cfg: Config, world_size: int, **sizes: int | str | None) -> Config | None:
    """`cfg` with other sizes of its groups, or None where that is no run."""
    changed = dataclasses.replace(cfg, parallel=dataclasses.replace(cfg.parallel, **sizes))  # type: ignore[arg-type]
    parallel = changed.parallel
    if math.gcd(parallel.context, parallel.ulysses or 1) != (parallel.ulysses or 1):
        return None
    try:
        schema.validate(changed, world_size)
    except ConfigError:
        return None
    return changed
