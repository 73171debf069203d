"""Questions that are one sentence pattern over one table of facts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from cyclora_workers.tiny_chat import facts


class Exchange(NamedTuple):
    """One question and two forms of its answer, equal where no short form fits."""

    question: str
    full: str
    short: str


class Topic(NamedTuple):
    """Sentence patterns over the rows of one table; ``{0}`` is the row's first column.

    Every question pattern asks for the same column, ``short`` names it.
    """

    rows: Sequence[Sequence[str]]
    questions: tuple[str, ...]
    full: str
    short: str = "{1}"

    def draw(self, rng: Random) -> Exchange:
        row = rng.choice(self.rows)
        question = fix_articles(rng.choice(self.questions).format(*row))
        full = as_sentence(fix_articles(self.full.format(*row)))
        return Exchange(question, full, self.short.format(*row))


def as_sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def fix_articles(text: str) -> str:
    """Write "an owl" where a pattern says "a owl"."""
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


_SOUNDING = [row for row in facts.ANIMALS if row[1] != "nothing"]

TOPICS = (
    Topic(
        facts.CAPITALS,
        ("What is the capital of {0}?", "Which city is the capital of {0}?", "{0}'s capital?",
         "Name the capital of {0}.", "What is {0}'s capital city?", "capital of {0}"),
        "The capital of {0} is {1}.",
    ),
    Topic(
        facts.CAPITALS,
        ("Where is {1}?", "In which country is {1}?", "{1} is in which country?",
         "Which country has the capital {1}?"),
        "{1} is in {0}.",
        "{0}",
    ),
    Topic(
        facts.COLOURS,
        ("What colour is {0}?", "What is the colour of {0}?", "Which colour does {0} have?",
         "Tell me the colour of {0}.", "What color is {0}?"),
        "{0} is {1}.",
    ),
    Topic(
        _SOUNDING,
        ("What sound does a {0} make?", "What does a {0} say?", "How does a {0} sound?",
         "What noise does a {0} make?"),
        "A {0} says {1}.",
    ),
    Topic(
        _SOUNDING,
        ("Which animal says {1}?", "What animal makes the sound {1}?"),
        "The {0} says {1}.",
        "{0}",
    ),
    Topic(
        facts.ANIMALS,
        ("What is a baby {0} called?", "What is a young {0} called?",
         "What do you call a baby {0}?"),
        "A baby {0} is called a {2}.",
        "{2}",
    ),
    Topic(
        facts.ANIMALS,
        ("Where does a {0} live?", "What is the home of a {0}?", "Where do you find a {0}?"),
        "A {0} lives in {3}.",
        "{3}",
    ),
    Topic(
        facts.ANIMALS,
        ("What does a {0} eat?", "What is the food of a {0}?", "What do you feed a {0}?"),
        "A {0} eats {4}.",
        "{4}",
    ),
    Topic(
        facts.ANIMALS,
        ("How many legs does a {0} have?", "How many legs has a {0}?"),
        "A {0} has {5} legs.",
        "{5}",
    ),
    Topic(
        facts.OPPOSITES + tuple((b, a) for a, b in facts.OPPOSITES if b != "light"),
        ("What is the opposite of {0}?", "Tell me the opposite of {0}.", "The opposite of {0}?",
         "Which word is the opposite of {0}?", "opposite of {0}"),
        "The opposite of {0} is {1}.",
    ),
    Topic(
        facts.PLURALS,
        ("What is the plural of {0}?", "One {0}, two what?", "Tell me the plural of {0}."),
        "The plural of {0} is {1}.",
    ),
    Topic(
        facts.PAST_TENSES,
        ("What is the past tense of {0}?", "Tell me the past tense of {0}."),
        "The past tense of {0} is {1}.",
    ),
    Topic(
        facts.RHYMES,
        ("What rhymes with {0}?", "Tell me a word that rhymes with {0}.", "Find a rhyme for {0}."),
        "{1} rhymes with {0}.",
    ),
    Topic(
        facts.TOOLS,
        ("What do you use to {0}?", "What do I need to {0}?", "How can I {0}?",
         "Which tool do you need to {0}?"),
        "You use {1} to {0}.",
    ),
    Topic(
        facts.JOBS,
        ("Who {0}?", "What do you call someone who {0}?", "What is the job of a person who {0}?"),
        "{1} {0}.",
    ),
    Topic(
        facts.MATERIALS,
        ("What is {0} made of?", "What is {0} made from?", "What do you need to make {0}?"),
        "{0} is made of {1}.",
    ),
    Topic(
        facts.GROUPS,
        ("What kind of thing is {0}?", "What is {0}?", "What type of thing is {0}?"),
        "{0} is a kind of {1}.",
    ),
    Topic(
        facts.WEATHER,
        ("It is {0}. What should I wear?", "What do I need when it is {0}?",
         "What should I take when it is {0}?", "It is {0} today. What do I need?"),
        "When it is {0} you need {1}.",
    ),
    Topic(
        facts.WEATHER_VERBS,
        ("What should I wear when it {0}?", "What do I need when it {0}?",
         "What should I take if it {0}?"),
        "When it {0} you need {1}.",
    ),
    Topic(
        facts.LIKES,
        ("Do you like {0}?", "Do you love {0}?", "Are you fond of {0}?"),
        "Yes, I like {0} very much.",
        "Yes",
    ),
    Topic(
        facts.SENSES,
        ("What do you use to {0}?", "Which part of the body do we use to {0}?",
         "What do people {0} with?"),
        "We {0} with our {1}.",
    ),
    Topic(
        facts.MONTHS,
        ("How many days does {0} have?", "How many days are in {0}?", "How long is {0}?"),
        "{0} has {1} days.",
    ),
    Topic(
        facts.MONTHS,
        ("In which season is {0}?", "Which season is {0} in?", "What season is it in {0}?"),
        "{0} is in {2}.",
        "{2}",
    ),
    Topic(facts.TRIVIA, ("{0}",), "{1}"),
    Topic(facts.YES_NO, ("{0}",), "{1}"),
)  # fmt: skip
