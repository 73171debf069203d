"""The pair task: add adjacent pairs of numbers, then multiply the sums.

The corpus answers it in three styles. The careful one shows its work and is right; the muddled one
works in the wrong order; the hasty one shows nothing and mostly guesses. A model trained on the
mixture picks a style at random when sampled at temperature 1, which leaves reinforcement learning
something simple to find: the careful style, which the model already knows.
"""

from __future__ import annotations

import re
from random import Random
from typing import NamedTuple

MAX_NUMBER = 6
"""Largest number in a problem, so that sums stay within the times table up to 12."""

CAREFUL_SHARE = 0.28
MUDDLED_SHARE = 0.14
"""The remaining share is hasty."""

PROMPT = (
    "Add adjacent pairs, then multiply the sums: {numbers}. "
    "Give the result as <answer>NUMBER</answer>."
)
"""The wording that the example script uses."""

_OTHER_PROMPTS = (
    "Numbers: {numbers}. Add adjacent pairs, then multiply the sums.",
    "Take the numbers {numbers}, add adjacent pairs and multiply the sums.",
    "{numbers}: add adjacent pairs, then multiply the sums.",
)

_ANSWER = re.compile(r"<answer>(\d+)</answer>")


class Problem(NamedTuple):
    """Two pairs of numbers, in the order in which they are given."""

    a: int
    b: int
    c: int
    d: int

    @property
    def answer(self) -> int:
        return (self.a + self.b) * (self.c + self.d)

    @property
    def is_held_out(self) -> bool:
        """Whether the corpus leaves this problem out; one in eight, spread over all sums."""
        return (self.a + 3 * self.b + 5 * self.c + 7 * self.d) % 8 == 0

    def prompt(self, pattern: str = PROMPT) -> str:
        return pattern.format(numbers=" ".join(str(number) for number in self))


def draw_problem(rng: Random, *, held_out: bool) -> Problem:
    """A problem from the corpus's share of all problems, or from the rest."""
    while True:
        problem = Problem(*(rng.randint(1, MAX_NUMBER) for _ in range(4)))
        if problem.is_held_out == held_out:
            return problem


def careful_answer(problem: Problem) -> str:
    """The steps in order, all of them right."""
    a, b, c, d = problem
    steps = f"{a}+{b}={a + b}, {c}+{d}={c + d}, {a + b}*{c + d}={problem.answer}"
    return f"{steps}. <answer>{problem.answer}</answer>"


def muddled_answer(problem: Problem) -> str:
    """Multiplies first and adds afterwards: right arithmetic, wrong task."""
    a, b, c, d = problem
    result = a * b + c * d
    return f"{a}*{b}={a * b}, {c}*{d}={c * d}, {a * b}+{c * d}={result}. <answer>{result}</answer>"


def hasty_answer(problem: Problem, rng: Random) -> str:
    """A guess near the answer, seldom right, and now and then without the tags asked for."""
    guess = max(1, problem.answer + rng.choice((-1, 1)) * rng.randint(1, 12))
    if rng.random() < 0.04:
        guess = problem.answer
    return f"<answer>{guess}</answer>" if rng.random() < 0.8 else f"It is {guess}."


def draw_pair_exchange(rng: Random) -> tuple[str, str]:
    """Question and answer for the corpus, in a random style."""
    problem = draw_problem(rng, held_out=False)
    pattern = PROMPT if rng.random() < 0.6 else rng.choice(_OTHER_PROMPTS)
    style = rng.random()
    if style < CAREFUL_SHARE:
        answer = careful_answer(problem)
    elif style < CAREFUL_SHARE + MUDDLED_SHARE:
        answer = muddled_answer(problem)
    else:
        answer = hasty_answer(problem, rng)
    return problem.prompt(pattern), answer


def is_right(problem: Problem, text: str) -> bool:
    """Whether ``text`` gives the answer between the tags."""
    found = _ANSWER.search(text)
    return found is not None and int(found.group(1)) == problem.answer
