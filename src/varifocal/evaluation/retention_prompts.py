"""Plain instructions that retention asks where no others are at hand.

Written for this package, by topic of everyday use; they have no right answer, since only the base
model's own answers are compared with.
"""

from __future__ import annotations

PROMPTS = (
    "Explain in two sentences why the sky is blue.",
    "Write a short poem about rain.",
    "List three uses of an old newspaper.",
    "What is the capital of France, and on which river does it lie?",
    "Give me a recipe for pancakes.",
    "How do I remove a coffee stain from a shirt?",
    "Write a polite email that asks for a day off.",
    "What is the difference between a virus and a bacterium?",
    "Name five animals that sleep through the winter.",
    "Describe how bread is made.",
    "Translate into French: Good morning, how are you?",
    "Write a Python function that adds two numbers.",
    "What should I pack for a week by the sea?",
    "Explain gravity to a child of six.",
    "Give two reasons to learn a second language.",
    "Put these words in alphabetical order: pear, apple, grape, banana.",
    "What is 12 times 11? Show your steps.",
    "Tell a story of four sentences about a lost key.",
    "Write a headline for an article about a new park.",
    "How does a bicycle stay upright?",
    "Suggest three names for a small bookshop.",
    "What does 'a piece of cake' mean as a saying?",
    "Correct this sentence: She go to school yesterday.",
    "Make this sentence more formal: Thanks a lot for the help.",
    "Which planets of our solar system have rings?",
    "Explain what an interest rate is.",
    "How can I fall asleep more easily?",
    "Write one sentence that uses the word 'although'.",
    "What are the primary colours?",
    "Give an example of a metaphor and explain it.",
    "Describe a walk through a forest in autumn.",
    "How many minutes are there in a day?",
    "What is a good way to learn a poem by heart?",
    "Name three inventions of the nineteenth century.",
    "Why do leaves fall in autumn?",
    "Write a thank-you note to a neighbour who watered the plants.",
    "What is the opposite of 'generous'?",
    "Explain how rain forms.",
    "Suggest a plan for a Saturday with two children.",
    "What is photosynthesis?",
    "Write three questions for an interview with a baker.",
    "Sum up in one sentence: The meeting is on Tuesday, since the room was full.",
    "How do I boil an egg?",
    "What makes a good friend?",
    "Convert 5 kilometres into metres.",
    "Write a slogan for a bicycle repair shop.",
    "What happened first, the invention of the telephone or of the telegraph?",
    "Describe the taste of a lemon to somebody who has never had one.",
)
"""One user's turn each."""
