"""Makes the built-in families of contrastive pairs: `python -m tools.builtin_models.pairs`.

Each family has 200 pairs, from templates: every frame with every filling. The two texts of a pair differ in what the
family is about and in nothing else. The positive text is the past, the plural, the negated, the certain one.
"""

import csv
import io
from collections.abc import Callable
from pathlib import Path

from llm_entropy.builtin import PAIR_FAMILIES, data_file

Pair = tuple[str, str]

SUBJECTS = (
    "The man", "The old woman", "A young child", "The king", "My brother",
    "The teacher", "A stranger", "The farmer", "Her father", "The doctor",
)  # fmt: skip
ACTIONS = (
    ("walked", "walks", "along the river"),
    ("opened", "opens", "the door of the house"),
    ("gave", "gives", "bread to the poor"),
    ("spoke", "speaks", "with the people of the city"),
    ("carried", "carries", "water from the well"),
    ("wrote", "writes", "a long letter"),
    ("sold", "sells", "fish in the market"),
    ("slept", "sleeps", "under a tree"),
    ("looked", "looks", "at the stars"),
    ("built", "builds", "a wall of stone"),
    ("lost", "loses", "a piece of money"),
    ("waited", "waits", "at the gate"),
    ("sang", "sings", "a song about the sea"),
    ("chopped", "chops", "wood for the fire"),
    ("found", "finds", "the way home"),
    ("drank", "drinks", "a cup of wine"),
    ("ran", "runs", "across the field"),
    ("told", "tells", "the truth"),
    ("kept", "keeps", "sheep on the hill"),
    ("paid", "pays", "for the meal"),
)
"""Past, present, and the rest."""

NOUNS = (
    ("dog", "dogs"), ("child", "children"), ("woman", "women"), ("bird", "birds"), ("servant", "servants"),
    ("soldier", "soldiers"), ("horse", "horses"), ("city", "cities"), ("tree", "trees"), ("ship", "ships"),
    ("house", "houses"), ("flower", "flowers"), ("teacher", "teachers"), ("book", "books"), ("river", "rivers"),
    ("priest", "priests"), ("animal", "animals"), ("stone", "stones"), ("knife", "knives"), ("student", "students"),
)  # fmt: skip
PREDICATES = (
    ("is very old", "are very old"), ("was seen from the hill", "were seen from the hill"),
    ("has no name", "have no name"), ("does not move", "do not move"),
    ("is known to everyone", "are known to everyone"), ("was near the road", "were near the road"),
    ("has been there for years", "have been there for years"), ("is smaller than that", "are smaller than that"),
    ("was lost in the war", "were lost in the war"), ("seems to be quiet", "seem to be quiet"),
)  # fmt: skip

STATEMENTS = (
    ("is", "here", "is not", "here"),
    ("was", "afraid of the dark", "was not", "afraid of the dark"),
    ("can", "read and write", "cannot", "read and write"),
    ("will", "come again", "will not", "come again"),
    ("has", "seen the sea", "has not", "seen the sea"),
    ("knew", "the answer", "did not know", "the answer"),
    ("likes", "the cold weather", "does not like", "the cold weather"),
    ("could", "hear the music", "could not", "hear the music"),
    ("should", "leave the country", "should not", "leave the country"),
    ("is", "able to swim", "is not", "able to swim"),
    ("was", "born in this village", "was not", "born in this village"),
    ("has", "enough money", "does not have", "enough money"),
    ("ate", "meat", "did not eat", "meat"),
    ("believes", "the story", "does not believe", "the story"),
    ("would", "help us", "would not", "help us"),
    ("is", "a friend of ours", "is not", "a friend of ours"),
    ("went", "to the feast", "did not go", "to the feast"),
    ("needs", "a new coat", "does not need", "a new coat"),
    ("was", "angry with them", "was not", "angry with them"),
    ("wanted", "to stay", "did not want", "to stay"),
)
"""Affirmed, and negated."""

JUDGEMENTS = (
    ("It is certain that", "It is possible that"), ("Surely", "Perhaps"), ("Everyone knows that", "Some think that"),
    ("There is no doubt that", "There is a chance that"), ("We know that", "We suppose that"),
    ("It is true that", "It may be true that"), ("Without doubt", "It seems that"),
    ("I am sure that", "I am not sure that"),
    ("It has been proved that", "It has been suggested that"), ("Clearly", "Maybe"),
)  # fmt: skip
CLAIMS = (
    "the winter will be long", "the king is dead", "this road leads to the sea", "the water is good to drink",
    "she has left the country", "the war is over", "they will come tomorrow", "the house was sold",
    "the child is hungry", "he took the money", "the moon has no air", "gold is heavier than iron",
    "the city was built on a hill", "the animal is still alive", "rain will fall in the night",
    "the letter was never sent", "the bridge is strong enough", "the plant needs more light",
    "our enemies are near", "the work will be finished in a week",
)  # fmt: skip


def tense() -> list[Pair]:
    """What somebody did, and does."""
    return [(f"{who} {past} {rest}.", f"{who} {now} {rest}.") for who in SUBJECTS for past, now, rest in ACTIONS]


def number() -> list[Pair]:
    """Of many, and of one."""
    return [(f"The {many} {are}.", f"The {one} {is_}.") for one, many in NOUNS for is_, are in PREDICATES]


def negation() -> list[Pair]:
    """What is not so, and what is."""
    return [
        (f"{who} {no} {rest_no}.", f"{who} {yes} {rest_yes}.")
        for who in SUBJECTS
        for yes, rest_yes, no, rest_no in STATEMENTS
    ]


def certainty() -> list[Pair]:
    """What somebody is sure of, and what may be."""
    return [(f"{sure} {claim}.", f"{unsure} {claim}.") for sure, unsure in JUDGEMENTS for claim in CLAIMS]


FAMILIES: dict[str, Callable[[], list[Pair]]] = {
    "pairs/tense": tense,
    "pairs/number": number,
    "pairs/negation": negation,
    "pairs/certainty": certainty,
}
"""By the name in a data path."""


def as_csv(pairs: list[Pair]) -> str:
    """The text of a family's file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("positive", "negative"), *pairs])
    return text.getvalue()


def main() -> None:
    """Run from the command line."""
    for name in PAIR_FAMILIES:
        path: Path = data_file(name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(as_csv(FAMILIES[name]()), encoding="utf-8")


if __name__ == "__main__":
    main()
