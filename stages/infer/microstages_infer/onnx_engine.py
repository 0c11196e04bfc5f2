"""An ONNX model, run by ONNX Runtime GenAI alone: neither torch nor transformers is imported.

Text becomes token ids by the `tokenizers` library, as for every other form, and what ends an answer is decided by
`decoding`. The padding is set to -1, which is no token: the runtime takes every trailing token that equals the padding
for padding, and models often share one token between padding and the end of a text.
Prompts of unequal length are padded on the right, as the runtime's own `encode_batch` does; it computes positions and
mask from the padding, and the answers are those of each prompt alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from microstages.artifact import Artifact
from microstages.errors import UserError
from microstages.tokens import ModelText, read_json

from microstages_infer.decoding import Choose

PAD = -1
LONG_FACTORS = 4096
KEPT_ROOM = 1024  # tokens a kept conversation may have at first; the runtime reserves memory for all of them


class OnnxEngine:
    """A loaded ONNX model. `device` is what it was built for. `later`: the runtime loads it when it is needed first.

    Raises UserError where the folder is not complete, its device is not there, or the runtime refuses the model.
    """

    name = "onnxruntime-genai"

    def __init__(self, model: Artifact, device: str, threads: int, *, later: bool = False) -> None:
        self._config = read_json(model.file("genai_config.json", fix="build it again with build-onnx"))
        part = self._config.get("model", {})
        self.decoder = decoder = part.get("decoder", {})
        self.file = model.file(decoder.get("filename", "model.onnx"), fix="build it again with build-onnx")
        self.threads = threads
        self.device = _provider(decoder)
        if device not in ("auto", self.device):
            raise UserError(
                f"this model was built for {self.device}; it cannot run on {device}",
                where=model.uri,
                fix=f"build it for {device} (build-onnx --execution-provider {device}), or leave --device out",
            )
        self.precision = str(model.metadata.get("precision", "as built"))
        self.text = ModelText(model.path)
        limit = part.get("context_length")
        self.context = int(limit) if isinstance(limit, int) and limit > 0 else None
        size = part.get("vocab_size")
        self.vocabulary = size if isinstance(size, int) else None
        # LongRoPE: the runtime computes everything anew with the long factors when one row's generation gets to this
        # length, but not for several rows, nor when it is passed by reading
        turns = str(part.get("type", "")).startswith("phi") and (self.context or 0) > LONG_FACTORS
        self.turn = LONG_FACTORS if turns else None
        self.together = self.turn or self.context
        stop = part.get("eos_token_id", [])
        self.stop_ids = frozenset(int(i) for i in (stop if isinstance(stop, list) else [stop]) if i is not None)
        # a window that slides throws keys away, so nothing behind it can be taken up again
        self._rewinds = not decoder.get("sliding_window")
        self._kept: tuple[list[int], Any, int] | None = None
        self._og = _runtime(self.device, model)
        self._from = model
        if not later:
            self.load()

    def load(self) -> None:
        """Let the runtime load the model, unless it did. Raises UserError where it refuses it."""
        self._model  # noqa: B018

    @cached_property
    def _model(self) -> Any:
        model, threads = self._from, self.threads
        overlay = {
            "model": {
                "pad_token_id": PAD,
                "decoder": {"session_options": {"intra_op_num_threads": threads}},
            }
        }
        try:
            config = self._og.Config(str(model.path))
            config.overlay(json.dumps(overlay))
            return self._og.Model(config)
        except Exception as error:  # the runtime raises RuntimeError and its own kinds
            raise UserError(
                f"ONNX Runtime GenAI {self._og.__version__} cannot load this model: {_first_line(error)}",
                where=model.uri,
                fix="build it again with build-onnx, with a version not newer than this runtime",
            ) from None

    def generator(self, rows: int, length: int) -> Any:
        """A generator of the runtime for this many rows of at most `length` tokens, that takes the likeliest."""
        params = self._og.GeneratorParams(self._model)
        params.set_search_options(
            max_length=length, batch_size=rows, num_beams=1, do_sample=False, min_length=0, repetition_penalty=1.0,
            no_repeat_ngram_size=0,
        )  # fmt: skip
        return self._og.Generator(self._model, params)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        room: int,
        choose: Choose | None,
        took: Callable[[list[int]], bool],
        keep: bool = False,
    ) -> None:
        """See `decoding.Engine`."""
        import numpy as np

        if keep:
            generator = self._continued(list(prompts[0]), room)
        else:
            longest = max(len(p) for p in prompts)
            generator = self.generator(len(prompts), longest + room)
            padded = [[*p, *[PAD] * (longest - len(p))] for p in prompts]
            generator.append_tokens(np.array(padded if len(prompts) > 1 else padded[0], dtype=np.int32))
        said: list[int] = []
        for _ in range(room):
            if choose is not None:
                _force(generator, choose)
            generator.generate_next_token()
            tokens = [int(t) for t in generator.get_next_tokens()]
            said.append(tokens[0])
            if not took(tokens):
                break
        if keep and self._kept is not None:
            ids, _, length = self._kept
            self._kept = ([*ids, *said], generator, length)

    def read(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[Any]:
        """See `decoding.Engine`. A model that was built to give the last logits only reads token by token."""
        import numpy as np

        longest = max(len(s) for s in sequences) - 1
        generator = self.generator(len(sequences), longest + 1)
        padded = [[*s[:-1], *[PAD] * (longest - len(s) + 1)] for s in sequences]
        generator.append_tokens(np.array(padded if len(sequences) > 1 else padded[0], dtype=np.int32))
        logits = np.asarray(generator.get_output("logits"))
        if logits.shape[1] != longest:
            return [self._one_by_one(s, start) for s, start in zip(sequences, starts, strict=True)]
        return [
            logits[row, start - 1 : len(s) - 1].astype(np.float32)
            for row, (s, start) in enumerate(zip(sequences, starts, strict=True))
        ]

    def _one_by_one(self, sequence: Sequence[int], start: int) -> Any:
        import numpy as np

        generator = self.generator(1, len(sequence))
        rows = []
        for part in (sequence[:start], *([token] for token in sequence[start:-1])):
            generator.append_tokens(np.array(part, dtype=np.int32))
            logits = np.array(generator.get_logits(), dtype=np.float32)
            rows.append(logits.reshape(-1, logits.shape[-1])[-1])
        return np.stack(rows)

    def _continued(self, prompt: list[int], room: int) -> Any:
        """A generator that has read the prompt; the one before is taken up where the prompt begins as it did."""
        import numpy as np

        needed = len(prompt) + room
        if self._kept is not None and self._rewinds and self._kept[2] >= needed:
            ids, generator, length = self._kept
            same = next((i for i, (a, b) in enumerate(zip(ids, prompt, strict=False)) if a != b), None)
            # the last token must be read again: its logits choose what follows
            same = min(len(ids) if same is None else same, len(prompt) - 1, generator.token_count() - 1)
            if self.turn is None or len(prompt) <= self.turn or same > self.turn:
                generator.rewind_to(same)
                self._kept = (prompt, generator, length)
                generator.append_tokens(np.array(prompt[same:], dtype=np.int32))
                return generator
        self._kept = None  # its memory is free before the next one's is taken
        length = max(KEPT_ROOM, 2 * needed)
        length = max(needed, min(length, self.context or length))
        generator = self.generator(1, length)
        generator.append_tokens(np.array(prompt, dtype=np.int32))
        self._kept = (prompt, generator, length)
        return generator


def _force(generator: Any, choose: Choose) -> None:
    """Make the chosen tokens the likeliest ones."""
    import numpy as np

    logits = generator.get_logits()
    last = logits.reshape(logits.shape[0], -1, logits.shape[-1])[:, -1]
    forced = np.full_like(logits, -1e9)
    view = forced.reshape(logits.shape[0], -1, logits.shape[-1])
    for row, token in enumerate(choose(last)):
        view[row, -1, token] = 0
    generator.set_logits(forced)


def _provider(decoder: dict[str, Any]) -> str:
    """`cpu`, `cuda`, `dml`, `webgpu`, …: what the model was built for."""
    options = decoder.get("session_options", {}).get("provider_options", [])
    names = [str(name).lower() for entry in options for name in entry]
    return next((n for n in names if n != "cpu"), "cpu")


def _runtime(device: str, model: Artifact) -> Any:
    """The module onnxruntime_genai, with the device's libraries loaded. Raises UserError where one is not there."""
    try:
        if device == "cuda":
            # the libraries of CUDA lie in packages of their own, where the loader does not look
            import onnxruntime

            onnxruntime.preload_dlls()
        import onnxruntime_genai as og
    except ImportError as error:
        raise UserError(
            f"ONNX Runtime GenAI cannot be imported: {_first_line(error)}", fix=f"pip install {_package(device)}"
        ) from None
    if hasattr(og, "disable_telemetry_events"):
        og.disable_telemetry_events()
    there = getattr(og, f"is_{device}_available", None)
    if device != "cpu" and there is not None and not there():
        raise UserError(
            f"this model was built for {device}, and there is no such device or no runtime for it here",
            where=model.uri,
            fix=f"install {_package(device)} on a machine that has one, or build the model for cpu",
        )
    return og


def _package(device: str) -> str:
    return "onnxruntime-genai" + {"cuda": "-cuda", "dml": "-directml"}.get(device, "")


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
