"""Rows of a torch model: one cache for all, padded on the left, under a mask.

A new row reads its prompt alone; its keys and values are then put beside those of the others. Where a model's cache is
not plain keys and values (a window that slides, states), or its positions depend on the longest row (LongRoPE), each
row has a cache of its own and they take turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

from microstages.errors import UserError

from microstages_infer.rows import proved, swap_out
from microstages_infer.torch_engine import TorchEngine, memory


class TorchRows:
    """See `rows.Rows`."""

    def __init__(self, engine: TorchEngine) -> None:
        self._model, self._device = engine.model, engine.device
        # from this length on all that was read is to be read again, with other factors
        self._turn = engine.together if engine.together != engine.context else None
        takes = signature(self._model.get_base_model().forward if engine.adapted else self._model.forward).parameters
        self._positions = "position_ids" in takes  # else the model finds them by the mask
        self._few = {"logits_to_keep": 1} if self._model._supports_logits_to_keep() else {}
        self._ids: list[list[int]] = []
        self.together = self._turn is None and _plain(self._cache())
        self.clear()
        try:
            self.together = self.together and proved(self, engine.vocabulary or 2)
        except (MemoryError, UserError):
            raise
        except Exception:  # whatever it is that this architecture cannot do with several rows
            self.together = False
        self.clear()
        self.how = f"torch, {'side by side' if self.together else 'taking turns'}"

    def clear(self) -> None:
        """See `rows.Rows`."""
        self._ids = []
        self._caches: list[Any] = []  # one for all rows, or one for each
        self._mask: Any = None

    def join(self, ids: Sequence[int], room: int) -> Any:  # noqa: ARG002  (the cache grows by itself)
        """See `rows.Rows`."""
        import torch

        cache, logits = self._read(list(ids))
        if not self.together:
            self._caches.append(cache)
        elif not self._ids:
            self._caches, self._mask = [cache], torch.ones((1, len(ids)), dtype=torch.long, device=self._device)
        else:
            self._put_beside(cache, len(ids))
        self._ids.append(list(ids))
        return logits

    def step(self, tokens: Sequence[int]) -> Any:
        """See `rows.Rows`."""
        import numpy as np
        import torch

        for ids, token in zip(self._ids, tokens, strict=True):
            ids.append(token)
        if not self.together:
            return np.stack([self._alone(row) for row in range(len(self._ids))])
        one = torch.ones((len(tokens), 1), dtype=torch.long, device=self._device)
        self._mask = torch.cat([self._mask, one], dim=1)
        with torch.inference_mode(), memory():
            logits = self._model(
                input_ids=torch.tensor(tokens, device=self._device)[:, None],
                attention_mask=self._mask,
                past_key_values=self._caches[0],
                use_cache=True,
                **({"position_ids": self._mask.sum(dim=1, keepdim=True) - 1} if self._positions else {}),
            ).logits
            return logits[:, -1].float().cpu().numpy()

    def leave(self, row: int) -> None:
        """See `rows.Rows`."""
        import torch

        last = len(self._ids) - 1
        swap_out(self._ids, row)
        if not self.together:
            swap_out(self._caches, row)
        elif not self._ids:
            self.clear()
        else:
            kept = [last if i == row else i for i in range(last)]
            longest = int(self._mask[kept].sum(dim=1).max())  # what is in front of it is padding in every row
            index = torch.tensor(kept, device=self._device)
            self._mask = self._mask[index, -longest:]
            for layer in self._caches[0].layers:
                layer.keys = layer.keys[index, :, -longest:]
                layer.values = layer.values[index, :, -longest:]

    def _put_beside(self, cache: Any, length: int) -> None:
        import torch
        from torch.nn.functional import pad

        width = self._mask.shape[1]
        both = max(width, length)
        mine = torch.ones((1, length), dtype=torch.long, device=self._device)
        self._mask = torch.cat([pad(self._mask, (both - width, 0)), pad(mine, (both - length, 0))])
        with torch.inference_mode(), memory():
            for there, new in zip(self._caches[0].layers, cache.layers, strict=True):
                for name in ("keys", "values"):
                    old, more = getattr(there, name), getattr(new, name)
                    old, more = (pad(t, (0, 0, both - t.shape[2], 0)) for t in (old, more))
                    setattr(there, name, torch.cat([old, more]))

    def _alone(self, row: int) -> Any:
        ids = self._ids[row]
        if self._turn is not None and len(ids) == self._turn + 1:
            self._caches[row], logits = self._read(ids)
            return logits
        return self._read(ids, self._caches[row])[1]

    def _read(self, ids: list[int], cache: Any = None) -> tuple[Any, Any]:
        """The cache and the last logits of one row: of all `ids`, or of the last behind a cache."""
        import torch

        new = ids if cache is None else ids[-1:]
        cache = self._cache() if cache is None else cache
        with torch.inference_mode(), memory():
            logits = self._model(
                input_ids=torch.tensor([new], device=self._device), past_key_values=cache, use_cache=True, **self._few
            ).logits
            return cache, logits[0, -1].float().cpu().numpy()

    def _cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self._model.config)


def _plain(cache: Any) -> bool:
    from transformers.cache_utils import DynamicLayer

    return bool(cache.layers) and all(type(layer) is DynamicLayer for layer in cache.layers)
