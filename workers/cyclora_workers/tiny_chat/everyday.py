"""Short everyday questions with their answers, drawn from tables and sentence patterns.

An exchange carries a full sentence and a short form of the same answer, so that a system prompt such
as "Answer in one word." can choose between them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from cyclora_workers.tiny_chat import facts


class Exchange(NamedTuple):
    """One question and two forms of its answer; ``short`` equals ``full`` where no short form fits."""

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
        question = _fix_articles(rng.choice(self.questions).format(*row))
        full = _sentence(_fix_articles(self.full.format(*row)))
        return Exchange(question, full, self.short.format(*row))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _fix_articles(text: str) -> str:
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
        facts.OPPOSITES + tuple((b, a) for a, b in facts.OPPOSITES if b not in ("dark", "light")),
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


def _small_talk(rng: Random) -> Exchange:
    phrasings, answer = rng.choice(facts.SMALL_TALK)
    said = rng.choice(phrasings.split("/"))
    asks = said.split()[0] in ("How", "What", "Who", "Where", "Are", "Do", "Can")
    return Exchange(said + ("?" if asks else rng.choice((".", "!", ""))), answer, answer)


def _neighbour(rng: Random) -> Exchange:
    """What comes before or after a day, a month, a letter or a number."""
    months = [row[0] for row in facts.MONTHS]
    lists = (list(facts.DAYS), months, list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), [str(n) for n in range(31)])
    items = rng.choice(lists)
    at = rng.randrange(1, len(items) - 1)
    word, step = rng.choice((("after", 1), ("before", -1)))
    question = rng.choice(("What comes {} {}?", "Tell me what comes {} {}.", "Which one is {} {}?"))
    found = items[at + step]
    return Exchange(question.format(word, items[at]), f"{found} comes {word} {items[at]}.", found)


def _count(rng: Random) -> Exchange:
    first = rng.randint(1, 15)
    last = first + rng.randint(2, 6)
    numbers = [str(n) for n in range(first, last + 1)]
    if rng.random() < 0.25:
        numbers.reverse()
    text = " ".join(numbers)
    pattern = rng.choice(("Count from {} to {}.", "Can you count from {} to {}?"))
    return Exchange(pattern.format(numbers[0], numbers[-1]), text, text)


def _sum(rng: Random) -> Exchange:
    """A sum, a difference or a product, in signs or in words; products stay in the times table."""
    sign, word = rng.choice((("+", "plus"), ("-", "minus"), ("*", "times")))
    a, b = rng.randint(1, 12), rng.randint(1, 12)
    if sign == "-" and b > a:
        a, b = b, a
    result = {"+": a + b, "-": a - b, "*": a * b}[sign]
    asked = rng.choice((f"{a} {word} {b}", f"{a}{sign}{b}", f"{a} {sign} {b}"))
    question = rng.choice(("What is {}?", "How much is {}?", "{}=", "Calculate {}."))
    return Exchange(question.format(asked), f"{a}{sign}{b}={result}", str(result))


def _bigger(rng: Random) -> Exchange:
    if rng.random() < 0.5:
        small, big = sorted(rng.sample(range(len(facts.SIZES)), 2))
        names = [facts.SIZES[small], facts.SIZES[big]]
    else:
        names = [str(n) for n in sorted(rng.sample(range(30), 2))]
    first, second = rng.sample(names, 2)
    word, found = rng.choice((("bigger", names[1]), ("smaller", names[0])))
    return Exchange(f"Which is {word}, {first} or {second}?", _sentence(f"{found} is {word}."), found)


def _spelling(rng: Random) -> Exchange:
    word = rng.choice(facts.PLURALS + facts.RHYMES + facts.PAST_TENSES)[0]
    kind = rng.randrange(3)
    if kind == 0:
        spelled = "-".join(word)
        question = rng.choice(("Spell {}.", "How do you spell {}?", "Can you spell {}?"))
        return Exchange(question.format(word), spelled, spelled)
    place, letter = (("first", word[0]), ("last", word[-1]))[kind - 1]
    question = f"What is the {place} letter of {word}?"
    return Exchange(question, f"The {place} letter of {word} is {letter}.", letter)


def _echo(rng: Random) -> Exchange:
    """Repeating an invented word, which teaches copying and every rare piece of the vocabulary."""
    word = "".join(rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(1, 3)))
    word += rng.choice(("", "n", "r", "x", "o"))
    question = rng.choice(("Say {}.", "Repeat the word {}.", "Please say {}.", "Repeat after me: {}"))
    return Exchange(question.format(word), word, word)


def _name(rng: Random) -> Exchange:
    name = rng.choice(facts.NAMES)
    said = rng.choice(("My name is {}.", "I am {}.", "Hello, I am {}.", "Hi, my name is {}!"))
    answer = f"Nice to meet you, {name}!"
    return Exchange(said.format(name), answer, answer)


_SPECIAL: tuple[tuple[Callable[[Random], Exchange], int], ...] = (
    (_small_talk, 7),
    (_neighbour, 2),
    (_count, 1),
    (_sum, 6),
    (_bigger, 1),
    (_spelling, 2),
    (_echo, 2),
    (_name, 1),
)
_DRAWS = [*(topic.draw for topic in TOPICS), *(draw for draw, _ in _SPECIAL)]
_SHARES = [*(1 for _ in TOPICS), *(share for _, share in _SPECIAL)]

_OPENINGS = ("", "", "", "", "", "", "Please tell me: ", "Quick question: ", "Hey, ", "Can you tell me: ",
             "I have a question. ", "Do you know this? ", "Tell me: ", "Hello! ")  # fmt: skip


def draw_exchange(rng: Random) -> Exchange:
    """One exchange, its question sometimes with an opening, in lower case, or without a full stop."""
    exchange = rng.choices(_DRAWS, _SHARES)[0](rng)
    question = rng.choice(_OPENINGS) + exchange.question
    if rng.random() < 0.12:
        question = question.lower()
    if rng.random() < 0.12:
        question = question.rstrip("?.!")
    return exchange._replace(question=question)
