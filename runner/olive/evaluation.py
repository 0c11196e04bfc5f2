"""The stages that measure: `infer` on rows whose answers are known, and a `select` of the best variant."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner.olive.data import Rows
from runner.olive.evaluators import Evaluator
from runner.olive.params import Params

if TYPE_CHECKING:
    from runner.olive.chain import Chain

RUNS = ("", "cpu", "cuda")  # execution providers of the models that infer runs; of folders of weights none


@dataclass(frozen=True)
class Form:
    """A model that a chain came to: its reference, that of an adapter beside it, the stage that made it, and what it is
    built for. `varied`: there are several of it, by a matrix."""

    model: str
    adapter: str = ""
    stage: str = ""
    provider: str = ""
    varied: bool = False


@dataclass(frozen=True)
class Questions:
    """How rows become prompts with known answers: parameters of prepare-data, and of the infer that asks them."""

    data: Params
    infer: Params


def questions(rows: Rows) -> Questions | None:
    """The prompts and answers of some rows; None where they are plain text. What a template has last is the answer.
    Raises ValueError for a template that cannot be read."""
    given = rows.params.values
    data, infer = Params(), Params()
    kept: tuple[str, ...] = (
        "where",
        "special_tokens_as_text",
        "end_token",
        "max_length",
        "prompt_max_length",
        "empty_rows",
    )
    if "messages_field" in given:
        kept += ("messages_field", "chat_template")
    elif found := [k for k in given if re.fullmatch("(prompt|completion)_(field|template)", k)]:
        kept += (*found, "values")
    else:
        text = given.get("template") or " ".join(f"{{{c}}}" for c in given.get("columns", ()))
        split = _answer(text)
        if split is None:
            return None
        template, completion, behind = split
        data.put("template", template)
        data.put("completion", completion)
        infer.put("stop", [behind] if behind else None)
    for name in kept:
        if name in given:
            data.put(name, given[name], rows.params.places.get(name))
    data.put("strategy", "line")
    data.put("deduplicate", False)
    infer.put("limit", given.get("max_sequences"))
    return Questions(data, infer)


def _answer(template: str) -> tuple[str, str, str] | None:
    """A template up to its last field, the field, and what stood behind it; None where it is no question and answer."""
    if "{{" in template or "}}" in template:
        return None
    pieces = list(string.Formatter().parse(template))
    fields = [f for _, f, _, _ in pieces if f is not None]
    plain = all(f and not re.search(r"[.\[]", f) for f in fields) and not any(s or c for _, _, s, c in pieces)
    if not plain or len(set(fields)) < 2:
        return None
    last = fields[-1]
    end = template.rindex(f"{{{last}}}") + len(last) + 2
    return template[:end], last, template[end:].strip()


class Measuring:
    """Adds the stages that measure to a chain."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.datasets: dict[str, str] = {}

    def form(self, form: Form, evaluator: Evaluator, rows: Rows | None, name: str, searching: bool) -> None:
        """Measure one form of the model; of its variants take the best."""
        from runner.olive.chain import Draft

        chain = self.chain
        measured = form.stage
        if evaluator.answers:
            measured = self.answers(form, evaluator, rows, name)
        if not form.varied or not searching or not form.stage:
            return
        ranked = evaluator.ranked
        if ranked is None or not measured:
            chain.report.note(
                f"nothing that is measured here ranks the variants of {form.stage}: all are kept, and none is chosen"
            )
            return
        select: dict[str, Any] = {"from": measured}
        if measured != form.stage:
            select["take"] = form.stage
        select["maximize" if ranked.best > 0 else "minimize"] = ranked.measure
        if limits := evaluator.limits:
            select["where"] = limits
        about = "the best variant, as search_strategy had it"
        chain.add(Draft("best", "select", {}, Params(), evaluator.place, chain.target, about, select=select))

    def answers(self, form: Form, evaluator: Evaluator, rows: Rows | None, name: str) -> str:
        """The stage infer of one form; empty where it cannot be asked."""
        from runner.olive.chain import Draft

        chain = self.chain
        why = ""
        try:
            asked = questions(rows) if rows is not None else None
        except ValueError as error:
            assert rows is not None
            place = rows.params.places.get("template", rows.place)
            what = f"the template of {rows.name} cannot be read: {error}"
            chain.problems.add(place, what, "for braces in the text write {{ and }}")
            return ""
        if form.provider not in RUNS:
            why = f"infer runs models for the CPU and for CUDA, and {form.stage} is built for {form.provider}"
        elif rows is None:
            why = "it names no data_config, and there is no training whose rows could be taken"
        elif asked is None:
            why = (
                f"the rows of {rows.name} are plain text, without prompts and answers: prepare them with a template of "
                "two fields and more, or give infer a text as `neutral` for its perplexity"
            )
        if why or rows is None or asked is None:
            chain.report.note(f"the evaluator {evaluator.name} measures nothing of {form.stage or 'the input'}: {why}")
            return ""
        inputs = {"model": form.model, "dataset": self.dataset(rows, asked)}
        if form.adapter:
            inputs["adapter"] = form.adapter
        gpus = form.provider == "cuda" or (not form.provider and chain.target.gpu)
        return chain.add(
            Draft(
                name, "infer", inputs, evaluator.params.merged(asked.infer), evaluator.place, chain.target,
                f"evaluator {evaluator.name}", resources={"gpus": 1} if gpus else {},
            )
        )  # fmt: skip

    def dataset(self, rows: Rows, asked: Questions) -> str:
        """The stage that holds all of these rows out, as prompts and answers."""
        from runner.olive.chain import BASE, Draft

        chain = self.chain
        params = Params()
        params.put("files", list(rows.files) or None)
        params.put("split", rows.split)
        params.put("test_split", rows.split or "train", note="all of these rows are asked, none is trained")
        params = params.merged(asked.data)
        key = repr((rows.source, params.values))
        if key not in self.datasets:
            inputs: Mapping[str, str] = {"source": chain.source(rows, "questions"), "model": BASE}
            made = chain.add(
                Draft("questions", "prepare-data", dict(inputs), params, rows.place, chain.target,
                      f"the rows of {rows.name}, as prompts and answers")
            )  # fmt: skip
            self.datasets[key] = f"${{{{ stages.{made}.dataset }}}}"
        return self.datasets[key]
