"""Prompts that every build can learn from: short, of many kinds, and in no test or benchmark."""

from poss_export.runtime.bundle import Bundle

# What is asked for is what people ask for: to explain, count, code, rewrite, extract, translate, tell.
SHORT_PROMPTS = (
    "What does a heart do, and why does it beat faster when we run?",
    "A baker sells 14 loaves at 3 euros each and 9 rolls at 50 cents each. How much does he earn in all?",
    "Write a Python function that counts how often each word occurs in a string.",
    "Rewrite this politely: Send me the report now, you are late again.",
    "Return JSON with the keys name, city and age: Maria Lopez is 41 years old and lives in Quito.",
    "Translate into Spanish: The library opens at nine and closes at six.",
    "Tell a story about a fox that is afraid of the dark.",
    "Summarise in one sentence: Bees visit flowers for nectar. Pollen sticks to their legs, and they carry "
    "it to the next flower, so that plants can make seeds. Without bees many fruits would not grow.",
    "List three advantages and three drawbacks of working from home.",
    "How do I plant a tomato? Give numbered steps.",
    "Which is heavier, a kilogram of iron or a kilogram of feathers? Explain.",
    "Write a short letter that thanks a neighbour for watering the plants.",
)


def encode_short_prompts(bundle: Bundle) -> list[list[int]]:
    """Return the ids of each prompt, its end where it would take more than half of the capacity."""
    most = max(bundle.manifest.capacity // 2, 1)
    return [bundle.encode(prompt, raw=not bundle.chats)[-most:] for prompt in SHORT_PROMPTS]
