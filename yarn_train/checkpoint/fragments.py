"""A parameter whose flattened elements are cut anywhere over the ranks, for torch.distributed.checkpoint.

ZeRO cuts flat buffers, not rows, so neither a DTensor nor a plain tensor can say what a rank holds. A checkpoint of
these is one-dimensional: any number of ranks, cutting anywhere else, reads its own elements from it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType


class Fragment(Tensor):
    """Elements [start, start + local.numel()) of a flattened tensor of `numel` elements; `local` may be empty.

    Looks like the whole flattened tensor to the checkpoint planner (it compares sizes) and has no storage of its own;
    nothing can be computed with it. Saving reads `local`, loading writes into it.
    """

    local: Tensor
    start: int

    @staticmethod
    def __new__(cls, local: Tensor, start: int, numel: int) -> Fragment:
        if local.ndim != 1 or not 0 <= start <= start + local.numel() <= numel:
            raise ValueError(f"{tuple(local.shape)} elements from {start} do not lie within [0, {numel})")
        whole: Any = Tensor._make_wrapper_subclass(cls, (numel,), dtype=local.dtype, device=local.device)
        whole.local = local.detach()
        whole.start = start
        return whole

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise TypeError(f"{func}: a {cls.__name__} is for checkpoints only; compute with its .local")

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Fragment([{self.start}, {self.start + self.local.numel()}) of {self.shape[0]}, {self.dtype})"

    def _chunks(self) -> list[ChunkStorageMetadata]:
        if not self.local.numel():
            return []  # a rank may hold nothing of a parameter
        return [ChunkStorageMetadata(torch.Size([self.start]), torch.Size([self.local.numel()]))]

    def __create_write_items__(self, fqn: str, _: object) -> list[WriteItem]:
        properties = TensorProperties.create_from_tensor(self.local)
        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self.size()),
            )
            for chunk in self._chunks()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return self._chunks()

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        if index.offset is not None and index.offset != torch.Size([self.start]):
            raise ValueError(
                f"{index.fqn}: asked for elements from {index.offset[0]}, this rank's begin at {self.start}"
            )
        return self.local
