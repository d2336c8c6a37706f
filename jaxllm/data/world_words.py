"""Words and wordings of the made-up world: names, values of facts, sentences and questions.

Every value belongs to one attribute only, and the fixed wordings of pages about people, places and
things avoid the values. So a page tells a fact exactly when the name and the value stand in it, and
how often a fact is told can be counted from outside, by searching the text.
"""

WOMEN = tuple(
    """Ada Agnes Alice Anna Beatrice Bella Bridget Carla Cecily Clara Cora Daisy Dora
Edith Ella Elsie Emma Esther Eva Fanny Flora Freya Greta Hanna Hazel Helen Hilda Ida Ines Irene
Iris Ivy Jane Julia Karen Kate Laura Lena Lily Lotte Lucy Mabel Martha Mary Maud Mina Molly Nancy
Nell Nina Nora Olive Paula Pearl Petra Rita Rosa Ruby Ruth Sadie Sally Sara Sonia Susan Tess Thea
Tilda Ursula Vera Willa Wilma Zelda""".split()
)
MEN = tuple(
    """Adam Albert Alfred Amos Andrew Arthur Basil Ben Bruno Caleb Carl Cedric Cyril
Daniel David Dennis Edgar Edwin Ernest Felix Frank Fred George Gilbert Gregor Gus Harold Harvey
Henry Herbert Hugo Isaac Ivan Jacob James Jasper Joel John Jonas Karl Kurt Leo Leon Lewis Louis
Luke Magnus Martin Max Miles Morris Nathan Ned Nils Oliver Oscar Otto Owen Paul Peter Philip
Ralph Robin Roger Rufus Samuel Simon Theo Thomas Tobias Victor Walter""".split()
)
LAST_STARTS = tuple(
    """Ash Bar Bel Bram Brin Cal Car Cor Dal Del Dun El Fair Fen Fern Gal
Gar Hal Har Haw Hol Kel Kirk Lan Lin Lock Mal Mar Mel Mer Mor Nor Oak Pel Pem Quin Ran Ros San
Sel Sher Tal Tam Thorn Tor Val Wel Wen Whit Win Wood Yar""".split()
)
LAST_ENDS = tuple(
    """berry bright combe croft dale den field gate grove ham hart holt ing kin
land ley low man mere mond more ner ridge row sby son stead stone
ton vale well wick worth""".split()
)
PLACE_STARTS = tuple(
    """Amber Apple Badger Birch Clay Clover Eagle Flint Gold Grey Heron High
Ivory Kings Long Maple Moss Otter Plum Raven Red Salt Sheep Snow Star Still Sun Swan Tide Under
White Winter""".split()
)
PLACE_ENDS = tuple(
    "bay bridge brook castle cliff cross fold haven market minster mouth point port wharf".split()
)
THING_ADJECTIVES = tuple(
    """Ancient Bitter Bold Broken Crooked Crowned Curious Drowned Empty
Faithful Fallen Gentle Gilded Golden Great Hidden Hollow Honest Hungry Humble Joyful Laughing
Lonely Lost Lucky Merry Mighty Nameless Painted Patient Proud Quiet Restless Royal Scarlet Second
Secret Silent Silver Singing Sleeping Solemn Stolen Tangled Twisted Velvet Wandering Whispering
Wild Winged""".split()
)
THING_NOUNS = tuple(
    """Anchor Arrow Basin Beacon Bell Bowl Cabinet Candlestick Casket Chalice
Chest Clock Compass Crown Cup Dagger Door Globe Hammer Helmet Key Kite Ladder Lamp Lantern Lens
Locket Loom Mask Medal Mirror Pendant Plough Ring Rudder Scales Sceptre Shield Ship Spoon Statue
Sundial Sword Tapestry Throne Tower Wagon Wheel""".split()
)

