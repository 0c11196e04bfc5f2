"""What programs print of their secrets is covered, in the forms of JSON, of Python, of headers and of addresses."""

from __future__ import annotations

import pytest

from runner.excerpt import covered

SECRETS = [
    '{"password": "VERYSECRET"}',
    "{'token': 'VERYSECRET1234567'}",
    "{'api_key': 'VERYSECRET1234567'}",
    "api_key='sk-VERYSECRET'",
    'db_password = "VERYSECRET"',
    '{"HF_TOKEN": "VERYSECRET"}',
    "Authorization: Bearer VERYSECRET",
    "{'Authorization': 'Basic VERYSECRET='}",
    "https://host/x?X-Amz-Date=1&X-Amz-Signature=VERYSECRET&x=1",
]
PLAIN = [
    "max_tokens: 16, tokens: 3, tokens = 1234",
    '{"max_tokens": 1000000000000, "trained_tokens": 1234}',
    "eos_token='<|end|>', pad_token=</s>",
    "token: ${{ params.token }}, token=${{ params.token }}",
    "the bearer is away, and signatures: 3",
]


@pytest.mark.parametrize("text", SECRETS)
def test_a_secret_is_covered_and_columns_stay(text: str) -> None:
    assert "VERYSECRET" not in covered(text)
    assert len(covered(text)) == len(text)


@pytest.mark.parametrize("text", PLAIN)
def test_words_that_only_look_alike_are_shown(text: str) -> None:
    assert covered(text) == text
