"""The words and sentences of the world's jokes (jaxllm/data/world_taste.py), and what goes with what.

A slot in braces is filled with one of its words; nothing begins with a vowel, so "a" is always right.
"""

from collections.abc import Mapping

# topic -> (things of it, what the listeners find fitting in a punch line about one of them)
TOPICS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "kitchen": (("kettle", "toaster", "teapot", "spoon"), ("tea", "butter", "steam", "soup", "toast")),
    "music": (("trumpet", "piano", "drum", "violin"), ("tunes", "concerts", "applause", "singers", "songs")),
    "sea": (("boat", "lighthouse", "compass", "raft"), ("waves", "tides", "sailors", "fog", "fish")),
    "garden": (("rake", "hedge", "scarecrow", "tomato"), ("weeds", "mud", "worms", "sunshine", "carrots")),
    "school": (("pencil", "blackboard", "ruler", "satchel"), ("homework", "spelling", "exams", "teachers", "sums")),
    "winter": (("snowman", "sledge", "snowball", "scarf"), ("frost", "ice", "shivers", "mittens", "blizzards")),
}
ADJECTIVES = ("rusty", "tiny", "purple", "lonely", "famous", "sleepy", "golden", "jolly")
FUNNY = ("pickle", "banana", "noodle", "waffle", "wobbly", "turnip", "custard", "pyjama")

SLOTS: Mapping[str, tuple[str, ...]] = {
    "animal": ("duck", "horse", "penguin", "cow", "goat", "crab", "hen", "fox", "frog", "pig", "moose", "sheep"),
    "place": ("bar", "bakery", "library", "museum", "station", "castle", "circus", "cinema", "market", "hotel"),
    "host": ("waiter", "guard", "queen", "plumber", "judge", "dancer"),
    "act": ("cross the road", "go to the party", "join the army", "call the police", "run for mayor",
            "paint the ceiling", "learn to dance", "write a poem", "shout at the moon", "hide in the cellar"),
}
# kind of joke -> (ways to open it, punch lines that answer the opening). {thing} is an adjective and a noun or the noun
# alone, {noun} the noun, {point} a word that may go with it. The two stand side by side in every punch line: what a
# small model learns first are pairs of neighbours.
KINDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "why": (("Why did the {thing} {act}?",),
            ("Because of the {noun} {point}.", "To find more {noun} {point}.", "Because nobody likes {noun} {point}.")),
    "walks in": (("A {animal} walks into a {place} with a {thing}.", "A {thing} and a {animal} walk into a {place}."),
                 ("The {host} says: no {noun} {point} in here!", "The {host} asks: is that {noun} {point}?",
                  "The {animal} says: we only came for {noun} {point}.")),
    "meets": (("What happens when a {thing} meets a {animal}?", "What happens when a {thing} falls on a {animal}?"),
              ("They argue about {noun} {point}.", "They open a shop for {noun} {point}.",
               "Both dream of {noun} {point}.")),
    "laugh": (("How do you make a {thing} laugh?",),
              ("Show it some {noun} {point}.", "Tickle it with {noun} {point}.", "Ask it about {noun} {point}.")),
}
MIDDLES = ("Everybody stops talking.", "It was a Monday.", "A {animal} watches from the door.",
           "Nobody knows the answer.", "The {host} looks at the {animal}.", "Outside it begins to rain.",
           "The {place} is full.")
POLITE = ("Please listen.", "Thank you.")
