"""What rows of a data config become: text, and sequences of it. `old` is generation A.

What a generation did where a config says nothing is written out: A cut rows one by one and joined them with nothing, B
joins them with an empty line; both put the words of the special tokens around a text and dropped a last full block.
"""

from __future__ import annotations

from runner.document import Place
from runner.olive.params import Params
from runner.olive.section import LOST, NEEDLESS, USED, Layers, Section

STRATEGIES = {
    "line-by-line": "line",
    "line-by-line-random": "line-random",
    "join": "join",
    "join-random": "join-random",
    "join-sliding-window": "join-sliding",
}
PAIRS = {"default": ("input", "output"), "self_instruct": ("prompt", "completion"), "custom": ("", "")}
ROWS_FIRST = "write the rows that it makes into a file, and prepare that one"


def read_text(make: Layers, old: bool) -> Params:
    """How a row becomes text."""
    out = Params()
    for key in ("text_formatting_func", "input_formatting_func", "output_formatting_func"):
        function = make.take(key, "text")
        make.fate(key, LOST, ROWS_FIRST)
        if function and (holder := make.holder(key)):
            holder.wrong(holder.place(key), f"{holder.at(key)}: code of a config is never run", ROWS_FIRST)
    dataset_type = make.take("dataset_type", "text", among=("corpus", "pair"), default="corpus")
    make.fate("dataset_type", USED, "template or columns" if dataset_type == "corpus" else "a prompt and its answer")
    template, columns = make.take("text_template", "text"), make.take("text_cols", "text", "list", of="text")
    chat, messages = make.take("chat_template", "flag", "text"), make.take("message_col", "text") or "messages"
    marked = make.read("add_special_tokens", "flag", how=USED, text="special_tokens_as_text", default=True)
    paired = dataset_type == "pair"
    if chat:
        out.put("messages_field", messages)
        out.put("conversation", "text")
        out.put("chat_template", chat if isinstance(chat, str) else None)
    elif marked:
        out.put("special_tokens_as_text", True, note="as Olive wrote it: the words '<bos> text <eos>', with spaces")
    else:
        out.put("end_token", "none")
    make.fate("chat_template", USED, "messages_field")
    make.fate("message_col", *((USED, "messages_field") if chat else (NEEDLESS, "there is no chat_template")))
    if paired:
        _pair(make, out)
    why = "chat_template is used" if chat else "dataset_type is pair" if paired else "text_template is used"
    if template and not chat and not paired:
        holder = make.holder("text_template")
        out.put("template", template, holder.place("text_template") if holder else None)
        out.put("values", "python")
        make.fate("text_template", USED, "template")
    elif not chat and not paired:
        wanted = [columns] if isinstance(columns, str) else columns
        if not wanted and old:
            _missing(make, "text_template or text_cols")
        out.put("columns", wanted or ["text"])
        make.fate("text_cols", USED, "columns")
    make.fate("text_template", NEEDLESS, why)
    make.fate("text_cols", NEEDLESS, why)
    return out


def _pair(make: Layers, out: Params) -> None:
    """The prompts and answers of generation A."""
    shape = make.take("pair_format", "text", among=(*PAIRS, "alpaca", "chip2"), default="default")
    make.fate("pair_format", USED, "prompt_field and completion_field")
    if shape not in PAIRS and (holder := make.holder("pair_format")):
        what = f"the format {shape} has no template of its own here"
        holder.wrong(
            holder.place("pair_format"), what, "write pair_format: custom, with input_template and output_template"
        )
        shape = "default"
    sides = (("input", "prompt"), ("output", "completion"))
    templates = [make.take(f"{old}_template", "text") for old, _ in sides]
    fields = [make.take(f"{old}_col", "text") for old, _ in sides]
    custom = shape == "custom"
    if custom and not all(t or f for t, f in zip(templates, fields, strict=True)):
        _missing(make, "input_template or input_col, and output_template or output_col,")
    for n, (old, new) in enumerate(sides):
        if custom and any(templates):
            out.put(f"{new}_template", templates[n] or f"{{{fields[n]}}}")
        else:
            out.put(f"{new}_field", fields[n] if custom and fields[n] else PAIRS[str(shape)][n])
        for key, used in ((f"{old}_template", custom), (f"{old}_col", custom and not templates[n])):
            make.fate(key, *((USED, new) if used else (NEEDLESS, "the pair's format or template says it")))
    if any(templates) and custom:
        out.put("values", "python")
    hidden = make.read("ignore_source_in_labels", "flag", how=USED, text="loss", default=True)
    out.put("loss", "completion" if hidden else "all")


