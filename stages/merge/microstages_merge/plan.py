"""Which tensor of the base model becomes what: decided from names and shapes alone, before a number is read.

The rule for everything: the merged model computes what the trained model computed. That matters where the input and the
output embeddings are one tensor. PEFT trains only the side that was adapted; so unless the adapter says
`ensure_weight_tying`, the two sides part, and the config says so (PEFT's own merge would change both, or
neither: https://github.com/huggingface/peft/issues/2777). Where both sides end up equal they stay one tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from microstages.errors import UserError, nearest
from microstages.tensors import FLOATS, Tensor, Weights

from microstages_merge.adapter import Adapter, Factors
from microstages_merge.recipe import Lora, Plan, Quantization, Recipe

INPUT = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings")
OUTPUT = ("lm_head", "embed_out")
CONV1D = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}  # models whose layers store (in, out)
DTYPES = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


@dataclass(frozen=True)
class Base:
    """The base model: its folder, `config.json`, and where its tensors lie."""

    folder: Path
    config: Mapping[str, Any]
    weights: Weights

    def find(self, name: str) -> str | None:
        """The tensor that holds a parameter. A checkpoint may lack the outermost module's name, or have one more."""
        tensors = self.weights.tensors
        inner = name.partition(".")[2]
        for candidate in (name, inner):
            if candidate in tensors:
                return candidate
        longer = [t for t in tensors if t.endswith(f".{name}")]
        return longer[0] if len(longer) == 1 else None

    def embedding(self, names: tuple[str, ...]) -> str | None:
        """The weight of the input or output embeddings."""
        found = [n for n, t in self.weights.tensors.items() if _leaf(n) in names and len(t.shape) == 2]
        return found[0] if len(found) == 1 else None


def _leaf(name: str) -> str:
    """`lm_head` of `model.lm_head.weight`."""
    return name.removesuffix(".weight").rpartition(".")[2]


def make_plan(
    base: Base, adapter: Adapter, dtype: str = "base", quantizations: Mapping[str, Quantization] | None = None
) -> Plan:
    """The whole output. `quantizations`: by module, what the base's weights went through.

    Raises UserError naming the tensor where the adapter does not fit the base.
    """
    recipes = {n: Recipe(n, t.dtype, t) for n, t in base.weights.tensors.items()}
    for module, quantization in (quantizations or {}).items():
        name = base.find(f"{module}.weight")
        if name is None or len(recipes[name].shape) != 2:
            raise _no_such(base, adapter, f"{module}.weight", "was quantized in training")
        recipes[name] = replace(recipes[name], quantization=quantization)
    changes: dict[str, object] = {}
    used = _tie(base, adapter, recipes, changes)
    for name, tensor in adapter.whole.items():
        if name not in used:
            target = base.find(name)
            if target is None:
                raise _no_such(base, adapter, name, "is in the adapter")
            recipes[target] = _replaced(base, adapter, recipes[target], tensor)
    for module, factors in adapter.factors.items():
        if module not in used:
            target = base.find(f"{module}.weight")
            if target is None:
                raise _no_such(base, adapter, f"{module}.weight", "was adapted")
            recipes[target] = _adapted(base, adapter, recipes[target], module, factors)
        _add_bias(base, adapter, recipes, module, factors)
    for module, tensor in adapter.rows.items():
        if module not in used:
            target = base.find(f"{module}.weight")
            if target is None:
                raise _no_such(base, adapter, f"{module}.weight", "has trained tokens")
            recipes[target] = _with_rows(adapter, recipes[target], module, tensor)
    _resize(base, adapter, recipes, changes)
    if dtype != "base":
        recipes = {n: replace(r, dtype=DTYPES[dtype]) if r.dtype in FLOATS else r for n, r in recipes.items()}
        keys = [k for k in ("dtype", "torch_dtype") if k in base.config] or ["dtype"]
        changes |= {k: NAMES[DTYPES[dtype]] for k in keys if base.config.get(k) != NAMES[DTYPES[dtype]]}
    name = base.embedding(INPUT)
    return Plan(_files(base, recipes), changes, recipes[name].shape[0] if name else None)


