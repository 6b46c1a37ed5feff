"""The words and sentences of the embedded base's stories; ``stories.py`` says how a story is drawn from them.

Plain data, one phrase or sentence a line. A ``{slot}`` is filled

* once for a whole story: ``{name}`` ``{kind}`` ``{he}`` ``{him}`` ``{his}`` of the hero, ``{fname}`` ``{fkind}``
  of the friend, whose pronouns always differ from the hero's, ``{elder}``, ``{gift}``, ``{place}`` and ``{at}``
  (the place with its preposition), ``{helper}``, and of the plot ``{thing}``, ``{trouble}``, ``{goal}``,
  ``{fixed}`` and ``{result}``;
* anew at each use: ``{hero}``, always a subject, and ``{friend}`` (a name, a pronoun, "the fox", "his friend"),
  and every other slot, which draws a phrase that the story has not used yet;
* often with nothing: ``{when}`` before a sentence and ``{how}`` after it give one sentence many lengths.

"a" is written everywhere; ``stories.py`` makes it "an" where it must be, and sets the capitals.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


GIRLS = _words(
    "Mia Lily Anna Zara Ella Ruby Nora Ivy Clara Luna Maya Rosie Tess Alma Daisy Freya Hana Lucy Nina Olive "
    "Poppy Stella Wren Yara Edith Greta Isla June"
)
BOYS = _words(
    "Leo Tom Sam Max Finn Oscar Ben Noah Theo Jack Hugo Milo Felix Eli Otto Luke Adam Kai Rory Jonas Emil "
    "Hans Ravi Omar Toby Arlo Ned Bruno"
)
ANIMALS = _words("fox rabbit bear mouse kitten puppy hedgehog otter duckling pony elephant mole raccoon penguin")
ELDERS = ("Grandma", "Grandpa", "Mother", "Father", "Aunt Rosa", "Aunt Sofia", "Uncle Ted", "Uncle Igor")
GIFTS = _lines(
    """
    blue scarf
    small lantern
    silver whistle
    wooden spoon
    warm hat
    striped umbrella
    leather bag
    old compass
    piece of chalk
    ball of string
    magnifying glass
    tin flute
    """
)

# Phrases that fit every theme, drawn anew at each use.
PHRASES = {
    "trait": _words(
        "kind brave curious quiet clever cheerful shy gentle careful playful patient young little bold "
        "thoughtful lively eager friendly happy"
    ),
    "virtue": _words("brave clever careful patient quiet bold quick gentle"),
    "weather": _words("sunny rainy windy foggy cloudy cold warm bright quiet grey golden misty calm stormy"),
    "daytime": ("morning", "afternoon", "evening", "day"),
    "fine": _words("strange wonderful tiny beautiful funny bright secret simple special lovely colourful odd"),
    "glad": (
        "glad",
        "proud",
        "happy",
        "pleased",
        "thankful",
        "cheerful",
        "full of joy",
        "calm",
        "relieved",
        "warm inside",
    ),
    "sad": (
        "sad",
        "worried",
        "lonely",
        "afraid",
        "tired",
        "nervous",
        "upset",
        "very small",
        "unsure",
        "ashamed",
        "unhappy",
    ),
    "moved": _words("walked ran hurried tiptoed skipped raced wandered marched"),
    "calmly": _words("slowly quietly calmly carefully gently quickly bravely eagerly"),
    "treat": _lines(
        """
        a pot of hot soup
        a plate of warm pancakes
        a big apple pie
        two cups of hot chocolate
        a bowl of sweet berries
        some honey cakes
        fresh bread with jam
        a tower of cookies
        """
    ),
    "advice": _lines(
        """
        be patient and look again
        start with something small
        the answer is closer than you think
        listen first and act later
        two friends are stronger than one
        never give up too soon
        use what you already have
        a little trick is better than a lot of force
        rest a while and then try again
        look at it from the other side
        """
    ),
    "lesson": _lines(
        """
        a good friend makes hard work easy
        small steps can solve big problems
        it is brave to ask for help
        patience is worth more than gold
        everyone is good at something
        a mistake is only the start of a new idea
        kindness always finds its way back
        it is better to share than to win
        even the smallest voice can be heard
        nothing is impossible when you work together
        being afraid is no reason to stop
        the best treasure is a true friend
        """
    ),
}

WHEN = _lines(
    """
    after a while,
    just then,
    a moment later,
    little by little,
    to their surprise,
    once more,
    before long,
    all at once,
    later that day,
    this time,
    """
)
HOW = _lines(
    """
    without a sound
    for a long time
    once again
    side by side
    with great care
    under the wide sky
    in the soft light
    with a smile
    again and again
    as quietly as possible
    like never before
    step by step
    with tired eyes
    until the sun went down
    one more time
    for the first time
    without any fear
    for a little while
    in the fading light
    with shining eyes
    just in time
    over and over
    """
)

# The sentences, phase by phase.
OPEN = _lines(
    """
    {name} was a {trait} {kind} who lived {at}.
    {name} the {trait} {kind} lived {at} with {elder}.
    Once there was a {trait} {kind} named {name}.
    Once there was a {trait} {kind} named {name} who loved to {act}.
    One {weather} {daytime}, {name} {moved} to {place}.
    On a {weather} {daytime}, {name} and {fname} went to {place}.
    {name} and {fname} were best friends who lived {at}.
    {name} loved to {act} {at}.
    Every {daytime}, {name} {acted} with {fname}.
    The {daytime} was {weather} when {name} came to {place}.
    Long ago, a {trait} {kind} named {name} lived {at}.
    There was nothing {name} liked more than to {act}.
    Early one {daytime}, {name} heard {sound} {at}.
    {elder} told {name} a {fine} story about the {thing}.
    {name} had a {fine} dream about the {thing}.
    When {name} woke up that {daytime}, {sight}.
    Everyone {at} knew {name} the {trait} {kind}.
    It was a {weather} {daytime}, and {name} wanted to {act}.
    {name} could not wait to {act} with {fname}.
    {fname} came to visit {name} one {weather} {daytime}.
    Two friends, {name} and {fname}, set out for {place}.
    {name} had lived {at} for as long as {he} could remember.
    {name} was the smallest {kind} {at}.
    {name} ran all the way to {place} to see the {thing}.
    A {trait} {kind} named {name} stood alone {at}.
    {name} sat {spot} and listened to {sound}.
    {fname} was waiting for {name} {at} with a {fine} plan.
    Nobody knew {place} better than {name} the {kind}.
    {weather} days were the best days for {name}.
    {elder} gave {name} a {gift} on a {weather} {daytime}.
    While {elder} was sleeping, {name} {moved} to {place}.
    {sight}, and {name} {moved} along with {fname}.
    """
)
FRIEND = _lines(
    """
    {his} best friend was a {trait} {fkind} named {fname}.
    {fname} was a {trait} {fkind}, and {name} was a {trait} {kind}.
    {name} the {kind} and {fname} the {fkind} did everything together.
    {fname} the {fkind} was always by {his} side.
    There was no better friend than {fname} the {fkind}.
    With {him} was {fname}, a {trait} {fkind}.
    {fname}, a {trait} {fkind}, was there too.
    {name} the {kind} never went anywhere without {fname} the {fkind}.
    You could always find {name} the {kind} with {fname} the {fkind}.
    A {trait} {fkind} named {fname} lived next door.
    """
)
INTRO = _lines(
    """
    {he} had a {gift} that {elder} had made.
    Together they often {acted} when the weather was {weather}.
    Most of all, {he} liked to sit {spot} and dream.
    {sight}, and the air smelled of {smell}.
    Everyone {at} was kind to {him} and {fname}.
    On most days, {sight}.
    {he} always carried a {gift}, just like {elder}.
    {elder} liked to say that {lesson}.
    {he} was {trait}, but sometimes {he} felt {sad}.
    {name} knew every corner of {place}.
    All the neighbours talked about the {thing}.
    They had heard a lot about the {thing}, but nobody had told them everything.
    All was well.
    It was a good life.
    """
)
INCITE = _lines(
    """
    But one {weather} {daytime}, {trouble}.
    Then {trouble}!
    Suddenly, {trouble}.
    That very {daytime}, {trouble}.
    Oh no! {trouble}.
    {name} stopped and stared, because {trouble}.
    {fname} came running with bad news. {trouble}.
    Before anyone could say a word, {trouble}.
    Nobody saw how it happened, but {trouble}.
    While they {acted}, {trouble}.
    There was a loud noise, and {trouble}.
    """
)
PLAN = _lines(
    """
    {hero} knew that somebody had to {goal}.
    {friend} asked, how can we {goal}?
    {hero} felt {sad}, but {he} did not cry.
    They looked {spot}, but there was nothing to see.
    {hero} looked at {friend} and felt {sad}{how}.
    {friend} wanted to help at once.
    Do not worry, said {friend}, we will {goal} together.
    {hero} took a deep breath and made a plan.
    It was not going to be easy.
    They {moved} on until they heard {sound}.
    The way was long, and {sight}.
    {hero} stayed close to {friend}{how}.
    {sight}, but {hero} hardly noticed.
    {elder} was too busy to help.
    I wish I could {goal}, whispered {name}.
    What should we do now?
    {hero} sat down {spot} and thought{how}.
    If we are {virtue}, said {name}, we can {goal}.
    {friend} shook with fear but did not run away.
    They had to {goal} before the end of the {daytime}.
    Where should we begin, {friend} wondered{how}.
    {hero} picked up the {gift} and nodded {calmly}.
    {when}{hero} and {friend} {moved} back to {place}{how}.
    {hero} made a list of {fine} ideas.
    {friend} agreed.
    There was no time to lose!
    {hero} and {friend} looked {spot}, and then {spot}, but found nothing.
    Nobody had ever tried to {goal} before, but {hero} was {virtue} and {friend} was {virtue}.
    """
)
TRY = _lines(
    """
    First, {hero} {tried}, but it did not help.
    They {tried}, but nothing happened.
    {friend} {tried} while {hero} waited {spot}.
    {when}they {tried}{how}.
    {hero} {tried}{how}, but it was not enough.
    Maybe this will work, said {friend}, and {tried}.
    {when}{friend} {tried}{how}.
    {when}{hero} {calmly} {tried}.
    {hero} {tried} as if it were a game.
    {friend} counted to three, and they {tried}.
    """
)
DOUBT = _lines(
    """
    They waited.
    It did not work.
    {hero} tried the {gift}, but that was no good.
    {friend} sighed and sat down {spot}.
    Do not give up, called {friend} {calmly}.
    {hero} nearly fell, but {friend} caught {him}{how}.
    Each time it seemed to work, something went wrong.
    Nothing changed, and {hero} felt {sad}.
    We are too small, said {friend}, we will never {goal}.
    {sight}, and still nothing happened.
    Oh dear!
    Nobody spoke.
    """
)
MEET = _lines(
    """
    {when}they met a {helper} {spot}.
    A {helper} was watching them from {place}.
    Then a {helper} came by and stopped beside them.
    {spot}, they found a {helper}.
    {friend} knew a {helper} who lived {spot}.
    A {helper} heard the noise and came to look.
    They asked a {helper} for help{how}.
    {when}a {helper} called out to them.
    Only a {helper} had seen what happened.
    {hero} bumped into a {helper} {spot}.
    """
)
ADVICE = _lines(
    """
    The {helper} smiled and said, {advice}.
    {advice}, said the {helper} {calmly}.
    {hero} told the {helper} everything{how}.
    {hero} asked the {helper}, can you help us {goal}?
    The {helper} thought{how} before answering.
    The {helper} listened and nodded {calmly}.
    My dear, said the {helper}, {advice}.
    The {helper} shared a {fine} secret with {him}.
    Remember, the {helper} whispered, {advice}.
    The {helper} laughed and gave them {treat}.
    Those words made {him} feel {glad}.
    {friend} thanked the {helper}{how}.
    When I was young, said the {helper}, I {acted} too.
    The {helper} knew that {lesson}.
    """
)
CLIMAX = _lines(
    """
    {when}{hero} had a {fine} idea, and they {fixed}.
    Working together, they {fixed}.
    {hero} and {friend} {fixed}.
    At last, they {fixed}!
    With {his} heart beating fast, {hero} {fixed}.
    Now I know what to do! {hero} and {friend} {fixed}.
    {hero} closed {his} eyes, counted to ten, and {fixed}.
    {friend} showed the way, and {hero} {fixed}{how}.
    {calmly}, the two friends {fixed}.
    It took a long time, but they {fixed}.
    With help from {elder}, they {fixed}.
    {hero} thought of {elder} and {fixed}.
    Ready? Then {hero} {fixed}.
    """
)
RESULT = _lines(
    """
    {when}{result}.
    {result}, and everybody cheered{how}.
    {result}, just as {hero} had hoped.
    It worked! {result}.
    {sight}, and {result}.
    They could hardly believe it when {result}.
    """
)
JOY = _lines(
    """
    {elder} came to look and was very {glad}.
    You did it, cried {elder}.
    What a {fine} end to a {weather} {daytime}!
    What a {daytime}!
    Everybody sang and danced{how}.
    {hero} blushed and hugged {friend}.
    {friend} jumped up and down{how}.
    {friend} laughed, and {hero} laughed too.
    Thank you, said {elder}, you are a true friend.
    {hero} had never felt so {glad} before.
    The neighbours came from far away to see the {thing}.
    Hooray!
    """
)
END = _lines(
    """
    That night, {hero} slept well and dreamed of the {thing}.
    From then on, they {acted} every {daytime}.
    {hero} learned that {lesson}.
    {elder} made {treat} for everyone.
    It was the best {daytime} of the year.
    {hero} and {friend} shared {treat}{how}.
    {hero} told the story to {elder}{how}.
    They walked home together{how}.
    And from that day on, {hero} was never {sad} again.
    {name} and {fname} stayed friends forever.
    {hero} felt {glad}, because {lesson}.
    Outside, {sight}.
    {friend} smiled, because {lesson}.
    Whenever {sight}, {name} thought of that {daytime}.
    {hero} hung the {gift} above {his} bed.
    People still tell the story of {name} and the {thing}.
    Tomorrow we will {act}, said {friend}.
    They were tired but {glad}, and they {acted} until bedtime.
    The end.
    Good night, {name}.
    """
)
