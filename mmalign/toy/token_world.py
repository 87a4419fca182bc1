"""The toy world of tokens: a language of 59 words, a judge that is a program, preferences with known flaws.

A prompt asks for facts of an animal; an answer states them, may end politely, and may hold filler words and
slips of the pen. The judge is exact. The labellers are not: they like long answers, flip a share of the
labels and never look at slips. A `Condition` says how much of each, so that what a loss does about it can be
measured.

    prompt   [. .] fox colour food ?          a field of five words, blank in front
    answer   colour red and well food fish thanks </s>

    reward = facts * (3 + courtesy) / 4 * clarity, in [0, 1]
    facts     asked facts that are stated rightly, divided by the facts asked or stated, whichever is more
    courtesy  1 if the answer ends with thanks
    clarity   share of the words that say something: neither filler nor slip nor fragment
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Generator

from mmalign.errors import ConfigError, explain
from mmalign.seeding import generator_for

__all__ = [
    "ANSWER_WORDS",
    "BASE_WRITER",
    "CONDITIONS",
    "END",
    "FOREIGN_WRITER",
    "PROMPT_WORDS",
    "VOCABULARY",
    "Answer",
    "Condition",
    "Judgement",
    "Pair",
    "Prompt",
    "Split",
    "Writer",
    "decode",
    "encode_answer",
    "encode_prompt",
    "flip_labels",
    "judge",
    "label_pairs",
    "prompts",
    "truth",
]

ANIMALS = tuple("fox owl hen cat elk bee ant eel cow dog rat bat ape hog emu yak".split())  # noqa: SIM905  shorter
VALUES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "colour": ("red", "blue", "green", "grey", "white", "black"),
        "food": ("fish", "grass", "corn", "nuts", "honey", "bread"),
        "home": ("cave", "nest", "barn", "pond", "tree", "hill"),
        "mood": ("calm", "shy", "bold", "proud", "sly", "kind"),
    }
)
BLANK, ASK, AND, THANKS, END = ".", "?", "and", "thanks", "</s>"
FILLERS = ("well", "indeed", "really", "surely")
SLIPS = ("teh", "adn", "fo", "umm", "hte", "ot")
VOCABULARY: tuple[str, ...] = (
    *(END, BLANK, ASK, AND, THANKS),
    *(*FILLERS, *SLIPS, *ANIMALS, *VALUES),
    *itertools.chain.from_iterable(VALUES.values()),
)
"""Every word; its place is its token. Token 0 ends an answer and fills what lies behind it."""

PROMPT_WORDS, ANSWER_WORDS = 5, 24
_TOKEN = {word: token for token, word in enumerate(VOCABULARY)}
_ATTRIBUTE_OF = {value: attribute for attribute, values in VALUES.items() for value in values}

_KNOWN = (0.95, 0.75, 0.4, 0.1)
"""How often the base's corpus states a fact rightly, a quarter of the facts each: easy and hard to prefer."""

Prompt = tuple[str, ...]
"""(animal, attribute, ...): what is asked for, one to three attributes in order."""

Answer = tuple[str, ...]
"""Words without the end."""


@dataclass(frozen=True)
class Judgement:
    """What the exact judge says of one answer; all but `words` in [0, 1]."""

    facts: float
    courtesy: float
    clarity: float
    slips: float
    words: int

    @property
    def content(self) -> float:
        """What labellers look at: facts * (3 + courtesy) / 4."""
        return self.facts * (3.0 + self.courtesy) / 4.0

    @property
    def reward(self) -> float:
        """The exact reward: content * clarity."""
        return self.content * self.clarity


def _fact_number(animal: str, attribute: str) -> int:
    return ANIMALS.index(animal) * len(VALUES) + tuple(VALUES).index(attribute)


