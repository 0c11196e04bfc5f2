"""The program `prepare-data`: its parameters are this signature; the work begins in `prepare`."""

from __future__ import annotations

from typing import Annotated, Literal

from microstages.artifact import Artifact, Draft
from microstages.stage import Input, Output, Param, Run, stage


@stage("prepare-data", package="microstages_prepare_data")
def main(
    run: Run,
    source: Annotated[Artifact, Input("files", help="rows: JSON, JSON Lines, CSV or Parquet; file, folder or pattern")],
    model: Annotated[Artifact, Input("model", help="whose tokenizer and chat template are used")],
    output: Annotated[Draft, Output("dataset", name="dataset")],
    test_source: Annotated[
        Artifact | None, Input("files", help="rows to hold out, where the data comes with a split of its own")
    ] = None,
    *,
    files: Annotated[
        list[str] | None, Param("names or patterns of files within the source, read in this order; default: all")
    ] = None,
    split: Annotated[
        str | None, Param("split of the source, or a slice of one: train[:90%], train[100:200], train+validation")
    ] = None,
    test_split: Annotated[
        str | None, Param("split or slice to hold out: of --test-source, of the source where none is given")
    ] = None,
    where: Annotated[
        list[str] | None, Param("keep rows whose field has this value, field=value; several: all hold")
    ] = None,
    template: Annotated[str | None, Param("text of a row, with {field} for its values; {{ and }} for braces")] = None,
    completion: Annotated[str | None, Param("field whose last place in the template begins the answer")] = None,
    columns: Annotated[list[str] | None, Param("fields joined by one space, in place of a template")] = None,
    prompt_field: Annotated[str | None, Param("field that holds the prompt, in place of a template")] = None,
    completion_field: Annotated[str | None, Param("field that holds the answer to it")] = None,
    prompt_template: Annotated[str | None, Param("text of the prompt, with {field} for the row's values")] = None,
    completion_template: Annotated[str | None, Param("text of the answer to it, likewise")] = None,
    messages_field: Annotated[str | None, Param("field that holds chat messages, for the chat template")] = None,
    conversation: Annotated[
        Literal["turns", "text"],
        Param("turns: the assistant's are answers; text: all that the chat template writes is one text"),
    ] = "turns",
    as_chat: Annotated[
        bool, Param("put prompt and answer into the model's chat template, as messages of user and assistant")
    ] = False,
    chat_template: Annotated[str | None, Param("jinja source of a chat template, in place of the model's")] = None,
    values: Annotated[
        Literal["plain", "python"],
        Param("of templates. plain: text and numbers; python: what str.format writes, None for null, {x:>8} too"),
    ] = "plain",
    empty_rows: Annotated[
        Literal["bad", "drop", "keep"],
        Param(
            "a row without text. bad: a bad row; drop: left out; keep: a row. drop and keep keep rows with nothing"
            " to train"
        ),
    ] = "bad",
    loss: Annotated[
        Literal["auto", "completion", "all"], Param("what is trained; auto: the completion where one is known")
    ] = "auto",
    loss_on_pad: Annotated[
        bool, Param("train the pad token where the text holds it; off: never, though it be the eos token too")
    ] = True,
    hide_pad: Annotated[
        bool, Param("hide pad tokens from attention in training, also within a sequence; with --no-loss-on-pad")
    ] = False,
    end_token: Annotated[
        str, Param("token that ends an answer; auto: the chat template's, else the tokenizer's; none: no token")
    ] = "auto",
    add_bos: Annotated[bool, Param("begin each text with the tokenizer's bos token, unless it does already")] = False,
    special_tokens_as_text: Annotated[
        bool, Param("write '<bos> text <eos>', with spaces, and tokenize it as one, in place of end token and add-bos")
    ] = False,
    strategy: Annotated[
        Literal["pack", "join", "join-sliding", "join-random", "line", "line-random"],
        Param(
            "pack: fill sequences with whole rows; join: cut all rows into equal blocks; join-sliding: blocks that"
            " overlap; join-random: blocks that begin with a drawn row; line: a row each; line-random: drawn rows"
        ),
    ] = "pack",
    max_length: Annotated[
        int | None, Param("sequence length at most; default: the model's, 1024 at most", min=2, unit="tokens")
    ] = None,
    prompt_max_length: Annotated[
        int | None,
        Param("cut prompt and answer apart, the answer to the rest of max_length", min=1, unit="tokens"),
    ] = None,
    joiner: Annotated[str, Param("text between rows, for join")] = "",
    keep_last_full: Annotated[
        bool, Param("keep the last block of join and join-sliding where it is just full; off: as some programs cut")
    ] = True,
    stride: Annotated[
        int | None,
        Param(
            "from one window of join-sliding to the next; what comes before in a window is not trained",
            min=1,
            unit="tokens",
        ),
    ] = None,
    group_rows: Annotated[
        int | None, Param("rows that join-sliding joins at once: windows do not overlap those before", min=1)
    ] = None,
    max_sequences: Annotated[
        int | None, Param("make only so many sequences; the draws of join-random and line-random", min=1)
    ] = None,
    draws: Annotated[int, Param("draws for a sequence before it is given up as too short", min=1)] = 10,
    draw_seed: Annotated[int, Param("chooses what is drawn", min=0, max=2**63 - 1)] = 0,
    pad: Annotated[bool, Param("fill rows of their own up to max_length with the pad token, untrained")] = False,
    overlong: Annotated[
        Literal["truncate", "drop"], Param("what becomes of a row that is longer than a sequence")
    ] = "truncate",
    short_rows: Annotated[
        Literal["keep", "drop"],
        Param("what line does with rows of fewer than max_length tokens; line-random draws again"),
    ] = "keep",
    deduplicate: Annotated[bool, Param("keep only the first of equal rows")] = True,
    test_fraction: Annotated[
        float, Param("share of the source held out; not used with --test-source", min=0, below=1)
    ] = 0.1,
    test_sequences: Annotated[
        float | None, Param("hold out finished sequences in place of rows: a share below 1, or a number", above=0)
    ] = None,
    split_seed: Annotated[
        int, Param("chooses which sequences are held out, as datasets' train_test_split does", min=0, max=2**63 - 1)
    ] = 42,
    seed: Annotated[int, Param("chooses which rows are held out", min=0, max=2**63 - 1)] = 0,
    max_rows: Annotated[int | None, Param("read only so many rows", min=1)] = None,
    input_format: Annotated[
        Literal["auto", "json", "jsonl", "csv", "parquet"], Param("format of the source; auto: what its bytes say")
    ] = "auto",
    delimiter: Annotated[str, Param("delimiter of CSV: auto, tab, or one character")] = "auto",
    bad_rows: Annotated[
        Literal["error", "skip"], Param("what to do at a row that cannot be used; skipped ones are counted")
    ] = "error",
    workers: Annotated[
        int | None, Param("processes; default: one for each core", min=1, max=256, affects_result=False)
    ] = None,
) -> None:
    """Turn rows of text into token sequences, with the loss where it belongs.

    Rows become text by a template, by prompt and completion fields, or by chat messages; without any of these the
    fields of the data decide. A part is held out by a hash of its prompts, or comes from files of its own; duplicates
    are dropped, within and across both; a report says what became of every row.
    """
    from microstages_prepare_data.prepare import prepare
    from microstages_prepare_data.settings import Settings

    settings = Settings(
        files=tuple(files or ()), split=split, test_split=test_split, where=tuple(where or ()), template=template,
        completion=completion, columns=tuple(columns or ()), prompt_field=prompt_field,
        completion_field=completion_field, prompt_template=prompt_template, completion_template=completion_template,
        messages_field=messages_field, conversation=conversation, as_chat=as_chat, chat_template=chat_template,
        values=values,
        empty_rows=empty_rows, loss=loss, loss_on_pad=loss_on_pad, hide_pad=hide_pad, end_token=end_token,
        add_bos=add_bos, special_tokens_as_text=special_tokens_as_text, strategy=strategy, max_length=max_length,
        prompt_max_length=prompt_max_length, joiner=joiner, keep_last_full=keep_last_full, stride=stride,
        group_rows=group_rows, max_sequences=max_sequences, draws=draws, draw_seed=draw_seed, pad=pad,
        overlong=overlong, short_rows=short_rows, deduplicate=deduplicate, test_fraction=test_fraction,
        test_sequences=test_sequences, split_seed=split_seed, seed=seed, max_rows=max_rows,
        input_format=input_format, delimiter=delimiter, bad_rows=bad_rows,
    )  # fmt: skip
    prepare(run, source, model, output, test_source=test_source, settings=settings, workers=workers)


if __name__ == "__main__":
    main()
