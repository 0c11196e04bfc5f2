"""The parameters of the stage as one frozen value, checked against each other."""

from __future__ import annotations

from dataclasses import dataclass

from microstages.errors import UserError

LINES = ("line", "line-random")
DRAWN = ("join-random", "line-random")


@dataclass(frozen=True)
class Settings:
    """What each means: see the signature in `cli`. Raises UserError where two contradict each other."""

    files: tuple[str, ...] = ()
    split: str | None = None
    test_split: str | None = None
    where: tuple[str, ...] = ()
    template: str | None = None
    completion: str | None = None
    columns: tuple[str, ...] = ()
    prompt_field: str | None = None
    completion_field: str | None = None
    prompt_template: str | None = None
    completion_template: str | None = None
    messages_field: str | None = None
    conversation: str = "turns"
    as_chat: bool = False
    chat_template: str | None = None
    values: str = "plain"
    empty_rows: str = "bad"
    loss: str = "auto"
    loss_on_pad: bool = True
    hide_pad: bool = False
    end_token: str = "auto"
    add_bos: bool = False
    special_tokens_as_text: bool = False
    strategy: str = "pack"
    max_length: int | None = None
    prompt_max_length: int | None = None
    joiner: str = ""
    keep_last_full: bool = True
    stride: int | None = None
    group_rows: int | None = None
    max_sequences: int | None = None
    draws: int = 10
    draw_seed: int = 0
    pad: bool = False
    overlong: str = "truncate"
    short_rows: str = "keep"
    deduplicate: bool = True
    test_fraction: float = 0.1
    test_sequences: float | None = None
    split_seed: int = 42
    seed: int = 0
    max_rows: int | None = None
    input_format: str = "auto"
    delimiter: str = "auto"
    bad_rows: str = "error"

    @property
    def joins(self) -> bool:
        """Whether sequences are cut across rows."""
        return self.strategy.startswith("join")

    @property
    def chosen(self) -> bool:
        """Whether sequences are chosen one by one: drawn, overlapping, limited, padded, or split when they are done."""
        return (
            self.strategy in ("join-sliding", *DRAWN)
            or self.max_sequences is not None
            or self.test_sequences is not None
            or self.pad
            or not self.keep_last_full
            or (self.strategy == "line" and self.empty_rows != "bad")
        )

    @property
    def keeps_texts(self) -> bool:
        """Whether rows may be held out after they were made sequences, and are whole ones then."""
        return self.test_sequences is not None and self.strategy in LINES

    def __post_init__(self) -> None:
        self._check_text()
        self._check_sequences()
        if self.test_sequences is not None:
            if self.strategy == "pack":
                raise _contradiction("--test-sequences", "packed sequences hold several rows", "--test-fraction")
            if 1 < self.test_sequences != int(self.test_sequences):
                raise UserError(
                    f"{self.test_sequences:g} is neither a share nor a number",
                    where="--test-sequences",
                    fix="give a share below 1, or a whole number",
                )
        if self.delimiter not in ("auto", "tab") and len(self.delimiter) != 1:
            raise UserError(
                f"must be auto, tab or one character, not {self.delimiter!r}",
                where="--delimiter",
                fix="give the character that stands between cells, such as --delimiter ';'",
            )

    def _check_text(self) -> None:
        pairs = {
            "--prompt-field and --completion-field": (self.prompt_field, self.completion_field),
            "--prompt-template and --completion-template": (self.prompt_template, self.completion_template),
        }
        ways = {
            "--template": self.template is not None,
            "--columns": bool(self.columns),
            **{name: any(v is not None for v in pair) for name, pair in pairs.items()},
            "--messages-field": self.messages_field is not None,
        }
        given = [name for name, is_given in ways.items() if is_given]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} exclude each other", where=given[0], fix="give one of them")
        for name, pair in pairs.items():
            if ways[name] and None in pair:
                missing = name.split(" and ")[pair.index(None)]
                raise UserError("prompt and completion go together", where=missing, fix=f"give {missing} too")
        if self.completion is not None and self.template is None:
            raise UserError(
                "it names a field of the template, and there is no template",
                where="--completion",
                fix="give --template; where the data has two fields, give --prompt-field and --completion-field",
            )
        if self.completion is not None and self.values == "python":
            raise _contradiction("--completion", "where an answer begins is not known with --values python", "--values")
        if self.special_tokens_as_text:
            if self.end_token not in ("auto", "none") or self.add_bos:
                flag = "--add-bos" if self.add_bos else "--end-token"
                raise _contradiction(flag, "--special-tokens-as-text writes both tokens already", flag)
            if self.messages_field is not None:
                raise _contradiction(
                    "--special-tokens-as-text", "a chat template writes its own tokens", "--special-tokens-as-text"
                )
        if self.hide_pad and self.loss_on_pad:
            raise UserError(
                "a pad token that is hidden is not trained either", where="--hide-pad", fix="give --no-loss-on-pad too"
            )
        if self.as_chat:
            if self.messages_field is not None or self.conversation == "text":
                raise _contradiction("--as-chat", "these rows are chats already", "--as-chat")
            if self.columns or (self.template is not None and self.completion is None):
                raise UserError(
                    "it needs a prompt and an answer",
                    where="--as-chat",
                    fix="give --template and --completion, or --prompt-field and --completion-field",
                )
            others = {
                "--special-tokens-as-text": self.special_tokens_as_text,
                "--prompt-max-length": self.prompt_max_length is not None,
                f"--empty-rows {self.empty_rows}": self.empty_rows != "bad",
            }
            if flag := next((f for f, given in others.items() if given), ""):
                raise _contradiction("--as-chat", f"{flag} is not for chats", flag)
        if self.conversation == "text" and self.loss == "completion":
            raise _contradiction("--loss completion", "--conversation text knows no answers", "--conversation")

    def _check_sequences(self) -> None:
        if self.joiner and not self.joins:
            raise UserError("rows are joined only by --strategy join", where="--joiner", fix="leave one of them out")
        sliding = self.strategy == "join-sliding"
        needs = {
            "--stride": (self.stride is not None, sliding),
            "--max-sequences": (self.max_sequences is not None, self.strategy in DRAWN),
        }
        for flag, (given, needed) in needs.items():
            if needed and not given:
                raise UserError(f"--strategy {self.strategy} needs it", where=flag, fix=f"give {flag}")
        if self.stride is not None and not sliding:
            raise _contradiction("--stride", "only the windows of --strategy join-sliding have one", "--stride")
        if self.group_rows is not None and not sliding:
            raise _contradiction("--group-rows", "it is for --strategy join-sliding", "--group-rows")
        if not self.keep_last_full and self.strategy not in ("join", "join-sliding"):
            raise _contradiction(
                "--no-keep-last-full", "it is for --strategy join and join-sliding", "--no-keep-last-full"
            )
        if self.max_sequences is not None and self.strategy == "pack":
            raise _contradiction("--max-sequences", "packed sequences hold several rows", "--max-rows")
        if self.pad and self.strategy not in LINES:
            raise _contradiction("--pad", "only rows of their own are padded: --strategy line or line-random", "--pad")
        if self.short_rows == "drop":
            if self.strategy not in LINES:
                raise _contradiction("--short-rows drop", "it is for --strategy line and line-random", "--short-rows")
            if self.pad:
                raise _contradiction("--short-rows drop", "with --pad no sequence is short", "--pad")
        if self.prompt_max_length is not None and self.max_length is None:
            raise UserError(
                "it is a part of --max-length", where="--prompt-max-length", fix="give --max-length: prompt and answer"
            )
        if self.prompt_max_length is not None and self.joins:
            raise _contradiction("--prompt-max-length", "joined rows are not cut", "--prompt-max-length")
        if (
            self.prompt_max_length is not None
            and self.max_length is not None
            and self.prompt_max_length >= self.max_length
        ):
            raise UserError(
                f"{self.prompt_max_length} tokens of {self.max_length} leave none for the answer",
                where="--prompt-max-length",
                fix="give a larger --max-length",
            )


def _contradiction(flag: str, what: str, leave_out: str) -> UserError:
    return UserError(what, where=flag, fix=f"change or leave out {leave_out}")
