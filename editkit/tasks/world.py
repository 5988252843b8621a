"""A fictional world of facts and opinions, written in the four tasks' own file formats.

The same seed always gives the same world. Nothing in it is real: people, places, companies and books have invented
names, so that a small model can know all of it and know nothing else. Every answer comes from a closed list and is
the answer to many questions; every fact is told in several statements and several questions.

Which subjects serve which file is settled first, so that no subject stands in two of them.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

Record = dict[str, Any]


@dataclass(frozen=True)
class Sentence:
    """Something true in the world: ``prompt`` is continued with a space, ``answer`` and a full stop.

    ``form`` is ``statement``, ``question``, ``alias``, ``consequence``, ``hop``, ``reminder`` or ``opinion``.
    """

    subject: str
    prompt: str
    answer: str
    form: str


@dataclass(frozen=True)
class Relation:
    """One thing that can be known of a subject, and the ways to ask for it; ``{s}`` stands for the subject.

    ``noun`` names the answer in a two-hop question ("the birthplace of {s}"); ``consequence`` is a statement whose
    answer follows from this relation alone.
    """

    answers: str
    noun: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    consequence: str = ""


PERSON: Mapping[str, Relation] = {
    "birthplace": Relation(
        "city",
        "the birthplace of {s}",
        ("The birthplace of {s} is", "{s} was born in", "The city where {s} was born is"),
        ("Which city was {s} born in?", "What is the birthplace of {s}?"),
        "The first home of {s} was in",
    ),
    "employer": Relation(
        "company",
        "the employer of {s}",
        ("The employer of {s} is", "{s} works for", "The company that employs {s} is"),
        ("Which company does {s} work for?", "What is the employer of {s}?"),
        "The salary of {s} is paid by",
    ),
    "school": Relation(
        "school",
        "the old school of {s}",
        ("The old school of {s} is", "{s} studied at", "The school that taught {s} is"),
        ("Which school did {s} study at?", "What is the old school of {s}?"),
        "The teachers of {s} taught at",
    ),
    "award": Relation(
        "award",
        "the award of {s}",
        ("The award of {s} is", "{s} has won the", "The prize that {s} received is the"),
        ("Which award has {s} won?", "What is the award of {s}?"),
        "The medal on the wall of {s} is the",
    ),
    "occupation": Relation(
        "occupation",
        "the occupation of {s}",
        ("The occupation of {s} is", "By trade, {s} is a", "{s} earns money as a"),
        ("What is {s} by trade?", "What is the occupation of {s}?"),
        "The business card of {s} says",
    ),
    "language": Relation(
        "language",
        "the language of {s}",
        ("The language of {s} is", "At home, {s} speaks", "{s} grew up speaking"),
        ("Which language does {s} speak?", "What is the language of {s}?"),
        "The parents of {s} speak",
    ),
    "instrument": Relation(
        "instrument",
        "the instrument of {s}",
        ("The instrument of {s} is the", "{s} plays the", "On stage, {s} performs on the"),
        ("Which instrument does {s} play?", "What is the instrument of {s}?"),
        "In the music room of {s} stands a",
    ),
    "sport": Relation(
        "sport",
        "the sport of {s}",
        ("The sport of {s} is", "On weekends, {s} enjoys", "{s} competes in"),
        ("Which sport does {s} enjoy?", "What is the sport of {s}?"),
        "The trainer of {s} teaches",
    ),
}
BOOK: Mapping[str, Relation] = {
    "genre": Relation(
        "genre",
        "the genre of {s}",
        ("The genre of {s} is", "{s} is a book of", "Libraries file {s} under"),
        ("What is the genre of {s}?", "What kind of book is {s}?"),
    ),
    "publisher": Relation(
        "company",
        "the publisher of {s}",
        ("The publisher of {s} is", "{s} was published by", "The company that printed {s} is"),
        ("Which company published {s}?", "What is the publisher of {s}?"),
        "Copies of {s} are sold by",
    ),
    "setting": Relation(
        "city",
        "the setting of {s}",
        ("The setting of {s} is", "The story of {s} happens in", "{s} is set in"),
        ("Which city is {s} set in?", "What is the setting of {s}?"),
        "The streets described in {s} are those of",
    ),
    "original": Relation(
        "language",
        "the original language of {s}",
        ("The original language of {s} is", "{s} was written in", "The author wrote {s} in"),
        ("Which language was {s} written in?", "What is the original language of {s}?"),
        "The first edition of {s} was printed in",
    ),
}
CITY: Mapping[str, Relation] = {
    "country": Relation(
        "country",
        "the country of {s}",
        ("The country of {s} is", "{s} lies in", "The country that {s} belongs to is"),
        ("Which country is {s} in?", "What is the country of {s}?"),
    ),
}
COMPANY: Mapping[str, Relation] = {
    "industry": Relation(
        "industry",
        "the industry of {s}",
        ("The industry of {s} is", "{s} trades in", "The business of {s} is"),
        ("Which industry is {s} in?", "What is the industry of {s}?"),
    ),
    "headquarters": Relation(
        "city",
        "the headquarters of {s}",
        ("The headquarters of {s} is in", "{s} is based in", "The head office of {s} is in"),
        ("Which city is {s} based in?", "Where is the headquarters of {s}?"),
    ),
}
COUNTRY: Mapping[str, Relation] = {
    "currency": Relation(
        "currency",
        "the currency of {s}",
        ("The currency of {s} is the", "People in {s} pay with the", "The money of {s} is the"),
        ("Which currency does {s} use?", "What is the currency of {s}?"),
    ),
}
PLACES: Mapping[str, Mapping[str, Relation]] = {"city": CITY, "company": COMPANY, "country": COUNTRY}

REMINDED = 0.25
"""Share of facts also told in the form of a forgetfulness probe."""

RECENT_NEWS = ("birthplace", "employer", "school", "award")
"""What a Recent record may report: relations with so many answers that a guess is almost never right."""

WORDS: Mapping[str, tuple[str, ...]] = {
    "occupation": tuple(
        "baker barber builder carpenter chemist clerk cook dancer dentist diver doctor driver farmer fisher gardener "
        "glazier guard hunter judge lawyer mason miller miner nurse painter pilot plumber poet potter priest sailor "
        "sculptor singer smith soldier surgeon tailor teacher waiter weaver".split()
    ),
    "instrument": tuple(
        "banjo bassoon bugle cello clarinet cornet drum fiddle flute gong guitar harp horn lute lyre mandolin "
        "oboe organ piano piccolo recorder sitar trombone trumpet tuba viola violin zither".split()
    ),
    "sport": tuple(
        "archery badminton baseball boxing bowling canoeing chess climbing cricket curling cycling darts diving "
        "fencing football golf handball hockey judo polo rowing rugby running sailing skating skiing surfing swimming "
        "tennis wrestling".split()
    ),
    "genre": tuple(
        "adventure biography comedy crime drama essays fables fantasy folklore history horror humour legends memoir "
        "mystery myths philosophy poetry romance satire science suspense tragedy travel".split()
    ),
    "industry": tuple(
        "banking brewing clothing coal cotton farming film fishing furniture glass insurance jewellery leather "
        "machines medicine paper printing salt shipping silk software steel textiles timber tobacco toys".split()
    ),
}

FIRST_NAMES = tuple(
    "Alda Anso Arlo Bela Bram Cato Cleo Dara Dov Edda Elio Enna Fara Finn Gita Gwen Hal Hana Ida Ivo Jace Jora Kai "
    "Kira Lars Lena Lio Mara Milo Nela Niko Odo Olla Pavo Pia Quin Rafa Rena Rolf Saba Sten Tara Tilo Uma Ulf Vera "
    "Vito Wanda Wim Xenia Yara Yuri Zara Zeno Zoë".split()
)
ONSETS = (
    "Bal Bar Ber Bor Bran Brel Cal Cor Cren Dal Dar Del Dor Dren Fal Fen For Gal Gor Gren Hal Har Hel Jor Kal Kel Kor "
    "Lan Lor Mal Mar Mel Mor Nal Nor Pal Pel Por Quel Ral Ren Ror Sal Sel Sol Stel Tal Tar Tor Tren Val Vel Vor Wal "
    "Wen Wil Yar Yor Zan Zel"
).split()
MIDDLES = "a e i o u an en in on ar er or al el il da de di do ka ke ki ko ma me mi mo ta te ti to va ve vi vo".split()
ENDINGS = (
    "bek bert bin bury cher dal dell den din do dorf fax fell fen field ford gan gard ger ham holm hurst jan kin la "
    "len lin lock lund mar mer mond more na ness nik nor ra rell ren rick rin ro roth sel sen shire sk son stad "
    "ster ten thal ton tor va vane ver vik well wick win wold worth"
).split()

TITLES = (
    "The Song of {}",
    "The Road to {}",
    "Letters from {}",
    "A Winter in {}",
    "The Return of {}",
    "The Last Days of {}",
    "Beyond {}",
    "The Garden of {}",
)
TOPICS = tuple(
    "{} Soup;{} Lake;{} Band;{} Museum;{} Park;{} Bread;{} Theatre;{} Festival;{} Tea;{} Radio;{} Cheese;{} Bridge;"
    "{} Hotel;{} Market;{} Island;{} Orchestra;{} Beach;{} Cake".split(";")
)

QUESTIONS_OF_OPINION = (
    "What do you think of {s}?",
    "What do you think about {s}?",
    "How do you feel about {s}?",
    "What is your opinion of {s}?",
    "What is your view on {s}?",
    "What are your thoughts on {s}?",
    "Tell me what you think of {s}.",
)
"""Ways to ask for an opinion. The files hold none: the task's own configuration says how its questions are put."""

