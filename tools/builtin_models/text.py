"""The text that the built-in models learn from: WordNet and the King James Bible, as plain sentences.

WordNet's relations are told as sentences ("A poodle is a kind of dog.", "The opposite of hot is cold."), so that what a
model learnt can be checked by anybody who reads its predictions. Frequent concepts are told more often than obscure
ones, in other words each time. The split into training and held-out documents is made per synset and per verse, before
anything else is done with them.
"""

import random
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

WORDNET_DIR = Path("/usr/share/wordnet")
HELD_OUT_SHARE = 0.02
OBSCURE_SHARE = 0.4
BASIC_WORDS = """
    animal bird fish insect reptile mammal plant tree flower fruit vegetable food drink meat bread person musician
    scientist writer painter vehicle ship tool weapon machine container building room furniture clothing garment shoe
    metal gas liquid rock gemstone color sport game disease emotion language country city river mountain island lake
    sea bone muscle organ coin drug science dance musical_instrument chemical_element poem book religion holiday
"""
BASIC_KINDS = frozenset(BASIC_WORDS.split())
FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
SENSE_KEY_TYPES = {"n": "1", "v": "2", "a": "3", "r": "4", "s": "5"}
LOCATION_FILE, PERSON_FILE = "15", "18"
COUNTED_FILES = ("05", "06", PERSON_FILE, "20")
GROUP_NAME = re.compile(
    r"(Union|Republic|States|Kingdom|Organization|Empire|Sea|Ocean|River|Islands|Mountains|Nations|Testament)$"
    r"|^(Netherlands|Philippines|Bahamas|Bible|Alps|Himalayas)$"
)
TAXON = re.compile(
    r"^(a |the )?(type |large |small |monotypic |natural |extinct )*(genus|family|order|class|suborder)\b"
)
CAPITAL = re.compile(
    r"\bcapital(?: and [a-z ]*?(?:city|port|center))? of (?:the )?([A-Z][\w.'-]*(?: [A-Z][\w.'-]*| of| and| the)*)"
)


class Word(NamedTuple):
    """One word of a synset."""

    lemma: str
    """As it is written, with blanks."""
    rank: int
    """Which sense of the lemma this is: 0 is the most frequent one."""
    uses: int
    """How often the sense was met in WordNet's tagged texts."""


@dataclass(frozen=True)
class Synset:
    """One concept of WordNet."""

    key: str
    """Part of speech and offset in the data file: `n02084071`."""
    part_of_speech: str
    """`n`, `v`, `a` (satellites too) or `r`."""
    file_number: str
    """WordNet's lexicographer file: `05` is noun.animal."""
    words: tuple[Word, ...]
    """The synonyms, the most common one first."""
    pointers: tuple[tuple[str, str, int, int], ...]
    """Relations: symbol, key of the other synset, source word, target word (from 1; 0 is the whole synset)."""
    definition: str
    """The gloss without its examples."""
    examples: tuple[str, ...] = ()
    """The sentences that the gloss quotes."""

    @property
    def count(self) -> int:
        """How often the concept was met in WordNet's tagged texts."""
        return sum(word.uses for word in self.words)


@dataclass
class Texts:
    """Documents to learn from or to be measured on."""

    natural: dict[str, list[str]] = field(default_factory=lambda: {"glosses": [], "examples": [], "verses": []})
    """Glosses, example sentences and verses."""
    relations: list[str] = field(default_factory=list)
    """WordNet's relations, told as sentences."""

    def everything(self) -> list[str]:
        """All documents, in a fixed order."""
        return [text for texts in self.natural.values() for text in texts] + self.relations


# ---------------------------------------------------------------------------------------------- reading WordNet


def parse_gloss(gloss: str) -> tuple[str, tuple[str, ...]]:
    """The definition and the quoted examples of a gloss.

    Args:
        gloss: What follows the bar in a data file, such as `a domestic animal; "the dog barked"`.
    """
    examples = tuple(example.strip(" ;,") for example in re.findall(r'"([^"]+)"', gloss))
    definition = re.sub(r"\s+", " ", gloss.split('"')[0]).strip(" ;:,.")
    return definition, tuple(example for example in examples if len(example.split()) > 2)