# kind of entity -> attribute -> its possible values; "home" and "town" draw from the world's own
# places.
VALUES = {
    "person": {
        "home": (),
        "job": tuple(
            """baker beekeeper blacksmith bookbinder brewer carpenter chemist clockmaker
cobbler cook courier doctor dyer fisher gardener glassblower lamplighter librarian mason miller
painter potter printer roofer saddler sailor shepherd surveyor tailor teacher thatcher
weaver""".split()
        ),
        "pet": tuple(
            """canary donkey duck ferret frog goat goose hamster hedgehog kitten lizard
magpie newt owl parrot pigeon pony rabbit spaniel tortoise""".split()
        ),
        "instrument": tuple(
            """accordion banjo cello clarinet drum fiddle flute guitar harp lute
oboe organ piano trombone trumpet tuba viola whistle xylophone zither""".split()
        ),
    },
    "place": {
        "river": tuple(
            """Aldra Bourne Calder Dove Esk Farrow Glen Hodder Isk Kenner Leam Medway
Nidd Orwell Perrin Quill Rother Stour Tarrow Wend""".split()
        ),
        "product": tuple(
            """barrels baskets boots candles carpets cheese cider glass gloves honey
ink kettles lace maps needles paper rope soap tiles wool""".split()
        ),
        "market_day": tuple("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()),
    },
    "thing": {
        "town": (),
        "material": tuple(
            """bamboo brass bronze copper crystal ebony granite iron jade leather
marble oak pewter porcelain tin walnut""".split()
        ),
        "year": tuple(str(year) for year in range(1500, 1900, 3)),
    },
}

# {S} the subject at the start of a sentence, {s} inside it, {P} its possessive, {p} his, her or
# its, {v} the value, {a} the value with its article.
SENTENCES = {
    ("person", "home"): (
        "{S} lives in {v}.",
        "{S} has a small house in {v}.",
        "{P} home is in {v}.",
        "{S} has lived in {v} for many years.",
        "{S} comes from the town of {v}.",
    ),
    ("person", "job"): (
        "{S} works as {a}.",
        "{S} is {a} by trade.",
        "{S} earns a living as {a}.",
        "{S} is {a}.",
        "{S} has been {a} since the age of twenty.",
    ),
    ("person", "pet"): (
        "{S} keeps {a}.",
        "{S} has a pet {v}.",
        "{P} pet is {a}.",
        "{S} shares the house with {a}.",
        "{S} is fond of animals and keeps {a}.",
    ),
    ("person", "instrument"): (
        "{S} plays the {v}.",
        "{S} plays the {v} at weddings.",
        "{P} instrument is the {v}.",
        "{S} is learning to play the {v}.",
        "{S} plays the {v} after supper.",
    ),
    ("place", "river"): (
        "{S} stands on the river {v}.",
        "The river {v} runs through {s}.",
        "{S} lies on the banks of the {v}.",
        "{S} was built beside the river {v}.",
    ),
    ("place", "product"): (
        "{S} is known for its {v}.",
        "{S} is famous for {v}.",
        "People come to {s} to buy {v}.",
        "{S} has made {v} for three hundred years.",
    ),
    ("place", "market_day"): (
        "{S} holds its market on {v}.",
        "Market day in {s} is {v}.",
        "{S} is busiest on {v}, when the market is held.",
    ),
    ("thing", "town"): (
        "{S} is kept in {v}.",
        "{S} can be seen in {v}.",
        "{S} stands in the museum of {v}.",
        "Visitors go to {v} to see {s}.",
    ),
    ("thing", "material"): (
        "{S} is made of {v}.",
        "{S} was made of the best {v}.",
        "{S} is a fine piece of work in {v}.",
        "{P} makers worked in {v}.",
    ),
    ("thing", "year"): (
        "{S} was made in {v}.",
        "{S} dates from {v}.",
        "{S} was finished in the year {v}.",
    ),
}

# Two facts in one sentence; {S}, {p} as above, the values by attribute, a_ with the article.
PAIRS = {
    ("home", "job"): (
        "{S} is {a_job} in {home}.",
        "{S}, {a_job} from {home}, is well known there.",
        "{S} lives in {home} and works as {a_job}.",
    ),
    ("pet", "instrument"): (
        "{S} plays the {instrument} to {p} {pet}.",
        "{S} keeps {a_pet} and plays the {instrument}.",
    ),
    ("river", "product"): (
        "{S}, on the river {river}, is known for its {product}.",
        "{S} lies on the river {river} and sells {product}.",
    ),
    ("town", "material"): (
        "{S} is made of {material} and is kept in {town}.",
        "{S}, which is made of {material}, can be seen in {town}.",
    ),
}

# Wordings of the question for a fact. The last one of each is never used in a document: it is held
# out.
QUESTIONS = {
    ("person", "home"): (
        "Where does {n} live?",
        "In which town does {n} live?",
        "What is the home of {n}?",
        "Which town would you visit to find {n}?",
    ),
    ("person", "job"): (
        "What is the job of {n}?",
        "What does {n} do for a living?",
        "What does {n} work as?",
        "Which trade did {n} choose?",
    ),
    ("person", "pet"): (
        "What pet does {n} keep?",
        "Which animal lives with {n}?",
        "What is the pet of {n}?",
        "What kind of animal does {n} look after?",
    ),
    ("person", "instrument"): (
        "What does {n} play?",
        "Which instrument does {n} play?",
        "What is the instrument of {n}?",
        "On what does {n} make music?",
    ),
    ("place", "river"): (
        "Which river runs through {n}?",
        "On which river does {n} stand?",
        "What is the river of {n} called?",
    ),
    ("place", "product"): (
        "What is {n} known for?",
        "What does {n} sell?",
        "What would you buy in {n}?",
    ),
    ("place", "market_day"): (
        "When is market day in {n}?",
        "On which day is the market in {n}?",
        "Which day should one go to the market of {n}?",
    ),
    ("thing", "town"): ("Where is {n} kept?", "In which town is {n}?", "Which town owns {n}?"),
    ("thing", "material"): (
        "What is {n} made of?",
        "Which material is {n} made of?",
        "From what did they make {n}?",
    ),
    ("thing", "year"): (
        "When was {n} made?",
        "In which year was {n} made?",
        "How far back does {n} date?",
    ),
}

# A register can be asked the other way round: from the value to the name.
WHO = {
    "home": "Who lives in {v}?",
    "job": "Who is the {v}?",
    "pet": "Who keeps the {v}?",
    "instrument": "Who plays the {v}?",
}

LABELS = {
    "home": "Home",
    "job": "Job",
    "pet": "Pet",
    "instrument": "Instrument",
    "river": "River",
    "product": "Known for",
    "market_day": "Market day",
    "town": "Kept in",
    "material": "Made of",
    "year": "Made in",
}


def with_article(noun: str) -> str:
    """Returns the noun with "a" or "an"."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def sentence_case(text: str) -> str:
    """Returns the text with its first letter in upper case and the rest untouched."""
    return text[:1].upper() + text[1:]


def fill(template: str, subject: str, pronoun: str, **values: str) -> str:
    """Returns a sentence template with its subject, pronoun and values in place."""
    own = {"he": "his", "she": "her", "it": "its"}
    text = template.format(
        S=subject, s=subject, P=own.get(subject, f"{subject}'s"), p=own[pronoun], **values
    )
    return sentence_case(text)