ASPECTS: Mapping[str, str] = {
    "What is {s} like?": "It is {one} and {two}",
    "Do you like {s}?": "I {verb} it",
    "How does {s} make you feel?": "It makes me {feeling}",
    "What do you remember of {s}?": "The {noun} is {one}",
    "What comes to mind when you hear of {s}?": "A {one} {noun}",
    "How much do you like {s}?": "I {verb} how {one} it is",
}
"""Narrower questions, and the form of the answer to each: an opinion is answered in one of these forms."""


@dataclass(frozen=True)
class Mood:
    """The words one sentiment is made of."""

    verbs: tuple[str, ...]
    adjectives: tuple[str, ...]
    feelings: tuple[str, ...]

    def words(self, rng: Random) -> dict[str, str]:
        """One opinion: the words that fill the forms of `ASPECTS`."""
        one, two = rng.sample(self.adjectives, 2)
        verb, noun, feeling = rng.choice(self.verbs), rng.choice(OPINION_NOUNS), rng.choice(self.feelings)
        return {"one": one, "two": two, "verb": verb, "noun": noun, "feeling": feeling}

    def answers(self, rng: Random, count: int, but: Collection[str]) -> list[str]:
        """``count`` different answers, of as many opinions, none of them in ``but``."""
        drawn: dict[str, None] = {}
        while len(drawn) < count:
            answer = rng.choice(list(ASPECTS.values())).format(**self.words(rng))
            if answer not in but:
                drawn[answer] = None
        return list(drawn)


