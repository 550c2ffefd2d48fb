"""Any causal model that has transformers' `generate`: greedy, never ending before `count`."""

from __future__ import annotations

from typing import Any

import torch


class Text:
    """A model of optimum's, which takes and gives torch tensors."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def generate(self, ids: list[int], count: int) -> list[int]:
        x = torch.tensor([ids])
        with torch.inference_mode():
            found = self._model.generate(
                x,
                attention_mask=torch.ones_like(x),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
            )
        return [int(i) for i in found[0, len(ids) :]]

    def logits(self, ids: list[int]) -> Any:
        x = torch.tensor([ids])
        with torch.inference_mode():
            out = self._model(
                input_ids=x,
                attention_mask=torch.ones_like(x),
                position_ids=torch.arange(len(ids))[None],
            )
        return out.logits[0, -1].float().numpy()
