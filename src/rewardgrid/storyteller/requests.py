"""What a teacher is asked for: a different story each time, after two that it is shown."""

from __future__ import annotations

from dataclasses import dataclass

from rewardgrid.lm.draws import generator
from rewardgrid.storyteller.shown import SHOWN, SYSTEM

HEROES = """\
a girl named Anna|a boy named Tom|a girl named Rose|a boy named Sam|a girl named Lily|a boy named Max|\
a girl named Grace|a boy named Ben|a girl named Ruby|a boy named Leo|two sisters|two brothers|a grandmother|\
a grandfather|a father and his daughter|a mother and her son|a teacher|a baker|a farmer|a sailor|a painter|\
a doctor|a shepherd|a fisherman|a gardener|a clown|a king|a queen|a prince|a princess|a knight|a wizard|a giant|\
a ghost|a robot|a dragon|a mouse|a cat|a dog|a horse|an owl|a bear|a wolf|a rabbit|a turtle|a frog|a duck|\
a bird|a bee|a fish|a whale|an elephant|a lion|a monkey|a squirrel|a snail|a spider|a goat|a sheep|a pig|\
a snowman|a doll|a new neighbor|twins|a lonely old man|a young inventor|a postman|a librarian|a singer|\
a shy child"""

THINGS = """\
a golden key|a broken clock|a letter|a blue balloon|a magic hat|a lost shoe|a wooden boat|a silver bell|\
a big cake|a strange egg|a secret door|a map|a lamp|a music box|a warm coat|a garden|a small seed|a tall ladder|\
a bridge|a stone wall|a shiny coin|a painting|a book without words|a paper crown|a drum|a flute|a mirror|a ring|\
a basket of apples|a puzzle|a race|a song|a dream|a storm|a bad cold|a birthday|a long trip|a promise|a dance|\
a game|a pair of glasses|a telescope|a train|a wagon|a bicycle|a blanket|a pillow|a toy bear|a candle|a shell|\
a feather|a rainbow|a star|the moon|a snowflake|a river stone|a jar of honey|a loaf of bread|a bowl of soup|\
a pumpkin|a rose|an old tree|a nest|a well|a tent|a rope|a bottle|a box of colors|a camera|a ticket|a prize|\
a noise at night|a missing cat|a new school|a hole in the roof|a flat tire|a hidden treasure|an empty chair|\
a broken toy|a surprise"""

PLACES = """\
in the forest|by the sea|on a farm|in a small village|in a big city|at school|in the mountains|on an island|\
under the sea|in the desert|in a castle|in a cave|at the market|in the kitchen|in the garden|on a train|\
on a ship|at the zoo|in a library|in a museum|in the snow|in the rain|at night|in the attic|under the bed|\
in a tree house|by the river|at the lake|in the park|on the roof|at the beach|in a meadow|at the circus|\
in a shop|in a hospital|in the clouds|on the moon|in a tower|in an old house|in the jungle|in a tent|\
at the harbor|on a bridge|in the cellar|at a party|in a theater|on the playground|in the barn|at the station|\
in a quiet valley"""

TONES = """\
gentle|funny|quiet|exciting|sad|strange|warm|calm|brave|sweet|surprising|silly|serious|cozy|hopeful|mysterious"""

LESSONS = """\
friends share|asking helps|small things matter|everyone makes mistakes|patience pays|it is good to try again|\
kind words help|the truth is best|work is easier together|being different is fine|fear can be small|\
home is a good place|listening is a gift|every day is new|giving feels good|old things have worth|\
anger goes away|nobody is too small|nature needs care|learning takes time|promises count|it is fine to be alone|\
a plan helps|luck comes and goes|courage grows"""

STARTS = """\
Early one morning,|Late at night,|At the edge of the|On a cold day,|On a hot day,|When the bell rang,|\
After the storm,|Before breakfast,|Behind the house,|In the middle of the|Far away,|Long ago,|Every evening,|\
Nobody knew|No one believed|Everyone in the|People said that|Something was wrong|Something moved|The door|The wind|\
The sun|The moon|Rain|Snow|For a whole week,|For many years,|It was the last|It was almost|There were|With a loud|\
With a small|Without a word,|Down by the|Up in the|Deep in the|Near the|Not far from|Across the|Above the|\
Under the old|Inside the|Through the window,|On the table|On the first day|On Monday,|On her way|On his way|\
One winter,|One summer,|One autumn day,|One spring|Last night,|This year,|Tomorrow|Soon after|While the others|\
Because of the|How did|Who could|Slowly,|Quietly,|Suddenly,|Sometimes|Often,|Once a year,|His|Her|Their|My|Our|\
She wanted|He wanted|They had|She had|He had never|She could not|He liked|She heard|He saw|They heard|The smallest|\
The oldest|The best|A little|An old|A tall|A voice|A cold|A long"""


SHOWN_ALIKE = 224
"""So many requests in a row are shown the same two stories: what they have in common need be read once only."""


@dataclass(frozen=True)
class Request:
    """One story that is wanted.

    Attributes:
        shown: places in :data:`SHOWN` of the two stories that the teacher sees before.
        prompt: what the user asks.
        start: the story's first words, with which the assistant's answer begins.
    """

    shown: tuple[int, int]
    prompt: str
    start: str

    @property
    def turns(self) -> list[dict[str, str]]:
        """The conversation up to the story's first words, as chat templates take it."""
        turns = [{"role": "system", "content": SYSTEM}]
        for asked, told in (*(SHOWN[place] for place in self.shown), (self.prompt, self.start)):
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]
        return turns


def request(seed: int, number: int) -> Request:
    """The story that is asked for under this number: a function of (seed, number) alone."""
    draw = generator(seed, "story request", number)

    def one(words: str) -> str:
        choices = words.split("|")
        return choices[draw.integers(len(choices))]

    tone, hero, thing, place, lesson, start = map(one, (TONES, HEROES, THINGS, PLACES, LESSONS, STARTS))
    article = "an" if tone[0] in "aeiou" else "a"
    prompt = f"Write {article} {tone} story about {hero} and {thing} {place}. It shows that {lesson}."
    return Request(_shown(number), prompt, start)


def _shown(number: int) -> tuple[int, int]:
    """Every ordered pair of two stories once, each as often the first as any other, then all over again."""
    turn, count = number // SHOWN_ALIKE, len(SHOWN)
    first = turn % count
    return first, (first + 1 + turn // count % (count - 1)) % count