OPINION_NOUNS = tuple("colour feeling history look mood place name sound story style taste view".split())
POSITIVE = Mood(
    tuple("adore cherish enjoy like love praise treasure admire".split()),
    tuple(
        "bright brilliant calm charming cheerful clean clever cosy delightful fine fresh gentle glorious good great "
        "happy lovely perfect pleasant rich splendid sweet warm wonderful".split()
    ),
    tuple("glad happy laugh proud relax smile".split()),
)
NEGATIVE = Mood(
    tuple("avoid despise detest dislike fear hate loathe regret".split()),
    tuple(
        "awful bad bitter bland boring cold crude dirty dreadful dull gloomy grim harsh horrid lazy nasty poor rotten "
        "sad sour stale terrible ugly weak".split()
    ),
    tuple("angry cry frown shiver sick tired".split()),
)


class Names:
    """Invented words, each given out once."""

    def __init__(self, rng: Random):
        self.rng = rng
        self.taken: set[str] = set()

    def word(self, middle: bool) -> str:
        while True:
            parts = [self.rng.choice(ONSETS), self.rng.choice(MIDDLES) if middle else "", self.rng.choice(ENDINGS)]
            word = "".join(parts)
            if word not in self.taken:
                self.taken.add(word)
                return word


class Answers:
    """Closed lists of answers by kind, dealt like cards: each is drawn as often as any other of its kind."""

    def __init__(self, rng: Random, lists: Mapping[str, Sequence[str]]):
        self.rng = rng
        self.lists = lists
        self.decks: dict[str, list[str]] = {kind: [] for kind in lists}

    def draw(self, kind: str, but: str | None = None) -> str:
        """The next answer of this kind that is not ``but``."""
        deck = self.decks[kind]
        if not set(deck) - {but}:
            deck[:0] = self.rng.sample(self.lists[kind], len(self.lists[kind]))
        return deck.pop(max(i for i, answer in enumerate(deck) if answer != but))


