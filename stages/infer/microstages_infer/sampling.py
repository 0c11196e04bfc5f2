"""How the next token is chosen: the same code and the same seeds for every form of a model.

Each row draws from a generator of its own, seeded with (seed, number of the row), so that an answer does not depend on
the batch that it was made in. The order is that of transformers: repetition penalty, temperature, top-k, top-p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 takes the likeliest token. `top_k` and `top_p`: None is off."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0

    @property
    def plain(self) -> bool:
        """Whether the likeliest token is taken as the model says it, which the engines do natively."""
        return self.temperature == 0 and self.repetition_penalty == 1


class Sampler:
    """Chooses for one row. `seen` are the tokens that the repetition penalty counts."""

    def __init__(self, sampling: Sampling, row: int, seen: Sequence[int]) -> None:
        import numpy as np

        self._s = sampling
        self._random = np.random.default_rng([sampling.seed, row])
        self._seen = np.array(sorted(set(seen)), dtype=np.int64)

    def pick(self, logits: Any) -> int:
        """The next token from float logits of shape (vocabulary,)."""
        import numpy as np

        s = self._s
        logits = np.array(logits, dtype=np.float32)
        if s.repetition_penalty != 1:
            # Keskar et al. 2019 (arXiv:1909.05858), section 4.1, with the sign rule of transformers
            old = logits[self._seen]
            logits[self._seen] = np.where(old > 0, old / s.repetition_penalty, old * s.repetition_penalty)
        token = int(logits.argmax()) if s.temperature == 0 else self._draw(logits)
        if s.repetition_penalty != 1:
            self._seen = np.union1d(self._seen, [token])
        return token

    def _draw(self, logits: Any) -> int:
        import numpy as np

        s = self._s
        logits = logits.astype(np.float64) / s.temperature
        count = min(s.top_k or len(logits), len(logits))
        # a stable sort: equal logits keep the order of their ids, everywhere
        kept = np.argsort(-logits, kind="stable")[:count]
        share = np.exp(logits[kept] - logits[kept[0]])
        share /= share.sum()
        if s.top_p is not None and s.top_p < 1:
            # nucleus (Holtzman et al. 2019, arXiv:1904.09751): the fewest tokens whose shares reach top_p
            enough = int(np.searchsorted(share.cumsum(), s.top_p)) + 1
            kept, share = kept[:enough], share[:enough] / share[:enough].sum()
        at = int(np.searchsorted(share.cumsum(), self._random.random(), side="right"))
        return int(kept[min(at, len(kept) - 1)])
