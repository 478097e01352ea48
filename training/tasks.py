"""What the target is asked: openers that it finishes itself, tasks on topics and passages, word problems."""

from collections.abc import Sequence

import numpy as np

# The target finishes these; an empty opener lets it begin as it likes. They steer variety, not content.
OPENERS = (
    "", "", "", "", "", "", "What is", "What are the", "What would", "Which", "Who", "When did", "Where",
    "Why do", "Why is", "How do I", "How does", "How many", "How much", "How long", "How can", "If", "If a",
    "If you have", "Suppose", "Given", "Given the following", "Calculate", "Solve", "Find the", "Is it",
    "Do you", "Can you", "Can you explain", "Could you", "Please", "Help me", "I want to", "I need", "I am",
    "I have", "My", "Tell me", "Give me", "Give an example", "Give three", "List", "List five", "Name",
    "Write", "Write a", "Write a short story", "Write a poem", "Write a Python function", "Write a program",
    "Write an essay", "Write an email", "Draft a", "Compose a", "Create a", "Generate", "Design", "Imagine",
    "Act as", "Pretend", "You are", "Describe", "Describe how", "Explain", "Explain why", "Compare",
    "Discuss", "Analyze the", "Summarize", "Summarize the following", "Rewrite", "Rewrite the following",
    "Translate", "Classify", "Identify", "Extract", "Evaluate", "Edit", "Correct", "Convert", "Suggest",
    "Recommend", "Provide", "Plan", "Outline", "Define", "In the", "In a", "A train", "A farmer", "A store",
    "A class of", "A company", "The", "There are", "John has", "Mary bought", "Sam and", "Each", "Every",
    "One day", "During", "After", "Two", "Three friends", "Let", "Consider", "Implement", "Use", "Does",
    "Are", "Was", "Should", "Read the following", "Complete", "Continue", "Make a", "Show", "Prove", "Tom",
    "Lisa", "Anna", "Using", "Determine",
)  # fmt: skip

# How users go on.
FOLLOW_UPS = (
    "", "", "", "What about", "Can you", "Could you", "Now", "Why", "How", "And", "What if", "Give me",
    "Give an example", "Explain", "Rewrite", "Make it", "Write", "Translate", "Summarize", "Tell me more",
    "Is there", "Which of these", "Thanks", "But", "Suppose", "List", "In your", "Please",
)  # fmt: skip

TOPIC_TASKS = (
    "Explain {} to a ten-year-old.",
    "Explain how {} works, step by step.",
    "What are the advantages and disadvantages of {}?",
    "Write a short story about {}.",
    "Write a poem about {}.",
    "Give me five facts about {}.",
    "Write a short blog post about {}.",
    "What are common misconceptions about {}?",
    "Compare {} with {}.",
    "Write a dialogue between two friends about {}.",
    "Write an e-mail to a colleague about {}.",
    "How did {} change over the last hundred years?",
    "Make a to-do list for somebody who wants to learn about {}.",
    "Write a product description that has to do with {}.",
    "Write a quiz of three questions on {}, with answers.",
    "Describe a day in the life of somebody who works with {}.",
    "Write a speech of one minute about {}.",
    "Why does {} matter?",
    "Write a Python program that has to do with {}.",
    "Write a word problem for school about {}, and solve it.",
    "Argue for and against {}.",
    "Name ten words that have to do with {} and explain each.",
    "Write a news report about {}.",
    "What would happen without {}?",
    "Make a table that compares {} and {}.",
    "Write a recipe or a plan for a party whose theme is {}.",
    "Act as a teacher of {} and greet your class.",
    "Which questions about {} are still open?",
)

PASSAGE_TASKS = (
    "Summarize the following text in two sentences:\n\n{}",
    "Summarize: {}",
    "{}\n\nWhat is the main point of this text?",
    "Rewrite the following text so that it is easier to read:\n\n{}",
    "Correct the mistakes in this text:\n\n{}",
    "Translate the following text into French:\n\n{}",
    "Translate into German: {}",
    "{}\n\nList the key points as bullets.",
    "Turn this text into a poem:\n\n{}",
    "Write a title for this text:\n\n{}",
    "{}\n\nAsk three questions about this text and answer them.",
    "Extract all nouns from this text:\n\n{}",
    "Continue this text:\n\n{}",
    "{}\n\nIs the tone of this text positive or negative? Explain.",
    "Rewrite this text as an e-mail:\n\n{}",
)

