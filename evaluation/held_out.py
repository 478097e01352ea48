"""What bundles are judged on where nothing else is asked for: our own, and in no training data."""

from pathlib import Path

from poss_export.prompts import as_prompts

HELD_OUT = Path(__file__).parent / "heldout.txt"

PROMPTS = tuple(
    as_prompts(
        (
            "Why do leaves change their colour in autumn?",
            "Write a short poem about a lighthouse.",
            "Explain to a child what a computer program is.",
            "List five things to pack for a day in the mountains.",
            "A train leaves at 9:40 and arrives at 13:15. How long is the journey? Explain each step.",
            "Write a Python function that returns the larger of two numbers.",
            "What is the difference between weather and climate?",
            "Translate into French: Good morning, how are you today?",
        )
    )
)