def _facts() -> dict[tuple[str, str], tuple[str, str, float]]:
    """Per animal and attribute: the truth, the usual mistake, how often the base's corpus is right."""
    generator = generator_for(0, "token_world_facts")
    order = torch.randperm(len(ANIMALS) * len(VALUES), generator=generator).tolist()
    facts = {}
    for animal, (attribute, values) in itertools.product(ANIMALS, VALUES.items()):
        right, wrong = torch.randperm(len(values), generator=generator)[:2].tolist()
        known = _KNOWN[order[_fact_number(animal, attribute)] % len(_KNOWN)]
        facts[animal, attribute] = (values[right], values[wrong], known)
    return facts


_FACTS = _facts()


def truth(animal: str, attribute: str) -> str:
    """The right value."""
    return _FACTS[animal, attribute][0]


@dataclass(frozen=True)
class Split:
    """Prompts for pairs, for choosing settings, and for the reported numbers; no prompt is in two."""

    train: tuple[Prompt, ...]
    validation: tuple[Prompt, ...]
    test: tuple[Prompt, ...]


def prompts() -> Split:
    """All 640 prompts of the language, split 384 : 96 : 160, always in the same way."""
    every = [
        (animal, *asked)
        for animal in ANIMALS
        for number in (1, 2, 3)
        for asked in itertools.permutations(VALUES, number)
    ]
    order = torch.randperm(len(every), generator=generator_for(0, "token_world_split")).tolist()
    shuffled = tuple(every[index] for index in order)
    return Split(shuffled[:384], shuffled[384:480], shuffled[480:])


# --------------------------------------------------------------------------------------------------- judging


def judge(prompt: Prompt, answer: Answer) -> Judgement:
    """The exact judgement of an answer; an empty one has reward 0."""
    animal, *asked = prompt
    stated: dict[str, str] = {}
    number = 0
    for first, second in itertools.pairwise(answer):
        if _ATTRIBUTE_OF.get(second) == first:
            stated.setdefault(first, second)
            number += 1
    right = sum(stated.get(attribute) == truth(animal, attribute) for attribute in asked)
    courtesy = float(bool(answer) and answer[-1] == THANKS)
    useful = 2 * number + min(answer.count(AND), max(number - 1, 0)) + courtesy
    words = len(answer)
    return Judgement(
        facts=right / max(len(asked), number),
        courtesy=courtesy,
        clarity=min(useful / words, 1.0) if words else 0.0,
        slips=sum(word in SLIPS for word in answer) / max(words, 1),
        words=words,
    )


# --------------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class Writer:
    """Someone who answers prompts.

    Args:
        right: probability of stating a fact rightly; None: as often as the base's corpus does, which differs
            from fact to fact.
        courtesy: probability of a polite end.
        filler: probability of one more filler word in each gap between statements.
        slip: probability of one more slip in each gap.
    """

    right: float | None
    courtesy: float
    filler: float
    slip: float

    def answer(self, prompt: Prompt, generator: Generator) -> Answer:
        """An answer, shorter than `ANSWER_WORDS`."""
        animal, *asked = prompt
        words: list[str] = []
        for number, attribute in enumerate(asked):
            if number:
                words.append(AND)
            words += self._gap(generator)
            words += [attribute, self._value(animal, attribute, generator)]
        words += self._gap(generator)
        if _chance(generator) < self.courtesy:
            words = [*words[: ANSWER_WORDS - 2], THANKS]
        return tuple(words[: ANSWER_WORDS - 1])

    def _gap(self, generator: Generator) -> list[str]:
        words = []
        for share, choices in ((self.filler, FILLERS), (self.slip, SLIPS)):
            while _chance(generator) < share:
                words.append(choices[int(_chance(generator) * len(choices))])
        return words

    def _value(self, animal: str, attribute: str, generator: Generator) -> str:
        right, usual_mistake, known = _FACTS[animal, attribute]
        if _chance(generator) < (known if self.right is None else self.right):
            return right
        if _chance(generator) < 0.75:
            return usual_mistake
        return VALUES[attribute][int(_chance(generator) * len(VALUES[attribute]))]


def _chance(generator: Generator) -> float:
    return float(torch.rand((), generator=generator))