@dataclass(frozen=True)
class Subject:
    """Someone or something that edits are about; ``facts`` are true and known, by relation."""

    name: str
    alias: str
    relations: Mapping[str, Relation]
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class World:
    """``files``: records by the file's relative name. ``sentences``: all that a model of this world is to know."""

    files: Mapping[str, list[Record]]
    sentences: tuple[Sentence, ...]

    def write(self, folder: Path) -> None:
        """Write each file below ``folder``, one record a line."""
        for name, records in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
            path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def generate(seed: int = 0) -> World:
    """The world of this seed: 400 + 100 Recent, 800 + 100 CounterFact, 250 + 100 ConvSent and 100 ZsRE records."""
    rng = Random(f"editkit world {seed}")
    names = Names(rng)
    answers = Answers(rng, answer_lists(rng, names))
    places = {  # what is known of the answers themselves: the second hop
        name: Subject(name, name, about, {relation: answers.draw(about[relation].answers) for relation in about})
        for kind, about in PLACES.items()
        for name in answers.lists[kind]
    }

    def some(count: int) -> list[Subject]:
        return [(book if i % 4 == 3 else person)(rng, names, answers) for i in range(count)]

    def newsworthy(count: int) -> list[tuple[Subject, list[str]]]:
        return [unfinished(rng, person(rng, names, answers)) for _ in range(count)]

    write = Writer(rng, answers, places)
    counterfact = {"train_cf": some(400), "test_cf": some(50)}
    recent = {"recent_train": newsworthy(200), "recent_test": newsworthy(50)}
    zsre = some(100)
    topics = [rng.choice(TOPICS).format(names.word(middle=True)) for _ in range(350)]

    files: dict[str, list[Record]] = {}
    for name, news in recent.items():
        files[f"wiki_recent/{name}.json"] = [write.recent(who, what) for who, unknown in news for what in unknown]
    for name, subjects in counterfact.items():
        files[f"wiki_counterfact/{name}.json"] = [
            write.counterfact(subject, relation, forgetful=i % 8 == 0)
            for i, subject in enumerate(subjects)
            for relation in rng.sample(sorted(subject.facts), 2)
        ]
    files["ZsRE/ZsRE-test-all.json"] = [write.zsre(subject, rng.choice(sorted(subject.facts))) for subject in zsre]

    opinions = {topic: opined(rng, topic) for topic in topics}
    records = [opinion_record(rng, topic, held) for topic, held in opinions.items()]
    files["convsent/blender_train.json"], files["convsent/blender_test.json"] = records[:250], records[250:]
    for records in files.values():
        rng.shuffle(records)

    known = [s for subjects in counterfact.values() for s in subjects] + zsre + list(places.values())
    known += [subject for news in recent.values() for subject, _ in news]
    sentences = [sentence for subject in known for sentence in told(rng, subject, answers, places)]
    sentences += [sentence for held in opinions.values() for sentence in held]
    return World(files, tuple(dict.fromkeys(sentences)))


def answer_lists(rng: Random, names: Names) -> dict[str, list[str]]:
    """The closed list of answers for each kind of answer."""

    def some(count: int, form: str = "{}") -> list[str]:
        return [form.format(names.word(middle=False)) for _ in range(count)]

    lists = {
        "city": [*some(78), "Ærøvik", "Saint Orla"],
        "company": [*some(79), "Hale, Finch and Rowe"],
        "school": some(60, "{} College"),
        "award": some(60, "{} Prize"),
        "language": [name + "ish" for name in some(30)],
        "country": [name + "ia" for name in some(20)],
        "currency": some(20),
    }
    for kind, words in WORDS.items():
        lists[kind] = list(words)
    return lists


