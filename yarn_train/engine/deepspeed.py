"""The DeepSpeed engine: ZeRO stages 0 to 3, with optimizer or everything in host memory, numerically like FSDP2.

fp32 masters of the weights as they were loaded (DeepSpeed alone makes them from the weights it has already rounded to
bfloat16), gradients summed and accumulated in fp32, one clip by the global norm, the learning rate set at every step.
Checkpoints are those of every engine; DeepSpeed's files are not used.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import io
import warnings
import weakref
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW

from ..checkpoint.fragments import Fragment
from ..config import Config
from ..dist import environment, runtime
from ..dist.mesh import Mesh
from ..errors import CheckpointError, ConfigError, problem
from ..model.causal_lm import CausalLM
from ..model.load import DTYPES
from ..model.weights import WeightFiles
from ..optim.adamw import parameter_groups, set_lr
from ..optim.state import MOMENTS, counts
from .deepspeed_gradients import forget_gradients, full_gradients
from .deepspeed_settings import settings, unsupported
from .deepspeed_shards import Shard, materialize_moments, refresh_compute_weights, shards
from .finite import all_finite
from .fsdp2 import PREFIX

Read = Callable[[str, int, int], Tensor]


class DeepSpeedEngine:
    """`module` is whole and in fp32 on every rank, or on meta; see :class:`engine.base.Engine` for the methods.

    All ranks form one ZeRO group, those that share a sequence included: their gradients are summed too.
    """

    def __init__(self, module: CausalLM, cfg: Config, mesh: Mesh):
        if problems := missing(cfg):
            raise ConfigError(problems)
        library = import_library()
        self.stage = cfg.engine.stage
        self.world_size = mesh.device_mesh.size()
        self.max_norm = cfg.optim.grad_clip
        self._named = dict(module.named_parameters())
        self._aliases = _aliases(module, self._named)
        vectors = [p.numel() for p in self._named.values() if p.ndim < 2]
        options = settings(cfg, max(vectors, default=0))
        loaded = {name: parameter.data for name, parameter in self._named.items()}
        groups = parameter_groups(module, cfg.optim)
        skeleton = any(p.is_meta for p in self._named.values())
        if skeleton:
            _allocate(library, module, options, self.stage, DTYPES[cfg.model.dtype], torch.device(mesh.device_type))
        betas = (cfg.optim.betas[0], cfg.optim.betas[1])
        # torch's fused AdamW on the host too: the same update as everywhere else. DeepSpeed's own is compiled at the
        # first step and needs a CUDA toolkit for that on a GPU machine.
        self.adamw = AdamW(groups, lr=cfg.optim.lr, betas=betas, eps=cfg.optim.eps, fused=True)
        if self.stage == 3:
            # The loss reads the head's weight outside of the head's forward.
            library.zero.register_external_parameter(module, module.model.get_output_embeddings().weight)
        with contextlib.redirect_stdout(io.StringIO()):  # memory statistics that no option turns off
            self.zero, self._optimizer, _, _ = library.initialize(model=module, optimizer=self.adamw, config=options)
        self._running: list[nn.Module] = library.runtime.zero.parameter_offload.FWD_MODULE_STACK
        # Calls go through DeepSpeed's forward, which counts micro-batches; attributes are those of the module.
        self.module = cast(CausalLM, self.zero)
        self.shards = list(shards(self._named, self._optimizer, mesh.device_mesh.get_rank()))
        materialize_moments(self.adamw, list({id(shard.flat): shard.flat for shard in self.shards}.values()))
        self._norm = torch.zeros(())
        self._skipping = False
        # Weakly: DeepSpeed's globals hold the optimizer until this engine, when it is dropped, takes it out of them.
        before_update = weakref.WeakMethod(self._before_update)
        self.adamw.register_step_pre_hook(lambda *of_step: cast(Any, before_update())(*of_step))
        if self.stage != 0:
            weakref.finalize(self, _release, library, self.zero).atexit = False
        if cfg.model.dtype == "bfloat16" and not skeleton:
            self.write_masters(lambda name, start, stop: loaded[name].reshape(-1)[start:stop])

    def read_weights(self, files: WeightFiles) -> None:
        sources = {
            name: files.find(alias.removeprefix(PREFIX) for alias, n in self._aliases.items() if n == name)
            for name in self._named
        }
        self.write_masters(lambda name, start, stop: files.elements(cast(str, sources[name]), start, stop))

    def backward(self, loss_sum: Tensor, global_tokens: Tensor) -> None:
        loss = loss_sum / global_tokens
        depth = len(self._running)
        # Stage 3 can only average over ranks: times their number first, which is exact for powers of two.
        self.zero.backward(loss * self.world_size if self.stage == 3 else loss, scale_wrt_gas=False)
        del self._running[depth:]  # modules whose recomputation stopped as soon as backward had what it needs

    def gradient_norm(self) -> None:
        """DeepSpeed sums gradients over ranks, and measures them, inside of its own step."""

    def step(self, lr: float, norm: Tensor | None = None) -> Tensor:
        """As the protocol says; a gradient that is not finite leaves the weights as they are and returns inf."""
        set_lr(self.adamw, lr)
        self._step()
        norm = self._norm if self.stage == 0 else self.zero.get_global_grad_norm()
        return torch.as_tensor(norm, dtype=torch.float32, device=self.zero.device)

    def skip(self) -> None:
        """Step with an update that does nothing: only DeepSpeed's own step clears all places that hold gradients."""
        self._skipping = True
        self._step()
        self._skipping = False

    def weights_finite(self) -> bool:
        return all_finite(shard.master for shard in self.shards)

    def state_dict(self) -> dict[str, Any]:
        """In place; see ``checkpoint.fragments``."""
        state: dict[str, Any] = {"weights": {}, **{key: {} for key in MOMENTS}}
        for shard in self.shards:
            tensors = {"weights": shard.master, **{key: shard.of(self.adamw.state[shard.flat][key]) for key in MOMENTS}}
            for key, tensor in tensors.items():
                state[key][shard.name] = Fragment(tensor, shard.start, shard.numel)
        by_name = sorted(self.shards, key=lambda shard: shard.name)
        state["step"] = counts([self.adamw.state[shard.flat] for shard in by_name])
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        steps = set(state["step"].tolist())
        if len(steps) > 1:
            raise CheckpointError(
                f"the checkpoint's parameters were updated {min(steps)} to {max(steps)} times, which DeepSpeed, that "
                "counts for all of them, cannot go on from: continue with engine.name=fsdp2"
            )
        for values in self.adamw.state.values():
            values["step"].fill_(*steps)
        refresh_compute_weights(self._optimizer)

    @torch.no_grad()
    def write_masters(self, read: Read) -> None:
        """Set all weights: `read(name, start, stop)` gives elements [start, stop) of a flattened parameter; collective.

        Each rank reads only what it holds. Names are those of the module given to the engine.
        """
        for shard in filter(lambda s: s.length, self.shards):
            shard.master.copy_(read(shard.name, shard.start, shard.start + shard.length))
        refresh_compute_weights(self._optimizer)

    def full_gradients(self) -> dict[str, Tensor]:
        """Complete fp32 gradients by transformers' names, after backward and before step; collective."""
        gradients = full_gradients(self._named, self._optimizer, self.stage)
        return {name.removeprefix(PREFIX): gradient for name, gradient in gradients.items()}

    def full_weights(self) -> dict[str, Tensor]:
        whole = {shard.name: self._gather(shard, shard.master) for shard in self.shards}
        if dist.get_rank() != 0:
            return {}
        return {alias.removeprefix(PREFIX): cast(Tensor, whole[name]) for alias, name in self._aliases.items()}

    def _gather(self, shard: Shard, local: Tensor) -> Tensor | None:
        """The whole of an fp32 tensor on rank 0's CPU, None elsewhere; one parameter's memory at a time."""
        if self.stage == 0:
            return local.cpu().clone().view(shard.shape) if dist.get_rank() == 0 else None
        whole = torch.zeros(shard.numel, dtype=torch.float32, device=self.zero.device)
        whole[shard.start : shard.start + shard.length] = local
        dist.reduce(whole.view(torch.int32), dst=0)  # of disjoint pieces, as integers: a sum of floats would lose -0.0
        return whole.cpu().view(shard.shape) if dist.get_rank() == 0 else None

    def _step(self) -> None:
        self.zero.step()
        if self.stage in (1, 2):
            forget_gradients(self._optimizer)

    def _before_update(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Gradients are reduced by now. AdamW's fused kernel changes nothing, its count included, if told `found_inf`.

        From stage 1 on DeepSpeed clips, and never gets here with a norm that is not finite.
        """
        bad = torch.ones((), device=self.zero.device) if self._skipping else None
        if self.stage == 0:
            self._norm = clip_grad_norm_(self.zero.module.parameters(), self.max_norm)
            bad = self._norm.isfinite().logical_not().float() if bad is None else bad
        optimizer.found_inf = bad  # type: ignore[attr-defined]


def missing(cfg: Config) -> list[str]:
    """Problems that keep DeepSpeed from running `cfg` here; nothing is imported."""
    if importlib.util.find_spec("deepspeed") is None:
        fix = "pip install 'yarn-train[deepspeed]', or engine.name=fsdp2"
        return [problem("engine.name", cfg.engine.name, "fsdp2 without the deepspeed package", fix)]
    return unsupported(cfg)


def import_library() -> Any:
    """Import DeepSpeed; only here, so that nobody without it pays."""
    environment.announce(runtime.device().type)
    # DeepSpeed's calls of collectives that torch 2.13 renamed: one warning per place and rank, none of them ours.
    warnings.filterwarnings("ignore", message="`torch.distributed.*` is deprecated", category=FutureWarning)
    import deepspeed

    # An all-reduce for inference that training never calls; on a CPU it would be compiled now, for most of a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _allocate(
    library: Any, module: CausalLM, options: dict[str, Any], stage: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Give a module on meta uninitialised memory; at stage 3 one block at a time, partitioned at once.

    There no rank ever holds more than its share and one block.
    """
    for part in [*module.blocks, module]:
        for parameter in part.parameters():
            if parameter.is_meta:
                memory = nn.Parameter(torch.empty(parameter.shape, dtype=dtype, device=device))
                torch.utils.swap_tensors(parameter, memory)  # the same object, so that ties hold
        if stage == 3:
            library.zero.Init(module=part, config_dict_or_path=options, dtype=dtype)


def _release(library: Any, zero: Any) -> None:
    """Take a model and its optimizer out of DeepSpeed's globals, which otherwise keep it alive at stage 3."""
    zero.destroy()
    offload = library.runtime.zero.parameter_offload
    offload.FWD_MODULE_STACK[:] = [module for module in offload.FWD_MODULE_STACK if module is not zero.module]
    # A method under lru_cache, below another decorator: the cache's keys are the model's modules.
    for method in filter(inspect.isfunction, vars(offload.PartitionedParameterCoordinator).values()):
        for cached in inspect.getclosurevars(method).nonlocals.values():
            if hasattr(cached, "cache_clear"):
                cached.cache_clear()
    # Stage 3 replaces F.linear for the whole process; the original comes back with the last engine that needs that.
    replaced = library.zero.partition_parameters.InsertPostInitMethodToModuleSubClasses
    if hasattr(replaced, "linear_bk") and not offload.FWD_MODULE_STACK:
        nn.functional.linear = replaced.linear_bk


def _aliases(module: nn.Module, names: dict[str, nn.Parameter]) -> dict[str, str]:
    """Every name of every parameter -> its first name; a tied parameter has several."""
    first = {id(parameter): name for name, parameter in names.items()}
    return {name: first[id(p)] for name, p in module.named_parameters(remove_duplicate=False)}
