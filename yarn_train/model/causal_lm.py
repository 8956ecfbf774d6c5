"""The module that engines wrap: a transformers causal LM that returns a summed loss instead of logits."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from .documents import table
from .loss import LOSSES
from .spans import Documents


class CausalLM(nn.Module):
    """Forward = decoder, then the loss on its hidden states.

    The loss is part of the forward pass because only there does a sharding engine have the output embedding gathered;
    and because a loss that sees hidden states need never build the complete logits.
    """

    def __init__(self, model: PreTrainedModel, loss: str = "full"):
        super().__init__()
        self.model = model
        self.loss = LOSSES[loss]

    @property
    def decoder(self) -> nn.Module:
        """The transformer without its head."""
        return self.model.base_model

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks, first to last."""
        for child in self.decoder.children():
            if isinstance(child, nn.ModuleList) and len(child) == self.model.config.num_hidden_layers:
                return child
        raise TypeError(f"{type(self.model).__name__}: no list of {self.model.config.num_hidden_layers} decoder blocks")

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        documents: Documents | None = None,
    ) -> torch.Tensor:
        """Summed loss over valid labels (fp32 scalar), or logits [batch, tokens, vocab] when `labels` is None.

        Args:
            input_ids, position_ids: [batch, tokens].
            labels: [batch, tokens], ALREADY shifted: labels[:, i] is the target of position i.
            documents: per sequence, where its documents start; attention stays inside of them. None is one document.
        """
        mask = {} if documents is None else {"documents": table(documents)}  # reaches the attention function as it is
        hidden = self.decoder(input_ids=input_ids, position_ids=position_ids, use_cache=False, **mask).last_hidden_state
        head = self.model.get_output_embeddings()
        if labels is None:
            return head(hidden)
        return self.loss(hidden.flatten(0, 1), head.weight, labels.flatten())