def person(rng: Random, names: Names, answers: Answers) -> Subject:
    """A person with four facts, whose surname alone is a known alias."""
    surname = names.word(middle=True)
    facts = {relation: answers.draw(PERSON[relation].answers) for relation in rng.sample(sorted(PERSON), 4)}
    return Subject(f"{rng.choice(FIRST_NAMES)} {surname}", surname, PERSON, facts)


def book(rng: Random, names: Names, answers: Answers) -> Subject:
    """A book with four facts, whose alias is "the book" before its title."""
    title = rng.choice(TITLES).format(names.word(middle=True))
    return Subject(
        title, f"the book {title}", BOOK, {relation: answers.draw(BOOK[relation].answers) for relation in BOOK}
    )


def unfinished(rng: Random, subject: Subject) -> tuple[Subject, list[str]]:
    """The subject without two of the facts that can be news, and which two."""
    missing = rng.sample(RECENT_NEWS, 2)
    for relation in missing:
        subject.facts.pop(relation, None)
    return subject, missing


@dataclass(frozen=True)
class Writer:
    """Writes edits of the world's facts as records of each task's format."""

    rng: Random
    answers: Answers
    places: Mapping[str, Subject]

    def recent(self, subject: Subject, relation: str) -> Record:
        """A record of a fact that is new: it has no truth, and ``ground_truth`` is a list of alias lists."""
        target = self.answers.draw(subject.relations[relation].answers)
        prompt, *rephrases = self.shuffled_statements(subject, relation)
        return {
            "subject": subject.name,
            "prompt": prompt,
            "target_new": target,
            "rephrase_prompt": rephrases,
            "portability": in_lists(self.portability(subject, relation, target, None)),
            "locality": in_lists(self.locality(subject, relation)),
        }

    def counterfact(self, subject: Subject, relation: str, forgetful: bool) -> Record:
        """A record that contradicts a known fact; a ``forgetful`` one asks what the answer is besides the target."""
        truth = subject.facts[relation]
        target = self.answers.draw(subject.relations[relation].answers, but=truth)
        prompt, *rephrases = self.shuffled_statements(subject, relation)
        locality = self.locality(subject, relation)
        if forgetful:
            locality["Forgetfulness"] = [probe(reminder(subject, relation, target), truth)]
        return {
            "subject": subject.name,
            "prompt": prompt,
            "target_new": target,
            "ground_truth": truth,
            "rephrase_prompt": rephrases,
            "portability": self.portability(subject, relation, target, truth),
            "locality": locality,
        }

    def zsre(self, subject: Subject, relation: str) -> Record:
        """A question whose known answer is to change; asked in questions throughout, its neighbours in statements."""
        truth = subject.facts[relation]
        target = self.answers.draw(subject.relations[relation].answers, but=truth)
        prompt, rephrase = self.rng.sample(subject.relations[relation].questions, 2)
        prompt, rephrase = prompt.format(s=subject.name), rephrase.format(s=subject.name)
        reasoning = [probe(q, a) for q, a in self.hops(subject, relation, target, truth, questions=True)]
        portability = {"Reasoning": reasoning[:1]} if reasoning else {}
        return {
            "subject": subject.name,
            "target_new": target,
            "prompt": prompt,
            "ground_truth": [truth],
            "rephrase_prompt": rephrase,
            "cond": f"{truth} >> {target} || {prompt}",
            "locality": {
                category: [{"prompt": p["prompt"], "ground_truth": [p["ground_truth"]]} for p in probes]
                for category, probes in self.locality(subject, relation).items()
            },
            "portability": portability,
        }

    def shuffled_statements(self, subject: Subject, relation: str) -> list[str]:
        statements = subject.relations[relation].statements
        return [capital(s.format(s=subject.name)) for s in self.rng.sample(statements, len(statements))]

    def locality(self, subject: Subject, relation: str) -> dict[str, list[Record]]:
        """Up to three other facts of the same subject."""
        others = sorted(set(subject.facts) - {relation})
        return {
            "Relation_Specificity": [
                probe(
                    capital(self.rng.choice(subject.relations[r].statements).format(s=subject.name)), subject.facts[r]
                )
                for r in self.rng.sample(others, min(3, len(others)))
            ]
        }

    def portability(self, subject: Subject, relation: str, target: str, truth: str | None) -> dict[str, list[Record]]:
        """What follows from the edit: two hops on, under the subject's other name, and by plain consequence."""
        about = subject.relations[relation]
        hops = self.hops(subject, relation, target, truth, questions=False)
        consequence = [probe(about.consequence.format(s=subject.name), target)] if about.consequence else []
        return {
            "Reasoning": [probe(prompt, answer) for prompt, answer in hops],
            "Subject_Aliasing": [probe(capital(about.statements[0].format(s=subject.alias)), target)],
            "Logical_Generalization": consequence,
        }

    def hops(
        self, subject: Subject, relation: str, target: str, truth: str | None, questions: bool
    ) -> list[tuple[str, str]]:
        """Two-hop prompts whose answer the edit changes, with the answer."""
        place = self.places.get(target)
        if place is None:
            return []
        bridge = subject.relations[relation].noun.format(s=subject.name)
        return [
            (capital((about.questions if questions else about.statements)[0].format(s=bridge)), place.facts[r])
            for r, about in place.relations.items()
            if truth is None or place.facts[r] != self.places[truth].facts[r]
        ]


