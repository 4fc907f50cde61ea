"""Whether typed words are the answer to a question: decided without guessing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.logic.answers import Answers, Late, Question, answer_in, may_answer, open_for_s, option_meant
from hermitcrab.logic.kinds import checked


def question(*options: str | dict[str, str], **more: Any) -> dict[str, Any]:
    content = {"type": "ask_question", "title": "T", "question": "Q?", "options": list(options)}
    return {**checked(content, "q"), **more}


LUNCH = question("Here", {"label": "At the sea", "value": "sea"}, "Not today!")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", "Here"),
        (" 2. ", "sea"),
        ("(3)", "Not today!"),
        ("#2", "sea"),
        ("\uff12", "sea"),
        ("1\ufe0f\u20e3", "Here"),
        ("here", "Here"),
        ("HERE!", "Here"),
        ("“at  the sea.”", "sea"),
        ("sea", "sea"),
        ("not today", "Not today!"),
        ("0", None),
        ("4", None),
        ("-1", None),
        ("1 please", None),
        ("here or there", None),
        ("", None),
        ("!", None),
        ("9" * 5000, None),
        ("here " * 1000, None),
    ],
)
def test_a_number_or_the_words_of_an_option_mean_it_and_nothing_else_does(text: str, value: str | None) -> None:
    assert option_meant(text, LUNCH) == value


def test_what_could_mean_two_options_means_none() -> None:
    numbers = question("2", "1", "3")
    assert option_meant("2", numbers) is None
    assert option_meant("3", numbers) == "3"
    twice = question({"label": "Yes", "value": "a"}, {"label": "yes", "value": "b"})
    assert option_meant("yes", twice) is None
    assert option_meant("2", twice) == "b"


def test_a_number_answers_only_the_oldest_open_question_and_words_the_oldest_that_has_them() -> None:
    first, second = Question(content=question("tea", "coffee")), Question(content=question("red", "tea", "blue"))
    assert answer_in("2", "me", [first, second]) == Answers(0, "coffee")
    assert answer_in("3", "me", [first, second]) is None
    assert answer_in("tea", "me", [first, second]) == Answers(0, "tea")
    assert answer_in("blue", "me", [first, second]) == Answers(1, "blue")
    done = Question(content=question("tea"), answered=True)
    assert answer_in("2", "me", [done, second]) == Answers(1, "tea")


def test_only_the_person_who_was_asked_answers_and_others_are_told() -> None:
    mine = Question(content=question("yes", "no", askedOf="u1"), is_last_word=True)
    assert answer_in("yes", "u1", [mine]) == Answers(0, "yes")
    assert answer_in("yes", "u2", [mine]) == Late(0, "not-asked")
    assert answer_in("yes", None, [mine]) == Late(0, "not-asked")
    assert answer_in("I think yes", "u2", [mine]) is None
    everybodys = Question(content=question("yes"))
    assert answer_in("1", "u2", [mine, everybodys]) == Answers(1, "yes")


@pytest.mark.parametrize("why", ["answered", "expired"])
def test_a_late_answer_is_told_only_when_nothing_else_was_said_since(why: str) -> None:
    over = Question(content=LUNCH, is_last_word=True, **{why: True})  # type: ignore[arg-type]
    assert answer_in("1", "me", [over]) == Late(0, why)  # type: ignore[arg-type]
    assert answer_in("what else is there?", "me", [over]) is None
    assert answer_in("1", "me", [Question(content=LUNCH, **{why: True})]) is None  # type: ignore[arg-type]


def test_a_question_is_open_for_a_day_unless_it_says_how_long() -> None:
    assert open_for_s(LUNCH) == 86_400
    assert open_for_s({**LUNCH, "expiresAfter": 5}) == 5
    for nonsense in (0, -1, True, "5", None):
        assert open_for_s({**LUNCH, "expiresAfter": nonsense}) == 86_400


texts = st.text(max_size=30) | st.sampled_from(["1", "2", "a", "A.", "yes"])
contents = st.lists(texts.filter(bool), min_size=1, max_size=6).map(lambda each: question(*each))
questions = st.lists(
    st.builds(Question, content=contents, answered=st.booleans(), expired=st.booleans(), is_last_word=st.booleans()),
    max_size=4,
)


@given(texts, questions)
def test_whatever_is_typed_only_open_questions_get_an_answer_that_they_offer(text: str, asked: list[Question]) -> None:
    match answer_in(text, "me", asked):
        case Answers(place, value):
            assert asked[place].is_open
            assert value in {each["value"] for each in asked[place].content["options"]}
            older = [each for each in asked[:place] if each.is_open]
            assert all(option_meant(text, each.content) is None for each in older)
        case Late(place, _):
            assert asked[place].is_last_word
        case None:
            oldest = next((each for each in asked if each.is_open), None)
            assert oldest is None or option_meant(text, oldest.content) is None


@given(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=9, unique=True), st.data())
def test_the_number_of_an_option_means_it_unless_another_option_is_called_so(
    labels: list[str], data: st.DataObject
) -> None:
    place = data.draw(st.integers(1, len(labels)))
    meant = option_meant(str(place), question(*labels))
    assert meant == labels[place - 1] or any(str(place) in label or not label.isascii() for label in labels)


@given(st.dictionaries(st.text(max_size=10), st.none() | st.integers() | st.text(max_size=5), max_size=4), texts)
def test_a_content_that_is_no_question_has_no_answer(content: dict[str, Any], text: str) -> None:
    assert option_meant(text, content) is None
    assert option_meant(text, {"options": [content, text, None]}) in {None, content.get("value")}
    may_answer(content, text)
