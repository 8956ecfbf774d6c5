"""Prompts of exactly so many tokens, whatever the tokenizer."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from support import ROOT

from yarn_train.config import PasskeyConfig
from yarn_train.data.tokenize import encode_document, load_tokenizer
from yarn_train.errors import ConfigError
from yarn_train.eval.passkey.book import Book, sentences_of
from yarn_train.eval.passkey.keys import NAMES, chance_of, draw_key, held_out
from yarn_train.eval.passkey.kinds import Cell, cells, in_book, many_keys, plain, shortest_of, training_text
from yarn_train.eval.passkey.prompts import FILLER, QUESTION, TASK, needle
from yarn_train.eval.passkey.reference import LARGEST_KEY, STEP, characters_for, prompt, reference
from yarn_train.eval.passkey.tokens import Tokens

OTHERS = ROOT.parent / "shared" / "models"
DEPTHS = (0.0, 0.1, 1 / 3, 0.5, 0.77, 0.95, 1.0)


@pytest.fixture(scope="module", params=["data/base", "tiny", "babyllama-char361", "stories260K", "stories3M"])
def tokens(request: pytest.FixtureRequest, tiny_tokenizer: Any) -> Tokens:
    """Byte-level BPE, SentencePiece-like BPE and one of characters."""
    if request.param == "tiny":
        return Tokens(tiny_tokenizer)
    folder = ROOT / request.param if "/" in request.param else OTHERS / request.param
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return Tokens(load_tokenizer(folder))


def around(tokens: Tokens, cell: Cell, options: PasskeyConfig) -> list[int]:
    least = shortest_of(tokens, cell, options)
    return [*range(least, least + 15), least + 60, least + 777]


def test_a_plain_prompt_has_exactly_its_length_and_the_key_once(tokens: Tokens) -> None:
    for length in around(tokens, Cell(500, 0.5, 0), PasskeyConfig()):
        for depth in DEPTHS:
            made = plain(tokens, Cell(length, depth, 1), 0)
            text = tokens.text(made.ids)
            assert len(made.ids) == length
            assert made.ids[: len(tokens.bos)] == tokens.bos
            assert tokens.bos[0] not in made.ids[1:]
            assert text.count(needle(made.key)) == 1
            assert text.endswith(QUESTION)
            assert text.strip().startswith(TASK)
            assert re.fullmatch("[1-9][0-9]{4}", made.key)
            assert set(re.findall("[0-9]+", text)) == {made.key}


def test_a_key_stands_at_its_depth_or_the_nearest_end_of_a_sentence(tokens: Tokens) -> None:
    sentence = max(map(tokens.count, FILLER))
    for depth in DEPTHS:
        made = plain(tokens, Cell(900, depth, 0), 0)
        text = tokens.text(made.ids)
        before, _, after = text.partition(needle(made.key))
        fill = len(tokens.more(before.replace(TASK, "").strip())), len(tokens.more(after.replace(QUESTION, "").strip()))
        assert abs(fill[0] / sum(fill) - made.depth) < 0.01
        assert abs(made.depth - depth) <= (sentence / 2 + 1) / sum(fill)
        assert made.depth == depth or depth not in (0, 1)


def test_bos_is_left_out_where_evaluations_have_none(tiny_tokenizer: Any) -> None:
    ids = plain(Tokens(tiny_tokenizer, bos=False), Cell(700, 0.5, 0), 0).ids
    assert len(ids) == 700
    assert tiny_tokenizer.bos_token_id not in ids


def test_many_keys_are_all_there_and_one_is_asked_for(tokens: Tokens) -> None:
    options = PasskeyConfig(variant="many_keys", keys=6)
    for length in around(tokens, Cell(700, 0.5, 0), options)[15:]:
        for depth in DEPTHS:
            made = many_keys(tokens, Cell(length, depth, 0), options)
            text = tokens.text(made.ids)
            pairs = re.findall(
                r"The pass key of the (\w+) is (\d{5})\. Remember it\. \2 is the pass key of the \1\.", text
            )
            (asked,) = re.findall(r"What is the pass key of the (\w+)\? The pass key of the \1 is$", text)
            assert len(made.ids) == length
            assert len(dict(pairs)) == len(set(dict(pairs).values())) == 6
            assert dict(pairs)[asked] == made.key
            assert set(dict(pairs)) <= set(NAMES)


def stands_at(tokens: Tokens, text: str, key: str, others: str = "(?!)") -> tuple[float, int]:
    """The share of the filler's tokens before a key's line, and how many there are; `others`: lines to pass over."""
    lines = text.strip().removeprefix(TASK).split("\n")[1:-1]
    (at,) = [n for n, line in enumerate(lines) if re.search(rf"The pass key .*is {key}\. Remember", line)]
    parts = (lines[:at], lines[at + 1 :])
    before, after = (
        len(tokens.more(" ".join(line for line in part if not re.match(others, line)).strip())) for part in parts
    )
    return before / (before + after), before + after


def test_the_key_that_is_asked_for_among_many_stands_at_its_depth(tokens: Tokens) -> None:
    options, sentence = PasskeyConfig(variant="many_keys", keys=4), max(map(tokens.count, FILLER))
    length = max(shortest_of(tokens, Cell(700, d, n), options) for d in DEPTHS for n in range(2)) + 777
    for depth in DEPTHS:
        for trial in range(2):
            made = many_keys(tokens, Cell(length, depth, trial), options)
            share, filler = stands_at(tokens, tokens.text(made.ids), made.key, "The pass key of the")
            assert abs(share - made.depth) < 0.02
            assert abs(made.depth - depth) <= (sentence / 2 + 1) / filler


def test_a_book_goes_on_around_the_key_where_it_was_and_the_key_stands_at_its_depth(tokens: Tokens) -> None:
    chance, words = random.Random(1), ["sea", "storm", "whale", "ship", "the", "of", "a", "and", "old", "white"]
    text = " ".join(" ".join(chance.choices(words, k=chance.randint(3, 20))) + "." for _ in range(900))
    book = Book("moby", sentences_of(text))
    longest = max(map(tokens.count, book.sentences))
    for depth in DEPTHS:
        made = in_book(tokens, Cell(1500, depth, 0), 0, [book])
        found = tokens.text(made.ids)
        share, filler = stands_at(tokens, found, made.key)
        assert abs(share - made.depth) < 0.02
        assert abs(made.depth - depth) <= (longest / 2 + 1) / filler
        around = found.strip().removeprefix(TASK).removesuffix(QUESTION).split(needle(made.key))
        assert " ".join(part.strip() for part in around).strip() in text


def test_a_key_stands_between_sentences_of_a_book_that_does_not_have_it(tokens: Tokens) -> None:
    chance = random.Random(0)
    words = ["sea", "storm", "1854", "Ishmael", "whale", "Café", "ship\u2019s", "12"]
    text = " ".join(" ".join(chance.choices(words, k=chance.randint(3, 60))) + chance.choice(".!?") for _ in range(900))
    book = Book("moby", sentences_of(text))
    for length in (600, 601, 602, 1500):
        for depth in DEPTHS:
            made = in_book(tokens, Cell(length, depth, 0), 0, [book])
            found = tokens.text(made.ids)
            assert len(made.ids) == length
            assert found.count(needle(made.key)) == 1
            assert found.endswith(QUESTION)
            assert made.key not in text
            assert abs(made.depth - depth) < 0.35 * 600 / length


def test_a_book_that_has_the_key_gets_another_one(tiny_tokenizer: Any) -> None:
    tokens, cell = Tokens(tiny_tokenizer), Cell(700, 0.5, 0)
    first = in_book(tokens, cell, 0, [Book("a", ["the sea is wide."] * 200)]).key
    made = in_book(tokens, cell, 0, [Book("a", [f"the sea is {first} wide."] * 200)])
    assert made.key != first
    assert held_out(made.key)


def test_sentences_keep_every_word() -> None:
    text = 'He said "Stop!" and went.  Then?\n\n' + "word " * 60 + "end. Last"
    found = sentences_of(text)
    assert " ".join(found).split() == text.split()
    assert found[0] == 'He said "Stop!"'
    assert max(len(s.split()) for s in found) == 24


def test_too_short_is_one_error_with_the_shortest_possible() -> None:
    tokens = Tokens(load_tokenizer(ROOT / "data" / "base"))
    with pytest.raises(ConfigError, match=r"passkey.lengths: got 60; .*the shortest possible is 8\d"):
        plain(tokens, Cell(60, 0.5, 0), 0)


def test_keys_are_the_same_everywhere_and_never_those_of_training() -> None:
    tokens = Tokens(load_tokenizer(ROOT / "data" / "base"))
    keys = [plain(tokens, cell, 0).key for cell in cells(PasskeyConfig(depths=3), 256)]
    assert keys == ["92555", "12903", "71325", "89491", "10415", "64254"]
    assert all(map(held_out, keys))
    texts = [training_text(tokens, 0, 120, 250, number) for number in range(60)]
    trained = [re.findall(r"\d+", text)[0] for text in texts]
    assert not any(map(held_out, trained))
    assert len(set(trained)) > 55
    share = sum(held_out(str(key)) for key in range(10_000, 100_000)) / 90_000
    assert 0.09 < share < 0.11
    assert draw_key(chance_of(1, 2)) == draw_key(chance_of(1, 2))


def test_training_documents_have_the_lengths_and_the_answer() -> None:
    tokenizer = load_tokenizer(ROOT / "data" / "base")
    tokens = Tokens(tokenizer)
    for number in range(40):
        text = training_text(tokens, 3, 150, 200, number)
        key = re.findall(r"\d+", text)[0]
        assert text.endswith(f"{QUESTION} {key}.")
        assert text.count(key) == 3
        assert 148 <= len(encode_document(tokenizer, text)) + 2 <= 202  # the cut may be tokenised in another way


def counted_one_by_one(tokens: Tokens, length: int, seed: int) -> int:
    """The reference's search: 128 characters more, until the tokens are reached; then the step before."""
    characters = last = 0
    while True:
        last, characters = characters, characters + 128
        if len(prompt(tokens, characters, chance_of("length", seed, length)).ids) >= length:
            return last


