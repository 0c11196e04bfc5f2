"""The parameters of the stage as one frozen value, checked against each other."""

from __future__ import annotations

from dataclasses import dataclass

from microstages.errors import UserError


@dataclass(frozen=True)
class Settings:
    """What each means: see the signature in `cli`. Raises UserError where two contradict each other."""

    template: str | None = None
    completion: str | None = None
    prompt_field: str | None = None
    completion_field: str | None = None
    messages_field: str | None = None
    loss: str = "auto"
    end_token: str = "auto"
    add_bos: bool = False
    strategy: str = "pack"
    max_length: int | None = None
    joiner: str = ""
    overlong: str = "truncate"
    deduplicate: bool = True
    test_fraction: float = 0.1
    seed: int = 0
    max_rows: int | None = None
    input_format: str = "auto"
    delimiter: str = "auto"
    bad_rows: str = "error"

    def __post_init__(self) -> None:
        fields = self.prompt_field is not None or self.completion_field is not None
        ways = {
            "--template": self.template is not None,
            "--prompt-field and --completion-field": fields,
            "--messages-field": self.messages_field is not None,
        }
        given = [name for name, is_given in ways.items() if is_given]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} exclude each other", where=given[0], fix="give one of them")
        if fields and None in (self.prompt_field, self.completion_field):
            missing = "--prompt-field" if self.prompt_field is None else "--completion-field"
            raise UserError("prompt and completion go together", where=missing, fix=f"give {missing} too")
        if self.completion is not None and self.template is None:
            raise UserError(
                "it names a field of the template, and there is no template",
                where="--completion",
                fix="give --template; where the data has two fields, give --prompt-field and --completion-field",
            )
        if self.joiner and self.strategy != "join":
            raise UserError("rows are joined only by --strategy join", where="--joiner", fix="leave one of them out")
        if self.delimiter not in ("auto", "tab") and len(self.delimiter) != 1:
            raise UserError(
                f"must be auto, tab or one character, not {self.delimiter!r}",
                where="--delimiter",
                fix="see prepare-data --help",
            )
