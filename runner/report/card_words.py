"""Markdown that a card is made of, and how to use each kind of model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from string import Formatter

from runner.lineage import Node

LONGEST = 1000  # characters of a value


def md(value: object) -> str:
    """A value as words of Markdown, on one line: nothing in it is markup."""
    words = " ".join(str(value).split())[:LONGEST]
    return re.sub(r"([\\`*_{}\[\]|~#])", r"\\\1", escape(words, quote=False))


def code(value: object) -> str:
    """A value as code, also in a table."""
    if isinstance(value, float):
        value = f"{value:g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())[:LONGEST]
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}".replace("|", "\\|")


def rows_of(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def usage(node: Node, data: Node | None, base: str = "") -> str:
    """How to get an answer, with the prompt that it was trained on where that is known. `base`: its name on the hub."""
    words = {"PROMPT": prompt_of(node, data), "BASE": base or "path/to/the/base/model"}
    quoted = {k: json.dumps(v, ensure_ascii=False).replace("`", "\\u0060") for k, v in words.items()}
    program = re.sub("PROMPT|BASE", lambda m: quoted[m[0]], PROGRAMS[node.kind])
    return f"## How to use\n\n```python\n{program}```"


def prompt_of(node: Node, data: Node | None) -> str:
    """What stands before the answer, with `…` for each field: as the model's own record tells, else its data's.

    Without the spaces at its end: in training they belong to the answer.
    """
    how = next((t for n in (node, data) if n is not None and isinstance(t := n.metadata.get("template"), Mapping)), {})
    form = how.get({"template": "template", "templates": "prompt_template"}.get(str(how.get("kind")), ""))
    if not isinstance(form, str):
        return "…"
    if how.get("kind") == "template" and how.get("completion"):
        form = form.rpartition(f"{{{how['completion']}}}")[0].rstrip(" ")
    try:
        parsed = [text + ("" if field is None else "…") for text, field, _, _ in Formatter().parse(form)]
    except ValueError:
        return "…"
    return "".join(parsed) if form.strip() else "…"


PROGRAMS = {
    "onnx-model": '''\
import onnxruntime_genai as og  # pip install onnxruntime-genai

model = og.Model(".")  # this folder
tokenizer = og.Tokenizer(model)
params = og.GeneratorParams(model)
tokens = tokenizer.encode(PROMPT)
params.set_search_options(max_length=len(tokens) + 64, do_sample=False)
generator = og.Generator(model, params)
generator.append_tokens(tokens)
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)[len(tokens):]))
''',
    "model": '''\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")  # this folder
tokenizer = AutoTokenizer.from_pretrained(".")
tokens = tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False)
answer = model.generate(**tokens, max_new_tokens=64, do_sample=False)
print(tokenizer.decode(answer[0, tokens.input_ids.shape[1]:], skip_special_tokens=True))
''',
    "adapter": '''\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = BASE
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), ".")  # this folder
tokenizer = AutoTokenizer.from_pretrained(base)
tokens = tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False)
answer = model.generate(**tokens, max_new_tokens=64, do_sample=False)
print(tokenizer.decode(answer[0, tokens.input_ids.shape[1]:], skip_special_tokens=True))
''',
}  # fmt: skip