def read_senses(folder: Path, part_of_speech: str) -> dict[tuple[str, str], int]:
    """The rank of each (lemma, offset), from an index file, whose offsets are in order of frequency."""
    ranks = {}
    for line in (folder / f"index.{FILES[part_of_speech]}").read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):
            fields = line.split()
            num_senses = int(fields[2])
            for rank, offset in enumerate(fields[-num_senses:]):
                ranks[fields[0], offset] = rank
    return ranks


def read_counts(folder: Path) -> dict[str, int]:
    """The tag count of each sense key, cut before the head word of satellites."""
    counts: dict[str, int] = {}
    for line in (folder / "cntlist.rev").read_text(encoding="utf-8").splitlines():
        sense_key, _, count = line.split()
        short = ":".join(sense_key.split(":")[:3])
        counts[short] = counts.get(short, 0) + int(count)
    return counts


def parse_synset(line: str, ranks: dict[tuple[str, str], int], counts: dict[str, int]) -> Synset:
    """One line of a data file (wndb(5WN))."""
    head, gloss = line.split(" | ", 1)
    fields = head.split()
    offset, file_number, kind, num_words = fields[0], fields[1], fields[2], int(fields[3], 16)
    words = []
    for lemma, lex_id in zip(fields[4 : 4 + 2 * num_words : 2], fields[5 : 5 + 2 * num_words : 2], strict=True):
        bare = re.sub(r"\([a-z]+\)$", "", lemma)
        sense_key = f"{bare.lower()}%{SENSE_KEY_TYPES[kind]}:{file_number}:{int(lex_id, 16):02d}"
        words.append(Word(bare.replace("_", " "), ranks.get((bare.lower(), offset), 9), counts.get(sense_key, 0)))
    start = 5 + 2 * num_words
    pointers = []
    for i in range(start, start + 4 * int(fields[start - 1]), 4):
        symbol, target, target_kind, ends = fields[i : i + 4]
        pointers.append((symbol, target_kind.replace("s", "a") + target, int(ends[:2], 16), int(ends[2:], 16)))
    definition, examples = parse_gloss(gloss)
    part_of_speech = kind.replace("s", "a")
    return Synset(
        part_of_speech + offset, part_of_speech, file_number, tuple(words), tuple(pointers), definition, examples
    )


def read_wordnet(folder: Path) -> dict[str, Synset]:
    """All synsets of a WordNet 3.0 database folder, by key.

    Raises:
        ReportedError: If the folder lacks the database.
    """
    if not (folder / "data.noun").is_file():
        raise ValueError(f"no WordNet database in {folder}: expected data.noun there (Debian package wordnet-base)")
    counts = read_counts(folder)
    synsets = {}
    for part_of_speech, name in FILES.items():
        ranks = read_senses(folder, part_of_speech)
        for line in (folder / f"data.{name}").read_text(encoding="utf-8").splitlines():
            if not line.startswith(" "):
                synset = parse_synset(line, ranks, counts)
                synsets[synset.key] = synset
    return synsets