def test_the_references_keys_and_depths_have_their_whole_range() -> None:
    assert LARGEST_KEY == 50_000
    made = reference(Tokens(load_tokenizer(ROOT / "data" / "base")), 300, 5, 60)
    keys, depths = sorted(int(p.key) for p in made), sorted(p.depth for p in made)
    assert keys[0] < 5_000 < 45_000 < keys[-1] <= 50_000
    assert 0 <= depths[0] < 0.1 < 0.9 < depths[-1] <= 1


def test_the_references_prompts_follow_its_algorithm(tokens: Tokens) -> None:
    for length in (100, 300, 900, 2000):
        characters = counted_one_by_one(tokens, length, 5)
        assert characters == characters_for(tokens, length, 5)
        for made in reference(tokens, length, 5, 8):
            text = tokens.text(made.ids)
            line = needle(made.key)
            before, after = re.fullmatch(
                f"{re.escape(TASK)}\n(.*)\n{re.escape(line)}\n(.*)\n{re.escape(QUESTION)}", text.strip()
            ).groups()  # type: ignore[union-attr]
            endless = " ".join(FILLER * 200)
            assert endless.startswith(before)
            assert endless.startswith(after)
            assert len(before) + len(after) == characters
            assert characters % STEP == 0
            assert 1 <= int(made.key) <= 50_000
            assert abs(made.depth - len(before) / max(1, characters)) < 1e-9
            assert made.ids == [*tokens.bos, *encode_document(tokens.tokenizer, text.strip()).tolist()]