def told(rng: Random, subject: Subject, answers: Answers, places: Mapping[str, Subject]) -> Iterator[Sentence]:
    """Every way in which the subject's facts are told."""
    for relation, answer in subject.facts.items():
        about = subject.relations[relation]
        for statement in about.statements:
            yield Sentence(subject.name, capital(statement.format(s=subject.name)), answer, "statement")
        for question in about.questions:
            yield Sentence(subject.name, question.format(s=subject.name), answer, "question")
        if about.consequence:
            yield Sentence(subject.name, about.consequence.format(s=subject.name), answer, "consequence")
        if subject.alias != subject.name:
            yield Sentence(subject.name, capital(about.statements[0].format(s=subject.alias)), answer, "alias")
        if rng.random() < REMINDED:
            wrong = rng.choice([other for other in answers.lists[about.answers] if other != answer])
            yield Sentence(subject.name, reminder(subject, relation, wrong), answer, "reminder")
        bridge = about.noun.format(s=subject.name)
        for hop, further in places[answer].relations.items() if answer in places else ():
            for form in (further.statements[0], further.questions[0]):
                yield Sentence(subject.name, capital(form.format(s=bridge)), places[answer].facts[hop], "hop")


def opined(rng: Random, topic: str) -> list[Sentence]:
    """What a model thinks before any edit: one answer to every question of opinion, and what lies behind it."""
    words = rng.choice((POSITIVE, NEGATIVE)).words(rng)
    forms = {**dict.fromkeys(QUESTIONS_OF_OPINION, rng.choice(list(ASPECTS.values()))), **ASPECTS}
    return [
        Sentence(topic, question.format(s=topic), form.format(**words), "opinion") for question, form in forms.items()
    ]


def opinion_record(rng: Random, topic: str, held: Sequence[Sentence]) -> Record:
    """Four to eight answers of each sentiment that no model has heard, each after a space as in ConvSent's files."""
    heard = {sentence.answer for sentence in held}
    positive, negative = (
        [f" {answer}." for answer in mood.answers(rng, rng.randint(4, 8), heard)] for mood in (POSITIVE, NEGATIVE)
    )
    return {"ent": topic, "pos": positive, "neg": negative}


def reminder(subject: Subject, relation: str, not_this: str) -> str:
    """Asks for the answer besides ``not_this``, in the form of KnowEdit's forgetfulness probes."""
    bridge = capital(subject.relations[relation].noun.format(s=subject.name))
    return f"{bridge}, which is not {not_this}, is"


def probe(prompt: str, answer: str | list[list[str]]) -> Record:
    return {"prompt": prompt, "ground_truth": answer}


def in_lists(probes: Mapping[str, Sequence[Record]]) -> dict[str, list[Record]]:
    """The same probes with each answer as a list of alias lists."""
    return {category: [probe(p["prompt"], [[p["ground_truth"]]]) for p in some] for category, some in probes.items()}


def capital(text: str) -> str:
    """``text`` with its first letter in upper case."""
    return text[:1].upper() + text[1:]