def _tie(base: Base, adapter: Adapter, recipes: dict[str, Recipe], changes: dict[str, object]) -> set[str]:
    """Handle what touches tied embeddings; returns the names of the adapter that are done with."""
    name, head = base.embedding(INPUT), base.embedding(OUTPUT)
    if name is None or not base.config.get("tie_word_embeddings", head is None):
        return set()
    start, settings, used = recipes[name], adapter.settings, set[str]()

    def mine(modules: Mapping[str, Any], suffix: str = "") -> tuple[str | None, str | None]:
        inputs = [m for m in modules if m.endswith(suffix) and base.find(m.removesuffix(suffix) + ".weight") == name]
        outputs = [m for m in modules if m.endswith(suffix) and _leaf(m) in OUTPUT]
        used.update(inputs, outputs)
        return next(iter(inputs), None), next(iter(outputs), None)

    # Whole tensors: one that PEFT saved beside the adapter is the weight that both sides share; one of
    # `modules_to_save` was trained on its own, and the other side kept what it had.
    whole_in, whole_out = mine(adapter.whole, ".weight")
    sides = [start, start]
    for side, whole in enumerate((whole_in, whole_out)):
        if whole is not None:
            sides[side] = _replaced(base, adapter, start, adapter.whole[whole])
    for side, whole, other in ((0, whole_in, whole_out), (1, whole_out, whole_in)):
        if whole is not None and other is None:
            alone = settings.saves(whole.removesuffix(".weight")) and not settings.tied
            if not alone or sides[side].shape != start.shape:
                sides[1 - side] = sides[side]
    if whole_in and whole_out and same_bytes(adapter.weights, sides[0].source, sides[1].source):
        sides[1] = sides[0]

    factors_in, factors_out = mine(adapter.factors)
    if (shared := _shared_factors(adapter, factors_in, factors_out)) is not None:
        sides = [_adapted(base, adapter, sides[0], shared, adapter.factors[shared])] * 2
    else:
        for side, own in enumerate((factors_in, factors_out)):
            if own is not None:
                sides[side] = _adapted(base, adapter, sides[side], own, adapter.factors[own])

    rows_in, rows_out = mine(adapter.rows)
    if rows_in is not None:
        done = [_with_rows(adapter, s, rows_in, adapter.rows[rows_in]) for s in sides]
        sides = [done[0], done[1] if rows_out is None else sides[1]]
    if rows_out is not None:
        sides[1] = _with_rows(adapter, sides[1], rows_out, adapter.rows[rows_out])
        both = sides[0].rows, sides[1].rows
        if both[0] and both[1] and both[0][0] == both[1][0] and same_bytes(adapter.weights, both[0][1], both[1][1]):
            sides[1] = replace(sides[1], rows=both[0])

    recipes[name] = sides[0]
    head = head or "lm_head.weight"
    if sides[0] != sides[1]:
        recipes[head] = replace(sides[1], name=head)
        changes["tie_word_embeddings"] = False
    elif head in recipes:
        recipes[head] = replace(sides[1], name=head)
    return used


def _shared_factors(adapter: Adapter, factors_in: str | None, factors_out: str | None) -> str | None:
    """The module whose factors count for both sides of tied embeddings.

    Where both sides have factors they must be the same, transposed: PEFT ties them, but its cast to fp32 parts them.
    """
    if not adapter.settings.tied:
        return None
    if factors_in is None or factors_out is None:
        return factors_in or factors_out
    one, other = adapter.factors[factors_in], adapter.factors[factors_out]

    def transposed(a: Tensor, b: Tensor) -> bool:
        x, y = (adapter.weights.read(t).reshape(t.shape) for t in (a, b))
        return x.shape == y.shape[::-1] and bool((x == y.T).all())

    return factors_in if transposed(one.a, other.b) and transposed(one.b, other.a) else None