def _missing(make: Layers, what: str) -> None:
    for section in make.sections[:1]:
        section.wrong(section.node.place, f"{section.path} has no {what}", "it says what text a row becomes")


def read_sequences(section: Section, make: Layers, old: bool, text: Params) -> Params:
    """How texts become sequences."""
    out = Params()
    paired = "prompt_field" in text.values or "prompt_template" in text.values
    strategy = ""
    for key in ("corpus_strategy", "strategy"):
        holder = make.holder(key)
        given = holder.word(key, STRATEGIES) if holder else ""
        strategy = strategy or given
        make.fate(key, *((NEEDLESS, "pairs are a row each") if paired else (USED, f"strategy: {given}")))
    strategy = "line" if paired else strategy or ("line" if old else "join")
    joins, drawn = strategy.startswith("join"), strategy.endswith("random")
    out.put("strategy", strategy)
    lengths = [make.take(k, "whole") for k in ("source_max_len", "max_seq_len")]
    target = make.take("target_max_len", "whole")
    length = next((v for v in lengths if v is not None), None if old else 1024)
    if length is None and not any(s.given("source_max_len") for s in make.sections):
        where = make.sections[0] if make.sections else section
        where.wrong(where.node.place, f"{where.path} has no source_max_len", "it is the length of a sequence")
    if paired and length is not None:
        out.put("prompt_max_length", length)
        length += target or 0
        if target is None:
            _missing(make, "target_max_len")
    out.put("max_length", length, _place(make, "source_max_len", "max_seq_len"))
    for key in ("source_max_len", "max_seq_len"):
        make.fate(key, USED, "prompt_max_length" if paired else "max_length")
    make.fate("target_max_len", *((USED, "max_length") if paired else (NEEDLESS, "dataset_type is not pair")))
    joiner = make.take("joiner", "text", default="" if old else "\n\n")
    make.fate("joiner", *((USED, "joiner") if joins else (NEEDLESS, "rows are not joined")))
    if joins:
        out.put("joiner", joiner)
    if strategy in ("join", "join-sliding"):
        out.put("keep_last_full", False, note="Olive dropped a last block that was just full")
    for key, name, used, default in (
        ("stride", "stride", strategy == "join-sliding", None),
        ("processing_batch_size", "group_rows", strategy == "join-sliding", 1024),
        ("max_samples", "max_sequences", True, None),
        ("random_retries", "draws", drawn, 10), ("random_seed", "draw_seed", drawn, None),
    ):  # fmt: skip
        value = make.take(key, "whole", default=default)
        make.fate(key, *((USED, name) if used else (NEEDLESS, f"the strategy is {strategy}")))
        if used:
            out.put(name, value, _place(make, key))
            if value is None and (key != "max_samples" or drawn):
                _missing(make, f"{key}, which the strategy {strategy} needs")
    _padding(make, out, joins, old)
    out.put("empty_rows", "keep" if old else "drop")
    out.put("deduplicate", False)
    return out


def _padding(make: Layers, out: Params, joins: bool, old: bool) -> None:
    pad = make.take("pad_to_max_len", "flag", default=True)
    make.fate("pad_to_max_len", *((NEEDLESS, "joined rows need none") if joins else (USED, "pad")))
    mask = make.take("use_attention_mask", "flag", default=True)
    short = make.take("drop_short_sequences", "flag", default=False)
    make.fate("drop_short_sequences", *((NEEDLESS, "joined rows are never short") if joins else (USED, "short_rows")))
    if not joins:
        out.put("pad", pad)
        out.put("short_rows", "drop" if short else "keep")
        for key, wrong in (("drop_short_sequences", short and pad), ("use_attention_mask", pad and not mask)):
            if wrong and (where := make.holder(key)):
                where.wrong(where.place(key), f"{where.at(key)} contradicts pad_to_max_len", "change one of them")
    if old:
        out.put("loss_on_pad", not mask)
        if mask:
            out.put("hide_pad", True, note="from attention, as Olive did then, with end tokens that are pad tokens")
        why = "with a mask Olive then trained no pad token anywhere, and hid them all from attention" if mask else ""
        becomes = f"loss_on_pad: {str(not mask).lower()}" + (", hide_pad: true" if mask else "")
        make.fate("use_attention_mask", USED, becomes, why)
    make.fate("use_attention_mask", NEEDLESS, "sequences are never mixed, and what fills them is not trained")
    side = make.take("padding_side", "text", among=("left", "right"))
    make.fate("padding_side", NEEDLESS, f"{side}: what is trained is the same on either side")


def _place(make: Layers, *keys: str) -> Place | None:
    for key in keys:
        if holder := make.holder(key):
            return holder.place(key)
    return None
