"""What will be done, decided before it is done: the recipe, the end token, the length, and what to warn of.

The end-of-sequence trap is closed here. A model that is to stop must be trained on the token that ends its answers;
that token must be one token; and generation must stop at it. What is found wrong is an error with its remedy, what may
be meant is a warning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from microstages.errors import UserError, nearest
from microstages.tokens import ModelText

from microstages_prepare_data.chat import AsChat, Chat, Conversation, WithTemplate, end_of_turn, keeps_earlier_turns
from microstages_prepare_data.recipe import Fields, Recipe, Template, exists, wanted
from microstages_prepare_data.selection import Condition
from microstages_prepare_data.settings import Settings

DEFAULT_LENGTH = 1024


@dataclass(frozen=True)
class Plan:
    """Everything that turns a row into tokens. `end_id` is None where no token ends an answer; `bos` likewise.

    `joiner_ids` stand between rows with strategy join. `vocab_size` is the number of rows of the model's embedding.
    `appended`: whether the end token is put behind a row as an id; else its text holds it. `around`: what is written
    before and behind a text, None for nothing. `pad_id` fills sequences; `untrained_id` is never trained.
    """

    settings: Settings
    text: ModelText
    recipe: Recipe
    loss: str
    max_length: int
    end_token: str | None
    end_id: int | None
    stop_ids: tuple[int, ...]
    bos: str | None
    joiner_ids: tuple[int, ...]
    vocab_size: int
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    appended: bool = True
    around: tuple[str, str] | None = None
    pad_id: int | None = None
    untrained_id: int | None = None
    conditions: tuple[Condition, ...] = ()


def plan(settings: Settings, text: ModelText, columns: Sequence[str]) -> Plan:
    """Decide from the parameters, the model and the columns of the data. Raises UserError."""
    notes: list[str] = []
    warnings: list[str] = []
    conditions = tuple(Condition.parse(w) for w in settings.where)
    for condition in conditions:
        exists(condition.field, columns, "--where")
    asked = wanted(settings, columns)
    recipe: Recipe
    end = None
    if settings.chat_template is not None:
        if not isinstance(asked, str) and not settings.as_chat:
            raise UserError(
                "it is for chats", where="--chat-template", fix="give --messages-field or --as-chat, or leave it out"
            )
        text = WithTemplate(text.folder, settings.chat_template)
    if isinstance(asked, str) and settings.as_chat:
        raise UserError(f"the rows are chats already, in {asked!r}", where="--as-chat", fix="leave it out")
    if isinstance(asked, str) and settings.conversation == "text":
        recipe, end = Conversation(text, asked), _end_of_turn(text)
    elif isinstance(asked, str):
        end = end_of_turn(text)
        every_turn = keeps_earlier_turns(text)
        recipe = Chat(text, asked, end if settings.end_token != "none" else None, every_turn)
        if not every_turn:
            warnings.append("the chat template rewrites earlier answers, so only the last answer of a row is trained")
    elif settings.as_chat:
        if not asked.answer:
            fix = "give --template and --completion, or --prompt-field and --completion-field"
            raise UserError("it needs a prompt and an answer", where="--as-chat", fix=fix)
        end = end_of_turn(text)
        keeps_earlier_turns(text)
        recipe = AsChat(text, "", end if settings.end_token != "none" else None, False, of=asked)
    else:
        recipe = asked
    loss = _loss(settings, recipe)
    token, end_id = _end_token(settings, text, recipe, end, warnings)
    stops = list(text.stop_ids)
    if end_id is not None and end_id not in stops:
        notes.append(f"generation stops at {token} too: the model's own stop tokens lack it, so it is written for them")
        stops.append(end_id)
    elif end_id is None:
        warnings.append("no token ends an answer: the model is not taught to stop")
    eos = text.special("eos_token")
    if token is not None and eos is not None and token != eos:
        notes.append(f"answers end with {token}, the end of turn; the tokenizer's eos token is {eos}")
    if settings.template is not None and ("\\n" in settings.template or "\\t" in settings.template):
        warnings.append("the template holds a backslash and a letter, no line break; in a shell write $'…\\n…'")
    if settings.prompt_max_length is not None and (not recipe.answer or isinstance(recipe, Chat)):
        raise UserError(
            "it needs a prompt and an answer",
            where="--prompt-max-length",
            fix="give --prompt-field and --completion-field, or leave it out",
        )
    max_length = _max_length(settings, text)
    if settings.stride is not None and settings.stride > max_length:
        raise UserError(
            f"{settings.stride} tokens are more than a window of {max_length}, so some would be left out",
            where="--stride",
            fix=f"give {max_length} or less",
        )
    around = _around(settings, text, warnings)
    pad_id, untrained_id = _pad(settings, text, end_id, token, warnings)
    vocab_size = int(text.config.get("vocab_size") or text.tokenizer.get_vocab_size())
    return Plan(
        settings, text, recipe, loss, max_length, token, end_id, tuple(stops),
        _bos(settings, text, recipe, notes),
        tuple(text.tokenizer.encode(settings.joiner, add_special_tokens=False).ids),
        vocab_size, tuple(notes), tuple(warnings),
        appended=around is None and not isinstance(recipe, Conversation), around=around, pad_id=pad_id,
        untrained_id=untrained_id, conditions=conditions,
    )  # fmt: skip


def _end_of_turn(text: ModelText) -> str | None:
    """The end of turn where the template has one; a text that is trained whole does not need it."""
    try:
        return end_of_turn(text)
    except UserError:
        return None


def _around(settings: Settings, text: ModelText, warnings: list[str]) -> tuple[str, str] | None:
    """What `--special-tokens-as-text` writes: a token that the tokenizer lacks is the word None."""
    if not settings.special_tokens_as_text:
        return None
    bos, eos = text.special("bos_token"), text.special("eos_token")
    for name, token in (("bos", bos), ("eos", eos)):
        if token is None:
            warnings.append(f"the tokenizer names no {name}_token, so the word None stands in its place")
    return f"{bos} ", f" {eos}"


def _pad(
    settings: Settings, text: ModelText, end_id: int | None, end_token: str | None, warnings: list[str]
) -> tuple[int | None, int | None]:
    """The token that sequences are filled with, and the one that is never trained; None where there is none.

    Without a pad token the eos token fills; it stays trained then.
    """
    pad = text.special("pad_token")
    pad_id = text.token_id(pad) if pad is not None else None
    untrained = None if settings.loss_on_pad else pad_id
    if untrained is not None and untrained == end_id:
        warnings.append(f"{end_token} is the pad token too and not trained: the model is not taught to stop")
    if not settings.pad:
        return None, untrained
    if pad_id is None:
        eos = text.special("eos_token")
        pad_id = text.token_id(eos) if eos is not None else None
    if pad_id is None:
        raise UserError("the tokenizer names neither pad_token nor eos_token", where="--pad", fix="leave it out")
    return pad_id, untrained


def _loss(settings: Settings, recipe: Recipe) -> str:
    if settings.loss == "completion" and not recipe.answer:
        raise UserError(
            "it is not known which part of the text is the completion",
            where="--loss completion",
            fix="name the field that holds the answer with --completion, or leave --loss out to train on everything",
        )
    if settings.loss == "auto":
        return "completion" if recipe.answer else "all"
    return settings.loss


def _end_token(
    settings: Settings, text: ModelText, recipe: Recipe, end_of_turn: str | None, warnings: list[str]
) -> tuple[str | None, int | None]:
    if settings.end_token == "none":
        return None, None
    token: str | None = settings.end_token
    if settings.special_tokens_as_text and text.special("eos_token") is None:
        return None, None
    if settings.end_token == "auto":
        token = end_of_turn or text.special("eos_token")
        if token is None:
            raise UserError(
                "the model's tokenizer names no eos_token",
                where=text.folder,
                fix="say which token ends an answer: --end-token '<|end|>', or --end-token none",
            )
    elif end_of_turn is not None and token != end_of_turn:
        raise UserError(
            f"the chat template ends an answer with {end_of_turn}, not {token}",
            where="--end-token",
            fix=f"leave it out, or give {end_of_turn} or none",
        )
    if isinstance(recipe, Chat) and end_of_turn is None:
        warnings.append(f"the chat template writes no token behind an answer; {token} is put behind the last one")
    assert token is not None
    end_id = text.token_id(token)
    if end_id is None:
        known = [t.content for t in text.tokenizer.get_added_tokens_decoder().values()]
        count = len(text.tokenizer.encode(token, add_special_tokens=False).ids)
        raise UserError(
            f"{token!r} is {count} tokens, not one{nearest(token, known)}, so generation cannot stop at it",
            where="--end-token",
            fix=f"give one of the model's own: {', '.join(known[:12]) or 'it has none'}",
        )
    return token, end_id


def _max_length(settings: Settings, text: ModelText) -> int:
    limit = next((int(text.config[k]) for k in ("max_position_embeddings", "n_positions") if text.config.get(k)), None)
    if settings.max_length is None:
        return min(limit or DEFAULT_LENGTH, DEFAULT_LENGTH)
    if limit is not None and settings.max_length > limit:
        raise UserError(
            f"{settings.max_length} tokens are more than the {limit} positions of the model",
            where="--max-length",
            fix=f"give {limit} or less",
        )
    return settings.max_length


def _bos(settings: Settings, text: ModelText, recipe: Recipe, notes: list[str]) -> str | None:
    """The bos token that is put before each text, None where none is."""
    bos = text.special("bos_token")
    if settings.add_bos:
        if bos is None:
            raise UserError("the tokenizer names no bos_token", where="--add-bos", fix="leave it out")
        return bos
    own = text.tokenizer.encode("a", add_special_tokens=True).ids
    if bos is not None and isinstance(recipe, (Template, Fields)) and own[:1] == [text.token_id(bos)]:
        notes.append(f"this tokenizer would begin a text with {bos}; here it begins as it is written (see --add-bos)")
    return None
