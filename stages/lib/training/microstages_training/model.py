"""How a micro-batch goes through a model, and how its loss is taken.

It is chosen by measuring: two short examples, flat in one row, must give the same logits as each alone. Where they do
not (state-space layers, chunked attention, sinks) examples go as padded rows instead, which is right for every model
and slower. Likewise the output layer is called on its own, in chunks and only at trained positions, where that gives
the model's own logits (models that scale or cap them: whole forward).

Where the data set hides a token (`hidden_token_id`), examples go as padded rows too, with transformers' own mask: true
where a token is seen. Position ids count hidden tokens, as transformers' Trainer does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from microstages.errors import UserError
from torch.nn.functional import cross_entropy

from microstages_training import attention
from microstages_training.batches import MicroBatch

CHUNK = {"cpu": 1 << 22, "cuda": 1 << 26}  # logits computed at once: 16 and 256 MB in fp32
SMALLEST = 256  # rows of logits computed at once, at least: fewer leave the product waiting for memory


@dataclass
class Model:
    """A base model with its adapter. `causal` is the transformers model, `peft` the wrapper that knows the adapter."""

    causal: Any
    peft: Any
    device: torch.device
    precision: str
    flat: bool = True  # examples go flat, else as padded rows
    head_alone: bool = True  # the output layer on its own gives the model's logits
    sharded: bool = False  # all processes make the same number of passes
    hidden: int | None = None  # a token that attention never sees, so that examples go as padded rows
    notes: list[str] = field(default_factory=list)

    @property
    def trained(self) -> list[tuple[str, Any]]:
        """Names and parameters that are trained, in the order of the model."""
        return [(n, p) for n, p in self.causal.named_parameters() if p.requires_grad]

    def autocast(self) -> Any:
        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def save_memory(self) -> None:
        """Keep no activations inside the layers: compute them again in the backward pass. The result is the same."""
        try:
            self.causal.activation_checkpointing_enable()
        except ValueError as error:
            raise UserError(str(error), where="--gradient-checkpointing", fix="leave it out for this model") from None

    def backward(self, batch: MicroBatch, denominator: float) -> torch.Tensor:
        """Add the gradients of (sum of the losses / denominator). Returns the sum of the losses, a scalar in fp32."""
        total = torch.zeros((), device=self.device)
        for inputs, rows, targets in self._passes(batch):
            with self.autocast():
                if not self.head_alone:
                    loss = _loss(self._logits(inputs, rows), targets).sum()
                else:
                    hidden = self._hidden(inputs, rows)
            if not self.head_alone:
                (loss / denominator).backward()
                total += loss.detach()
                continue
            at = hidden.detach().requires_grad_()
            for part, wanted in self._chunks(at, targets):
                with self.autocast():
                    loss = _loss(self.causal.get_output_embeddings()(part), wanted).sum()
                (loss / denominator).backward()
                total += loss.detach()
            hidden.backward(at.grad)
        return total

    def passes(self, batch: MicroBatch) -> int:
        """How many forward passes `backward` and `losses` make of a batch."""
        if self.flat or not len(batch.lengths):
            return min(1, len(batch.lengths))
        return len(attention.grouped(batch.lengths))

    def idle(self, *, backward: bool) -> None:
        """A pass over one token that adds nothing: see `sharding`."""
        one, nothing = np.ones(1, np.int64), np.zeros(1, np.int64)
        with self.autocast(), torch.set_grad_enabled(backward):
            for inputs, rows, _ in self._passes(MicroBatch(nothing, nothing, one, nothing, nothing)):
                hidden = self._hidden(inputs, rows)
        if backward:
            hidden.backward(torch.zeros_like(hidden))

    @torch.no_grad()
    def losses(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of each trained token and the token itself, both (trained,); no gradients.

        The order is that of the batch where the model takes flat batches.
        """
        losses, tokens = [], []
        for inputs, rows, targets in self._passes(batch):
            with self.autocast():
                if not self.head_alone:
                    losses.append(_loss(self._logits(inputs, rows), targets))
                else:
                    hidden = self._hidden(inputs, rows)
                    head = self.causal.get_output_embeddings()
                    losses += [_loss(head(part), wanted) for part, wanted in self._chunks(hidden, targets)]
            tokens.append(targets)
        return torch.cat(losses), torch.cat(tokens)

    def _passes(self, batch: MicroBatch) -> Iterator[tuple[dict[str, Any], torch.Tensor, torch.Tensor]]:
        """Inputs for the model, trained positions in the flattened batch, targets; padded: for each group."""
        if not len(batch.lengths):
            return
        if self.flat:
            yield flat_inputs(batch, self.device), self._to(batch.rows), self._to(batch.targets)
            return
        starts = np.cumsum(batch.lengths) - batch.lengths
        owner = np.searchsorted(starts, batch.rows, side="right") - 1
        for members in attention.grouped(batch.lengths):
            longest = int(batch.lengths[members[0]])
            ids = np.zeros((len(members), longest), np.int64)
            real = np.arange(longest) < batch.lengths[members][:, None]
            rows, targets = [], []
            for i, example in enumerate(members):
                length = batch.lengths[example]
                ids[i, :length] = batch.input_ids[starts[example] : starts[example] + length]
                mine = owner == example
                rows.append(batch.rows[mine] - starts[example] + i * longest)
                targets.append(batch.targets[mine])
            seen = real if self.hidden is None else real & (ids != self.hidden)
            inputs = {"input_ids": self._to(ids), "attention_mask": self._to(seen.astype(np.int64))}
            yield inputs, self._to(np.concatenate(rows)), self._to(np.concatenate(targets))

    def _to(self, array: Any) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def _hidden(self, inputs: dict[str, Any], rows: torch.Tensor) -> torch.Tensor:
        hidden = self.causal.base_model(**inputs, use_cache=False).last_hidden_state
        return hidden.flatten(0, 1).index_select(0, rows)

    def _logits(self, inputs: dict[str, Any], rows: torch.Tensor) -> torch.Tensor:
        logits = self.causal(**inputs, use_cache=False).logits
        return logits.flatten(0, 1).index_select(0, rows)

    def _chunks(self, hidden: torch.Tensor, targets: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        size = max(SMALLEST, CHUNK[self.device.type] // self.causal.config.get_text_config().vocab_size)
        yield from zip(hidden.split(size), targets.split(size), strict=True)

    @torch.no_grad()
    def choose(self, longest: int = 1, agree: Callable[[bool], bool] = bool) -> None:
        """Choose how batches go through the model, by measuring: see the module. `longest` example, in tokens; `agree`:
        whether any process says so."""
        self.causal.eval()
        with self.autocast():
            alone = self._own_attention()
            allowed = (1e-4 if self.precision == "fp32" else 0.05) * float(alone.abs().max())
            self.head_alone = _near(self._head_only(), alone, allowed)
            before = self.causal.config._attn_implementation
            may = self.hidden is None and self._may_be_flat(longest)
            self.flat = not agree(not (may and self._is_flat_right(alone, allowed)))
        if not self.flat:
            self.causal.set_attn_implementation(before)
        if not self.flat and self.hidden is None:
            self.notes.append("this model does not take examples one after another: they go as padded rows, slower")

    def _probe(self, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
        """Two short examples, (4,) and (3,); the seed changes the first."""
        size = self.causal.config.get_text_config().vocab_size
        ids = torch.tensor([seed, 2 * seed, 5 * seed, 7 * seed, 11, 6, 23], device=self.device) % size
        return ids[:4], ids[4:]

    def _own_attention(self) -> torch.Tensor:
        """The logits of the probes, each alone, with the attention that the model takes: (7, vocabulary)."""

        def run() -> torch.Tensor:
            return torch.cat([self.causal(input_ids=i[None], use_cache=False).logits[0] for i in self._probe()])

        try:
            return run()
        except ValueError:  # a model that sdpa cannot serve, such as one with soft caps
            self.causal.set_attn_implementation("eager")
            return run()

    def _head_only(self) -> torch.Tensor | None:
        head, body = self.causal.get_output_embeddings(), self.causal.base_model
        if head is None or body is self.causal:
            return None
        return torch.cat([head(body(input_ids=i[None], use_cache=False).last_hidden_state[0]) for i in self._probe()])

    def _may_be_flat(self, longest: int) -> bool:
        config = self.causal.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ())
        return (
            bool(getattr(self.causal, "_supports_attention_backend", False))
            and kinds <= {"full_attention", "sliding_attention"}
            and longest <= (getattr(config, "sliding_window", None) or longest)
            and not getattr(config, "attention_chunk_size", None)
            and getattr(config, "is_causal", True)
        )

    def _is_flat_right(self, alone: torch.Tensor, allowed: float) -> bool:
        """Whether flat probes give the logits of each alone, and the second the same bits whatever the first is."""
        self.causal.set_attn_implementation(attention.NAME)
        lengths = np.asarray([4, 3])
        found = []
        for seed in (3, 17):
            ids = torch.cat(self._probe(seed)).cpu().numpy()
            batch = MicroBatch(ids, np.asarray([0, 1, 2, 3, 0, 1, 2]), lengths, lengths, lengths)
            try:
                found.append(self.causal(**flat_inputs(batch, self.device), use_cache=False).logits[0])
            except torch.OutOfMemoryError:  # that says nothing of the model
                raise
            except (NotImplementedError, ValueError, TypeError, RuntimeError, IndexError, KeyError, AttributeError):
                return False
        return _near(found[0], alone, allowed) and torch.equal(found[0][4:], found[1][4:])


def _near(one: torch.Tensor | None, other: torch.Tensor, allowed: float) -> bool:
    return one is not None and one.shape == other.shape and float((one.float() - other.float()).abs().max()) <= allowed


def flat_inputs(batch: MicroBatch, device: torch.device) -> dict[str, Any]:
    """What a model is called with for a flat batch."""
    return {
        "input_ids": torch.from_numpy(batch.input_ids)[None].to(device),
        "position_ids": torch.from_numpy(batch.positions)[None].to(device),
        "layout": attention.layout(batch.lengths, device),
    }


def _loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits.float(), targets, reduction="none")
