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
    template: Annotated[str | None, Param("text of a row, with {field} for its values; {{ and }} for braces")] = None,
    completion: Annotated[str | None, Param("field whose last place in the template begins the answer")] = None,
    prompt_field: Annotated[str | None, Param("field that holds the prompt, in place of a template")] = None,
    completion_field: Annotated[str | None, Param("field that holds the answer to it")] = None,
    messages_field: Annotated[str | None, Param("field that holds chat messages, for the chat template")] = None,
    loss: Annotated[
        Literal["auto", "completion", "all"], Param("what is trained; auto: the completion where one is known")
    ] = "auto",
    end_token: Annotated[
        str, Param("token that ends an answer; auto: the chat template's, else the tokenizer's; none: no token")
    ] = "auto",
    add_bos: Annotated[bool, Param("begin each text with the tokenizer's bos token, unless it does already")] = False,
    strategy: Annotated[
        Literal["pack", "join", "line"],
        Param("pack: fill sequences with whole rows; join: cut all rows into equal blocks; line: a row each"),
    ] = "pack",
    max_length: Annotated[
        int | None, Param("sequence length at most; default: the model's, 1024 at most", min=2, unit="tokens")
    ] = None,
    joiner: Annotated[str, Param("text between rows, for join")] = "",
    overlong: Annotated[
        Literal["truncate", "drop"], Param("what becomes of a row that is longer than a sequence")
    ] = "truncate",
    deduplicate: Annotated[bool, Param("keep only the first of equal rows")] = True,
    test_fraction: Annotated[
        float, Param("share of the source held out; not used with --test-source", min=0, below=1)
    ] = 0.1,
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
        template=template, completion=completion, prompt_field=prompt_field, completion_field=completion_field,
        messages_field=messages_field, loss=loss, end_token=end_token, add_bos=add_bos, strategy=strategy,
        max_length=max_length, joiner=joiner, overlong=overlong, deduplicate=deduplicate,
        test_fraction=test_fraction, seed=seed, max_rows=max_rows, input_format=input_format, delimiter=delimiter,
        bad_rows=bad_rows,
    )  # fmt: skip
    prepare(run, source, model, output, test_source=test_source, settings=settings, workers=workers)


if __name__ == "__main__":
    main()