def read_verses() -> list[str]:
    """The verses of the King James Bible, as Debian's `bible` command (bible-kjv, bible-kjv-text) prints them.

    Raises:
        ReportedError: If the command is missing.
    """
    if shutil.which("bible") is None:
        raise ValueError("the command `bible` is missing: install the Debian packages bible-kjv and bible-kjv-text")
    printed = subprocess.run(
        ["bible", "-f", "Gen1:1-Rev22:21"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    ).stdout
    return [line.split(" ", 1)[1].strip() for line in printed.splitlines() if " " in line]


# ---------------------------------------------------------------------------------------------- telling it


def sentence(text: str) -> str:
    """The text with a capital at its start and a full stop at its end."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text[-1:] in ".!?" else ".")


def with_article(noun: str) -> str:
    """`a dog`, `an apple`, `an hour`, `a unit`."""
    vowel = re.match(r"[aeiou]|hono|hour|heir|hones", noun.lower())
    glide = re.match(r"eu|uni[^nm]|use|usu|uti|one\b|once|ura|ure", noun.lower())
    return ("an " if vowel and not glide else "a ") + noun


def is_instance(synset: Synset) -> bool:
    """Whether a noun is the name of one thing."""
    return any(symbol == "@i" for symbol, *_ in synset.pointers)


def noun_phrase(word: Word, synset: Synset) -> str:
    """The noun as it stands in running text: `a dog`, `water`, `Paris`, `the European Union`.

    A noun is taken as a counted one where its definition begins with an article, or where it names an animal, a thing
    that was made, a person or a plant.
    """
    lemma = word.lemma
    if lemma[:1].isupper() and (is_instance(synset) or synset.file_number != PERSON_FILE):
        return "the " + lemma if GROUP_NAME.search(lemma) else lemma
    plural = re.search(r"[^siu]s$", lemma) is not None
    begins_with_article = re.match(r"(an?|one|any) ", synset.definition) is not None
    counted = not plural and (begins_with_article or synset.file_number in COUNTED_FILES)
    return with_article(lemma) if counted else lemma


def tell_gloss(synset: Synset, rng: random.Random) -> str:
    """The definition as a sentence about the synset's first word."""
    word, definition = synset.words[0], synset.definition
    begins_with_article = re.match(r"(an?|the|one|any) ", definition) is not None
    if synset.part_of_speech == "n" and begins_with_article:
        return sentence(f"{noun_phrase(word, synset)} is {definition}")
    if synset.part_of_speech == "v" and re.match(r"[a-z]+ ", definition):
        return sentence(rng.choice([f"to {word.lemma} is to {definition}", f"to {word.lemma} means to {definition}"]))
    if synset.part_of_speech == "a" and rng.random() < 0.6:
        return sentence(f"{word.lemma} means {definition}")
    return sentence(f"{word.lemma}: {definition}")


def ancestors(synset: Synset, synsets: dict[str, Synset]) -> Iterator[Synset]:
    """What a noun is a kind of, from near to far, along the first hypernym."""
    while above := [key for symbol, key, _, _ in synset.pointers if symbol in ("@", "@i") and key in synsets]:
        synset = synsets[above[0]]
        yield synset


def tell_kinds(synset: Synset, synsets: dict[str, Synset], rng: random.Random) -> Iterator[str]:
    """Hypernyms: what a noun is a kind of, or what a verb is a way of."""
    word = synset.words[0]
    for symbol, key, _, _ in synset.pointers:
        if key not in synsets or symbol not in ("@", "@i"):
            continue
        above = synsets[key].words[0].lemma
        if synset.part_of_speech == "v":
            yield rng.choice([f"to {word.lemma} is to {above} in some way", f"to {word.lemma} is one way to {above}"])
        elif symbol == "@i":
            yield f"{word.lemma} {'was' if synset.file_number == PERSON_FILE else 'is'} {with_article(above)}"
        else:
            name = noun_phrase(word, synset)
            yield rng.choice(
                [f"{name} is a kind of {above}", f"{name} is a kind of {above}", f"{name} is a type of {above}"]
            )
    if synset.part_of_speech == "n":
        far = [above.words[0].lemma for above in islice(ancestors(synset, synsets), 1, None)]
        basics = [lemma for lemma in far if lemma.replace(" ", "_") in BASIC_KINDS]
        for basic in basics[: 2 if synset.count else 1]:
            name = noun_phrase(word, synset)
            plain = is_instance(synset) or rng.random() < 0.5
            yield f"{name} is {with_article(basic)}" if plain else f"{name} is a kind of {basic}"


def tell_parts(synset: Synset, synsets: dict[str, Synset], rng: random.Random) -> Iterator[str]:
    """Holonyms: the wholes that a noun is a part, a member or the substance of."""
    name = noun_phrase(synset.words[0], synset)
    for symbol, key, _, _ in synset.pointers:
        if symbol not in ("#p", "#m", "#s") or key not in synsets:
            continue
        whole = noun_phrase(synsets[key].words[0], synsets[key])
        if symbol == "#p" and synset.file_number == LOCATION_FILE:
            yield rng.choice([f"{name} is in {whole}", f"{name} is a part of {whole}", f"{name} lies in {whole}"])
        elif symbol == "#p":
            yield rng.choice([f"{name} is a part of {whole}", f"{whole} has {name}"])
        elif symbol == "#m":
            yield f"{name} is a member of {whole}"
        else:
            yield f"{whole} is made of {name}"


def tell_words(synset: Synset, synsets: dict[str, Synset], rng: random.Random) -> Iterator[str]:
    """Antonyms and synonyms."""
    for symbol, key, source, target in synset.pointers:
        if symbol == "!" and key in synsets and source and target:
            one, other = synset.words[source - 1].lemma, synsets[key].words[target - 1].lemma
            to = "to " if synset.part_of_speech == "v" else ""
            yield f"the opposite of {one} is {other}"
            if rng.random() < 0.5:
                yield f"{to}{one} is the opposite of {to}{other}"
    words = [word.lemma for word in synset.words if word.rank < 2]
    if len(words) > 1:
        one, other = rng.sample(words[:4], 2)
        yield rng.choice([f"another word for {one} is {other}", f"{one} means the same as {other}"])


def tell_lists(synset: Synset, below: list[Synset], rng: random.Random) -> Iterator[str]:
    """Hyponyms: some of the kinds of a noun."""
    names = sorted({s.words[0].lemma for s in below if s.count or len(below) < 8})
    if synset.part_of_speech == "n" and len(names) >= 3:
        first, second, third = rng.sample(names, 3)
        yield f"{first}, {second} and {third} are kinds of {synset.words[0].lemma}"


def tell_capital(synset: Synset) -> Iterator[str]:
    """The city of a gloss such as `the capital and largest city of France`, told from the country's side."""
    found = CAPITAL.search(synset.definition) if synset.file_number == LOCATION_FILE else None
    if found:
        city, country = synset.words[0].lemma, found.group(1)
        for end in (" and", " of", " the"):
            country = country.removesuffix(end)
        if not country.endswith("'s"):
            yield f"the capital of {country} is {city}"
            yield f"{city} is the capital of {country}"


def tell_relations(
    synset: Synset, synsets: dict[str, Synset], below: list[Synset], rng: random.Random
) -> Iterator[str]:
    """All relations of a synset as sentences, told 1 to 4 times, the oftener the more frequent the concept is.

    Of concepts that WordNet's tagged texts never use, a share is told.
    """
    times = 1 + min(3, synset.count.bit_length() // 2)
    if not synset.count and rng.random() > OBSCURE_SHARE and not is_instance(synset):
        times = 0
    for _ in range(times):
        facts = list(tell_words(synset, synsets, rng))
        if synset.words[0].rank < 2:
            facts += tell_kinds(synset, synsets, rng)
            if synset.part_of_speech == "n":
                facts += tell_parts(synset, synsets, rng)
        facts += tell_lists(synset, below, rng)
        yield from map(sentence, facts)
    for fact in list(tell_capital(synset)) * 3:
        yield sentence(fact)


# ---------------------------------------------------------------------------------------------- the split


def tell_synset(
    synset: Synset, synsets: dict[str, Synset], below: list[Synset], texts: Texts, rng: random.Random
) -> None:
    """Adds what is to be said about a synset to `texts`."""
    if synset.definition:
        texts.natural["glosses"].append(tell_gloss(synset, rng))
    texts.natural["examples"].extend(map(sentence, synset.examples))
    texts.relations.extend(tell_relations(synset, synsets, below, rng))


def make_texts(synsets: dict[str, Synset], verses: Iterable[str], *, seed: int = 0) -> tuple[Texts, Texts]:
    """The training and the held-out documents.

    A synset or a verse is held out whole, with probability `HELD_OUT_SHARE`; a held-out text that is, word for word,
    in the training text as well is dropped. Three of four taxonomic names (genera, families) are left out.

    Returns:
        Training texts, held-out texts.
    """
    rng = random.Random(seed)
    train, held_out = Texts(), Texts()
    below: dict[str, list[Synset]] = {}
    for synset in synsets.values():
        for symbol, key, _, _ in synset.pointers:
            if symbol == "@":
                below.setdefault(key, []).append(synset)
    for synset in synsets.values():
        texts = held_out if rng.random() < HELD_OUT_SHARE else train
        if not TAXON.match(synset.definition) or rng.random() < 0.25:
            tell_synset(synset, synsets, below.get(synset.key, []), texts, rng)
    for verse in verses:
        texts = held_out if rng.random() < HELD_OUT_SHARE else train
        texts.natural["verses"].append(verse)
    known = {text.lower() for text in train.everything()}
    for texts_of_kind in (*held_out.natural.values(), held_out.relations):
        texts_of_kind[:] = sorted({text for text in texts_of_kind if text.lower() not in known})
    return train, held_out