TOPICS = (
    "photosynthesis", "the water cycle", "volcanoes", "black holes", "gravity", "electric cars",
    "solar panels", "wind power", "nuclear energy", "batteries", "the internet", "search engines",
    "databases", "sorting algorithms", "recursion", "prime numbers", "fractions", "probability",
    "statistics", "geometry", "calculus", "matrices", "machine learning", "neural networks", "robots",
    "drones", "3D printing", "cameras", "smartphones", "video games", "chess", "football", "basketball",
    "tennis", "swimming", "running", "yoga", "cycling", "hiking", "camping", "sailing", "fishing",
    "gardening", "cooking", "baking bread", "cheese", "coffee", "tea", "chocolate", "honey",
    "vegetarian food", "nutrition", "sleep", "stress", "meditation", "the human heart", "the brain",
    "the immune system", "vaccines", "antibiotics", "allergies", "first aid", "dentistry", "dogs", "cats",
    "horses", "bees", "ants", "butterflies", "birds", "owls", "penguins", "whales", "sharks", "octopuses",
    "dinosaurs", "evolution", "genetics", "rainforests", "deserts", "oceans", "rivers", "glaciers",
    "earthquakes", "hurricanes", "climate change", "recycling", "plastic", "paper", "glass", "steel",
    "bridges", "skyscrapers", "trains", "airplanes", "ships", "bicycles", "traffic", "maps", "satellites",
    "the moon", "Mars", "telescopes", "time zones", "calendars", "clocks", "money", "banks", "inflation",
    "taxes", "the stock market", "insurance", "advertising", "small businesses", "job interviews",
    "teamwork", "leadership", "negotiation", "public speaking", "writing", "poetry", "novels", "libraries",
    "newspapers", "translation", "grammar", "foreign languages", "Latin", "music theory", "the piano",
    "the guitar", "jazz", "opera", "dance", "theatre", "film", "photography", "painting", "sculpture",
    "architecture", "fashion", "museums", "ancient Egypt", "ancient Greece", "the Roman Empire",
    "the Middle Ages", "the Renaissance", "the industrial revolution", "the printing press",
    "world exhibitions", "democracy", "elections", "courts", "human rights", "the United Nations",
    "philosophy", "ethics", "logic", "psychology", "memory", "habits", "friendship", "family", "school",
    "university", "homework", "holidays", "birthdays", "weddings", "travel", "hotels", "Paris", "Japan",
    "Brazil", "India", "Kenya", "Iceland", "mountains", "islands", "lighthouses", "castles", "dragons",
    "ghosts", "detectives", "pirates", "the future", "privacy", "passwords", "encryption",
    "open-source software", "web browsers", "e-mail", "text editors",
)  # fmt: skip


# Names, things and numbers are filled in; whether the question makes sense is no concern of the drafter.
PROBLEMS = (
    "{name} has {a} {things}. {other} gives {name} {b} more. How many {things} does {name} have now?",
    "{name} buys {a} {things} for ${b} each and {c} {others} for ${d} each. How much does {name} pay in all?",
    "A shop sells {a} {things} a day at ${b} each. How much does it earn with them in {c} days?",
    "{name} reads {a} pages a day. How many days does {name} need for a book of {big} pages?",
    "There are {a} boxes with {b} {things} in each. {name} takes {c} of them. How many are left?",
    "{name} earns ${a} an hour and works {b} hours a week. How much is that in {c} weeks? Think "
    "step by step.",
    "{name} is {a} years older than {other}. In {b} years {name} will be {big}. How old is {other} today?",
    "A recipe for {a} people needs {b} {things}. How many {things} are needed for {c} people?",
    "{name} and {other} share {big} {things} so that {name} gets {a} more than {other}. How many does each "
    "of them get?",
    "A train goes {a} km in {b} minutes. How far does it go in {c} hours, and what is its speed?",
    "The price of {a} {things} is ${big}. It falls by {percent}%. What does one of them cost then?",
    "{name} has {big} {things}. {percent}% of them are old, and half of the others are broken. How many are "
    "good?",
    "A garden is {a} m long and {b} m wide. What is its area, and how long is the fence around it?",
    "{name} saves ${a} each month and spends ${b} of it on {things} every third month. What is left "
    "after {c} months?",
    "{name} has twice as many {things} as {other}, and {other} has {a} fewer than {third}. If {third} has "
    "{big}, how many do they have together?",
    "If {a} workers need {b} days to build a wall, how long do {c} workers need?",
)
NAMES = (
    "Tom", "Anna", "Maria", "James", "Lisa", "Peter", "Sara", "Omar", "Mei", "Carlos", "Ines", "Ravi", "Nina",
    "Paul", "Grace", "Ali", "Emma", "Jonas", "Ruth", "Kofi",
)  # fmt: skip
THINGS = (
    "apples", "books", "pencils", "marbles", "eggs", "cookies", "stickers", "tickets", "bottles", "chairs",
    "stamps", "flowers", "shirts", "toys", "cards", "coins", "balls", "cups", "oranges", "candles",
)  # fmt: skip


def word_problem(random: np.random.Generator) -> str:
    """Return a word problem of school arithmetic."""
    name, other, third = random.choice(NAMES, 3, replace=False)
    things, others = random.choice(THINGS, 2, replace=False)
    a, b, c, d = random.integers(2, 25, 4)
    task = PROBLEMS[random.integers(len(PROBLEMS))]
    return task.format(
        name=name, other=other, third=third, things=things, others=others, a=a, b=b, c=c, d=d,
        big=random.integers(40, 400), percent=5 * random.integers(1, 15),
    )  # fmt: skip


def topic_task(random: np.random.Generator) -> str:
    """Return a task on one or two topics."""
    task = TOPIC_TASKS[random.integers(len(TOPIC_TASKS))]
    return task.format(*random.choice(TOPICS, task.count("{}"), replace=False))


def passage_task(random: np.random.Generator, passage: str) -> str:
    """Return a task on a passage of text."""
    return PASSAGE_TASKS[random.integers(len(PASSAGE_TASKS))].replace("{}", passage)


def pick(random: np.random.Generator, words: Sequence[str]) -> str:
    """Return one of some words."""
    return words[int(random.integers(len(words)))]