BASE_WRITER = Writer(right=None, courtesy=0.15, filler=0.25, slip=0.002)
"""Who wrote the corpus of the base."""

FOREIGN_WRITER = Writer(right=0.5, courtesy=0.5, filler=0.25, slip=0.3)
"""Another author: knows other things, is politer, and makes slips that the base hardly ever makes."""


# -------------------------------------------------------------------------------------------------- labelling


@dataclass(frozen=True)
class Condition:
    """What is wrong with a set of preferences.

    Args:
        title: in words.
        flips: share of the labels that are exchanged.
        length_taste: what labellers add to an answer's worth per word.
        foreign: share of prompts whose answers are another author's and not the base's own.
    """

    title: str
    flips: float = 0.0
    length_taste: float = 0.0
    foreign: float = 0.0


CONDITIONS: Mapping[str, Condition] = MappingProxyType(
    {
        "mixed": Condition("a little of everything", flips=0.1, length_taste=0.01, foreign=0.5),
        "clean": Condition("the base's own answers, exact labels"),
        "noise": Condition("three labels in ten exchanged", flips=0.3),
        "length": Condition("labellers who like long answers", length_taste=0.1),
        "foreign": Condition("another author's answers, with slips nobody looked at", foreign=1.0),
    }
)


@dataclass(frozen=True)
class Pair:
    """Two answers, the preferred one first, with what the labellers thought each worth."""

    prompt: Prompt
    chosen: Answer
    rejected: Answer
    worth: tuple[float, float]


def label_pairs(
    prompt: Prompt, answers: Sequence[Answer], condition: Condition, generator: Generator
) -> list[Pair]:
    """Four answers as two pairs, joined so that as few as possible are tied; a tie is decided by a coin.

    Labels are not flipped yet.

    Raises:
        ConfigError: there are not four answers.
    """
    if len(answers) != 4:
        raise ConfigError(explain("token world pairs", got=len(answers), expected="4 answers per prompt"))
    worth = [
        seen.content + condition.length_taste * seen.words
        for seen in (judge(prompt, answer) for answer in answers)
    ]
    joined = max(
        (((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2))),
        key=lambda pairs: sum(worth[a] != worth[b] for a, b in pairs),
    )
    made = []
    for a, b in joined:
        coin = _chance(generator) < 0.5
        better, worse = (a, b) if worth[a] > worth[b] or (worth[a] == worth[b] and coin) else (b, a)
        made.append(Pair(prompt, answers[better], answers[worse], (worth[better], worth[worse])))
    return made


def flip_labels(pairs: Sequence[Pair], share: float, generator: Generator) -> list[Pair]:
    """The pairs with a share of them exchanged; what each answer is thought worth goes with the place.

    Args:
        pairs: labelled rightly.
        share: in [0, 1].
        generator: of the draws.

    Raises:
        ConfigError: the share is outside [0, 1].
    """
    if not 0.0 <= share <= 1.0:
        raise ConfigError(explain("token world flips", got=share, expected="a share in [0, 1]"))
    return [
        Pair(pair.prompt, pair.rejected, pair.chosen, pair.worth) if _chance(generator) < share else pair
        for pair in pairs
    ]


# ----------------------------------------------------------------------------------------------------- tokens


def encode_prompt(prompt: Prompt) -> list[int]:
    """The five tokens of a prompt, blank in front."""
    words = (*prompt, ASK)
    return [_TOKEN[word] for word in (*(BLANK,) * (PROMPT_WORDS - len(words)), *words)]


def encode_answer(answer: Answer) -> list[int]:
    """`ANSWER_WORDS` tokens: the words, the end, and ends behind it."""
    tokens = [_TOKEN[word] for word in answer[: ANSWER_WORDS - 1]]
    return tokens + [_TOKEN[END]] * (ANSWER_WORDS - len(tokens))


def decode(tokens: Sequence[int]) -> Answer:
    """The words before the first end."""
    words = [VOCABULARY[token] for token in tokens]
    return tuple(words[: words.index(END)] if END in words else words)
