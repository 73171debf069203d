"""Short everyday questions with their answers: the topics, and those that need a little code.

An exchange carries a full sentence and a short form of the same answer, so that a system prompt
such as "Answer in one word." can choose between them.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from cyclora_workers.tiny_chat import facts
from cyclora_workers.tiny_chat.topics import TOPICS, Exchange, as_sentence, fix_articles


def _small_talk(rng: Random) -> Exchange:
    phrasings, answer = rng.choice(facts.SMALL_TALK)
    said = rng.choice(phrasings.split("/"))
    asks = said.split()[0] in ("How", "What", "Which", "Who", "Where", "Are", "Do", "Can")
    return Exchange(said + ("?" if asks else rng.choice((".", "!", ""))), answer, answer)


def _neighbour(rng: Random) -> Exchange:
    """What comes before or after a day, a month, a letter or a number."""
    months = [row[0] for row in facts.MONTHS]
    kind, items = rng.choice(
        (
            ("day", list(facts.DAYS)),
            ("month", months),
            ("letter", list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")),
            ("number", [str(number) for number in range(31)]),
        )
    )
    word, step = rng.choice((("after", 1), ("before", -1)))
    wraps = kind in ("day", "month")
    at = rng.choice([n for n in range(len(items)) if wraps or 0 <= n + step < len(items)])
    start = rng.choice(
        ("What comes", "Tell me what comes", f"What {kind} comes", f"Which {kind} is")
    )
    found = items[(at + step) % len(items)]
    return Exchange(f"{start} {word} {items[at]}?", f"{found} comes {word} {items[at]}.", found)


def _count(rng: Random) -> Exchange:
    first = rng.choice((1, rng.randint(1, 15)))
    last = first + rng.randint(2, 6)
    numbers = [str(number) for number in range(first, last + 1)]
    start = end = ""
    if first == 1 and rng.random() < 0.6:
        pattern = rng.choice(("Count to {1}.", "Can you count to {1}?"))
        end = rng.choice((facts.NUMBER_WORDS[last], str(last)))
    else:
        pattern = rng.choice(("Count from {0} to {1}.", "Can you count from {0} to {1}?"))
        if rng.random() < 0.25:
            numbers.reverse()
        start, end = numbers[0], numbers[-1]
    text = " ".join(numbers)
    return Exchange(pattern.format(start, end), text, text)


def _ability(rng: Random) -> Exchange:
    """Who can do what, with a yes or a no."""
    verb, able, unable = rng.choice(facts.ABILITIES)
    is_able = rng.random() < 0.5
    who = rng.choice((able if is_able else unable).split())
    full = f"Yes, {who} can {verb}." if is_able else f"No, {who} cannot {verb}."
    return Exchange(f"Can {who} {verb}?", full, "Yes" if is_able else "No")


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
        article = rng.choice(("a ", "the ", ""))
        names = [fix_articles(article + facts.SIZES[index]) for index in (small, big)]
    else:
        names = [str(number) for number in sorted(rng.sample(range(30), 2))]
    first, second = rng.sample(names, 2)
    word, found = rng.choice((("bigger", names[1]), ("smaller", names[0])))
    question = f"Which is {word}, {first} or {second}?"
    return Exchange(question, as_sentence(f"{found} is {word}."), found)


def _colour_check(rng: Random) -> Exchange:
    """Whether a thing has a colour, which it has at least half of the time."""
    thing, colour = rng.choice(facts.COLOURS)
    asked = colour if rng.random() < 0.5 else rng.choice(facts.COLOURS)[1]
    word = "Yes" if asked == colour else "No"
    return Exchange(f"Is {thing} {asked}?", f"{word}, {thing} is {colour}.", word)


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


def _invented_word(rng: Random) -> str:
    syllables = [
        rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(1, 3))
    ]
    return "".join(syllables) + rng.choice(("", "n", "r", "x", "o"))


def _echo(rng: Random) -> Exchange:
    """Repeating a word or two, mostly invented, which teaches copying and every rare token."""
    word = _invented_word(rng)
    if rng.random() < 0.4:
        rows = facts.PLURALS + facts.PAST_TENSES + facts.OPPOSITES
        word = " ".join(rng.choice(rng.choice(rows)) for _ in range(rng.randint(1, 2)))
    start = rng.choice(("Say", "Please say", "Say the word", "Repeat", "Repeat after me:"))
    return Exchange(f"{start} {word}.", word, word)


def _name(rng: Random) -> Exchange:
    name = rng.choice((rng.choice(facts.NAMES), _invented_word(rng).capitalize()))
    said = rng.choice(("My name is {}.", "I am {}.", "Hello, I am {}.", "Hi, my name is {}!"))
    answer = f"Nice to meet you, {name}!"
    return Exchange(said.format(name), answer, answer)


_SPECIAL: tuple[tuple[Callable[[Random], Exchange], int], ...] = (
    (_small_talk, 7),
    (_neighbour, 3),
    (_count, 1),
    (_sum, 6),
    (_ability, 1),
    (_bigger, 1),
    (_colour_check, 1),
    (_spelling, 2),
    (_echo, 3),
    (_name, 2),
)
_DRAWS = [*(topic.draw for topic in TOPICS), *(draw for draw, _ in _SPECIAL)]
_SHARES = [*(1 for _ in TOPICS), *(share for _, share in _SPECIAL)]

_OPENINGS = (
    *[""] * 6,
    "Please tell me: ",
    "Can you tell me: ",
    "Tell me: ",
    "Quick question: ",
    "I have a question. ",
    "Do you know this? ",
    "Hey, ",
    "Hello! ",
)


def draw_exchange(rng: Random) -> Exchange:
    """One exchange, its question sometimes with an opening, in lower case, or unpunctuated."""
    exchange = rng.choices(_DRAWS, _SHARES)[0](rng)
    question = rng.choice(_OPENINGS) + exchange.question
    if rng.random() < 0.12:
        question = question.lower()
    if rng.random() < 0.12:
        question = question.rstrip("?.!")
    return exchange._replace(question=question)