def same_bytes(weights: Weights, one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    step = 1 << 22
    return all(
        weights.read_bytes(one, i, min(i + step, one.nbytes)) == weights.read_bytes(other, i, min(i + step, one.nbytes))
        for i in range(0, one.nbytes, step)
    )


def _adapted(base: Base, adapter: Adapter, recipe: Recipe, module: str, factors: Factors) -> Recipe:
    settings = adapter.settings
    out, into = factors.b.shape[0], factors.a.shape[1]
    stored = settings.fan_in_fan_out or base.config.get("model_type") in CONV1D
    transposed = factors.embedding or (stored and _leaf(module) not in OUTPUT)
    if not factors.embedding and out != into:  # the shape decides; PEFT's flag is that of the last adapted layer
        transposed = recipe.shape == (into, out)
    wanted = (into, out) if transposed else (out, into)
    if recipe.shape != wanted:
        raise UserError(
            f"the adapter changes {recipe.name} as {list(wanted)}, and in the base model it is {list(recipe.shape)}",
            where=adapter.folder,
            fix="give the base model that the adapter was trained on",
        )
    if transposed and recipe.quantization is not None:
        raise UserError(
            f"{recipe.name} is stored transposed; dequantizing such layers is not supported",
            where=base.folder,
            fix="merge into the original weights: --base original",
        )
    if factors.magnitude is not None:
        _check_shape(adapter, factors.magnitude, (out,))
    return replace(recipe, lora=Lora(factors.a, factors.b, settings.scale_of(module), transposed, factors.magnitude))


def _add_bias(base: Base, adapter: Adapter, recipes: dict[str, Recipe], module: str, factors: Factors) -> None:
    if factors.bias is None:
        return
    name = base.find(f"{module}.bias")
    if name is None:
        raise UserError(
            f"the adapter has a bias for {module} (lora_bias), which has none in the base model",
            where=adapter.folder,
            fix="train without lora_bias",
        )
    _check_shape(adapter, factors.bias, recipes[name].shape)
    recipes[name] = replace(recipes[name], bias=(factors.bias, adapter.settings.scale_of(module)))


def _replaced(base: Base, adapter: Adapter, recipe: Recipe, tensor: Tensor) -> Recipe:
    grown = _leaf(recipe.name) in INPUT + OUTPUT and len(tensor.shape) == len(recipe.shape)
    if tensor.shape != recipe.shape and not (grown and tensor.shape[1:] == recipe.shape[1:]):
        _check_shape(adapter, tensor, recipe.shape)
    return Recipe(recipe.name, base.weights.tensors[recipe.name].dtype, tensor)


def _with_rows(adapter: Adapter, recipe: Recipe, module: str, tensor: Tensor) -> Recipe:
    tokens = adapter.settings.tokens
    layer = next((k for k in tokens if k and (module == k or module.endswith(f".{k}"))), "")
    indices = tokens.get(layer) or next(iter(tokens.values()), ())
    _check_shape(adapter, tensor, (len(indices), *recipe.shape[1:]))
    if any(not 0 <= i < recipe.shape[0] for i in indices):
        raise UserError(
            f"{module} has a trained token {max(indices)}, and {recipe.name} has {recipe.shape[0]} rows",
            where=adapter.folder,
            fix="save the resized embeddings with the adapter (save_embedding_layers=True), or give its own base model",
        )
    return replace(recipe, rows=(indices, tensor))


def _resize(base: Base, adapter: Adapter, recipes: Mapping[str, Recipe], changes: dict[str, object]) -> None:
    """A vocabulary that grew: both embeddings have it, and the config says it."""
    name = base.embedding(INPUT)
    if name is None:
        return
    rows = {n: r.shape[0] for n, r in recipes.items() if n == name or (_leaf(n) in OUTPUT and len(r.shape) == 2)}
    if len(set(rows.values())) > 1:
        said = ", ".join(f"{n} {r}" for n, r in rows.items())
        raise UserError(
            f"the embeddings would have different numbers of rows: {said}",
            where=adapter.folder,
            fix="save both with the adapter: save_pretrained(…, save_embedding_layers=True)",
        )
    if rows[name] != base.weights.tensors[name].shape[0]:
        changes["vocab_size"] = rows[name]


def _files(base: Base, recipes: Mapping[str, Recipe]) -> dict[str, tuple[Recipe, ...]]:
    """The base's own files and order; a new tensor follows the input embeddings."""
    old = base.weights.tensors
    new = [r for n, r in recipes.items() if n not in old]
    anchor = base.embedding(INPUT)
    files = {}
    for shard in base.weights.shards:
        row = []
        for t in shard.tensors:
            row += [recipes[t.name], *(new if t.name == anchor else [])]
        files[shard.file.name] = tuple(row)
    return files


def _check_shape(adapter: Adapter, tensor: Tensor, wanted: tuple[int, ...]) -> None:
    if tensor.shape != wanted:
        raise UserError(
            f"{tensor.name} has the shape {list(tensor.shape)}, and the base model needs {list(wanted)}",
            where=adapter.folder,
            fix="give the base model that the adapter was trained on",
        )


def _no_such(base: Base, adapter: Adapter, name: str, why: str) -> UserError:
    return UserError(
        f"the base model has no tensor {name}, which {why}{nearest(name, base.weights.tensors)}",
        where=adapter.folder,
        fix="give the base model that the adapter was trained on",
    )
