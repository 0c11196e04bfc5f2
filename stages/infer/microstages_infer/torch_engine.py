"""A transformers model, with or without an adapter, run by torch.

Prompts of unequal length are padded on the left under an attention mask made from the lengths: no token stands for
padding, so a prompt may hold any. transformers' `generate` drives the model, since it knows every architecture's cache;
what it is told of ends and sampling is nothing: `decoding` decides, so a folder's generation settings cannot change
the result unseen.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from microstages.artifact import Artifact
from microstages.errors import UserError
from microstages.tokens import ModelText, read_json

from microstages_infer.decoding import Choose

INSTALL = "pip install 'microstages-infer[torch]', or give an ONNX model"


class TorchEngine:
    """A loaded model of torch. `warn` gets what the caller may want to know.

    Raises UserError where torch or the device is not there, the weights do not fit the model, or the adapter does not
    belong to it.
    """

    name = "transformers"

    def __init__(
        self,
        model: Artifact,
        adapter: Artifact | None,
        *,
        device: str,
        precision: str,
        threads: int,
        warn: Callable[[str], None],
    ) -> None:
        self.text = ModelText(model.path)
        self.stop_ids = frozenset(self.text.stop_ids)
        if adapter is not None:
            check_base(model, adapter, warn)
            self.stop_ids |= {int(i) for i in adapter.metadata.get("stop_token_ids") or []}
        limit = self.text.config.get("max_position_embeddings")
        self.context = self.together = int(limit) if isinstance(limit, int) and limit > 0 else None
        # LongRoPE: beyond this length all rows of a batch get the long factors, whatever their own length
        short = self.text.config.get("original_max_position_embeddings")
        if isinstance(short, int) and self.context is not None:
            self.together = min(short, self.context)
        size = self.text.config.get("vocab_size")
        self.vocabulary = size if isinstance(size, int) else None
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported
        try:
            import torch
            import transformers
        except ImportError as error:
            raise UserError(f"this model needs torch and transformers: {error}", where=model.uri, fix=INSTALL) from None
        self.device = _device(device)
        torch.set_num_threads(threads)
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        with warnings.catch_warnings(), memory():
            warnings.simplefilter("ignore", FutureWarning)  # of libraries among themselves
            self.model = _load(model, adapter, self.device, precision)
        self.precision = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(
            str(self.model.dtype).removeprefix("torch."), str(self.model.dtype)
        )
        self.adapted = adapter is not None
        self._kept: tuple[list[int], Any] | None = None

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        room: int,
        choose: Choose | None,
        took: Callable[[list[int]], bool],
        keep: bool = False,
    ) -> None:
        """See `decoding.Engine`."""
        import torch
        from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        longest = max(len(p) for p in prompts)
        ids = torch.zeros((len(prompts), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, p in enumerate(prompts):
            ids[row, longest - len(p) :] = torch.tensor(p)
            mask[row, longest - len(p) :] = 1

        def choosing(_: Any, scores: Any) -> Any:
            assert choose is not None
            tokens = torch.tensor(choose(scores.float().cpu().numpy()), device=scores.device)
            return torch.full_like(scores, float("-inf")).scatter_(1, tokens[:, None], 0.0)

        said: list[int] = []

        def step(sequences: Any, scores: Any, **_: Any) -> Any:  # noqa: ARG001  (the protocol of transformers)
            tokens = sequences[:, -1].tolist()
            said.append(tokens[0])
            going = took(tokens)
            return torch.full((len(sequences),), not going, device=sequences.device, dtype=torch.bool)

        options: dict[str, Any] = {}
        if keep:
            cache = self._continued(list(prompts[0]))
            options["past_key_values"] = cache = DynamicCache(config=self.model.config) if cache is None else cache
        with torch.inference_mode(), memory():
            self.model.generate(
                input_ids=ids.to(self.device),
                attention_mask=mask.to(self.device),
                generation_config=GenerationConfig(max_new_tokens=room, do_sample=False, pad_token_id=0),
                logits_processor=LogitsProcessorList([choosing] if choose else []),
                stopping_criteria=StoppingCriteriaList([step]),
                **options,
            )
        if keep:
            known = [*prompts[0], *said][:-1]  # the last token was chosen, not read
            self._kept = (known, cache) if cache.get_seq_length() == len(known) else None

    def read(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[Any]:
        """See `decoding.Engine`. Padding stands on the right, where no token looks."""
        import torch

        longest = max(len(s) for s in sequences) - 1  # after the last token nothing is to predict
        ids = torch.zeros((len(sequences), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, s in enumerate(sequences):
            ids[row, : len(s) - 1] = torch.tensor(s[:-1])
            mask[row, : len(s) - 1] = 1
        first = min(starts) - 1
        # some architectures give the logits of every token, whether they are wanted or not
        only: dict[str, int] = {"logits_to_keep": longest - first} if self.model._supports_logits_to_keep() else {}
        with torch.inference_mode(), memory():
            logits = self.model(
                input_ids=ids.to(self.device), attention_mask=mask.to(self.device), use_cache=False, **only
            ).logits
            logits = logits[:, first - longest :].float().cpu().numpy()
        return [
            logits[row, start - 1 - first : len(s) - 1 - first]
            for row, (s, start) in enumerate(zip(sequences, starts, strict=True))
        ]

    def _continued(self, prompt: list[int]) -> Any:
        """The cache of the last prompt, cut to what this one begins with alike; None where it cannot be cut."""
        from transformers.cache_utils import DynamicLayer

        if self._kept is None:
            return None
        known, cache = self._kept
        self._kept = None
        if any(type(layer) is not DynamicLayer for layer in cache.layers):
            return None
        same = next((i for i, (a, b) in enumerate(zip(known, prompt, strict=False)) if a != b), len(known))
        same = min(same, len(prompt) - 1)
        if same == 0:
            return None
        cache.crop(same - len(known))
        return cache


@contextmanager
def memory() -> Iterator[None]:
    """torch's ways to say that there is not enough memory become Python's."""
    import torch

    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise MemoryError from None
        raise


def check_base(model: Artifact, adapter: Artifact, warn: Callable[[str], None]) -> None:
    """Raises UserError where the adapter says that it was trained on another model than this."""
    base = adapter.metadata.get("base_model")
    digest = base.get("digest") if isinstance(base, dict) else base
    if digest is None:  # our adapters say it in PEFT's own file too, where a path or a hub's name usually stands
        named = read_json(adapter.path / "adapter_config.json").get("base_model_name_or_path")
        digest = named if isinstance(named, str) and named.startswith("sha256:") else None
    if digest is not None and digest != model.digest:
        raise UserError(
            f"this adapter was trained on another base model: on {digest[:19]}…, not on {model.digest[:19]}…",
            where=adapter.uri,
            fix="give --model the base model that the adapter was trained on",
        )
    if quantization := adapter.metadata.get("quantization"):
        kind = quantization.get("type", "quantized") if isinstance(quantization, dict) else quantization
        if isinstance(quantization, dict) and quantization.get("loftq"):
            warn(
                f"this adapter began as what the {kind} quantization lost (LoftQ): it belongs on the dequantized base "
                "only, and on the base as it is its answers are off by that (`merge` makes the model that was trained)"
            )
            return
        warn(
            f"this adapter was trained on the {kind} quantized base; here it runs on the base as it is, which differs "
            "a little (`merge` can make the model that was trained)"
        )


def _device(wanted: str) -> str:
    import torch

    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise UserError(
            "there is no CUDA device here, or this torch was built without CUDA",
            where="--device cuda",
            fix="leave --device out to use the CPU, or install a CUDA build of torch",
        )
    return "cuda" if there and wanted != "cpu" else "cpu"


def _load(model: Artifact, adapter: Artifact | None, device: str, precision: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    # on a CPU fp32 is the reference that other forms are compared with, and never slow for want of instructions
    auto = "auto" if device == "cuda" else torch.float32
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, auto)
    fix = "check that the folder is complete, and that it is a causal language model that transformers knows"
    try:
        pair: Any = AutoModelForCausalLM.from_pretrained(
            model.path, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False,
            output_loading_info=True,
        )  # fmt: skip
        loaded, info = pair
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, ImportError, SafetensorError …
        raise UserError(f"transformers cannot load this model: {_reason(error)}", where=model.uri, fix=fix) from None
    if missing := sorted(info["missing_keys"]):
        # transformers would leave these weights random
        raise UserError(
            f"its weights lack {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""),
            where=model.uri,
            fix=fix,
        )
    loaded.generation_config = GenerationConfig()
    loaded.eval().to(device)
    return loaded if adapter is None else _adapted(loaded, adapter).eval().to(device)


def _adapted(model: Any, adapter: Artifact) -> Any:
    import torch

    try:
        from peft import PeftConfig, PeftModelForCausalLM
    except ImportError as error:
        raise UserError(f"an adapter needs peft: {error}", where=adapter.uri, fix=INSTALL) from None
    fix = "give --model the base model that the adapter was trained on"
    try:
        config = PeftConfig.from_pretrained(str(adapter.path))
        config.inference_mode = True
        adapted = PeftModelForCausalLM(model, config)
        found = adapted.load_adapter(str(adapter.path), "default")
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # peft raises ValueError, RuntimeError, KeyError, TypeError, SafetensorError …
        raise UserError(
            f"this adapter cannot be put on the model: {_reason(error)}", where=adapter.uri, fix=fix
        ) from None
    if strange := [*found.unexpected_keys, *found.missing_keys]:
        what = "has weights for no layer of the model" if found.unexpected_keys else "lacks weights for the model"
        raise UserError(f"this adapter {what}: {strange[0]}", where=adapter.uri, fix=fix)
    return adapted


def _reason(error: BaseException) -> str:
    """The line of an error that says what is wrong: of torch's lists of tensors the first that does not fit."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    misfit = next((line for line in lines if "size mismatch" in line), None)
    return (misfit or (lines[0] if lines else type(error).__name__)).rstrip(".")
