"""Plain language that comes with Varifocal: instructions, and prose that no recipe trains on."""

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

PROSE = (
    "The ferry left the harbour a little after seven, when the fog had begun to lift. Most of "
    "the passengers stayed below, where it was warm and smelled of coffee, but two children ran "
    "up to the deck to watch the town grow small. Their father followed them slowly, holding "
    "his hat. He had made this crossing every summer of his life, and he still could not say at "
    "which moment the houses stopped being houses and became a line of white along the shore.",
    "Bread needs time more than it needs work. Flour, water, salt and a little yeast are mixed "
    "in the evening and left alone until the morning. During the night the dough doubles, and "
    "small bubbles appear below its skin. It is then folded, shaped into a round loaf and left "
    "to rise again while the oven grows hot. After forty minutes the crust is brown, and the "
    "loaf sounds hollow when somebody knocks on its base.",
    "When the library moved into the old railway station, people complained that it would be "
    "too far from the market. Within a year more of them came than ever before. The waiting "
    "room became a place for reading newspapers, the ticket office lends out maps and music, "
    "and on the platform, below the glass roof, there are long tables where students work until "
    "the lamps are switched off at ten.",
    "A river does not flow at the same speed everywhere. Near its bed and its banks the water "
    "is slowed down by stones and roots, while in the middle, just below the surface, it runs "
    "fastest. On the outside of a bend it cuts into the bank and carries earth away; on the "
    "inside it drops what it has carried, so that the bend grows wider from one century to the "
    "next.",
    "My grandmother kept her letters in a tin that had once held biscuits. She never told us "
    "who had written them, and we never asked. After she died we found that most of them were "
    "bills, folded with care and tied with a ribbon, and among them one short note from a man "
    "none of us had heard of, thanking her for the loan of an umbrella.",
    "The committee met on a Thursday to discuss the new bus line. Some members wanted it to "
    "pass the hospital, others thought that the school was more important. After two hours the "
    "chair proposed that it should pass both, which would add six minutes to the journey. "
    "Everybody agreed that six minutes were too many, and the decision was put off until the "
    "spring.",
    "Sheep are better at remembering faces than most people believe. In one experiment they "
    "learned to tell pictures of other sheep apart, and they still knew them two years later. "
    "They also preferred a calm face to a frightened one. Farmers were less surprised than the "
    "scientists: anybody who has moved a flock knows which animals will stop and look back.",
    "To repair a bicycle tyre, take the wheel out of the frame and let out the remaining air. "
    "Lift one side of the tyre over the rim with two spoons, beginning opposite the valve, and "
    "pull out the tube. Pump it up and hold it under water: bubbles show where the hole is. Dry "
    "the place, roughen it, spread a thin layer of glue and wait for five minutes before you "
    "press on a patch.",
    "The winter of that year was so mild that the lake did not freeze. The ice house stayed "
    "empty, and in June the fishermen had nothing to pack their catch in. Some of them sold it "
    "on the quay for whatever they were offered. One began to smoke his fish over beech wood "
    "instead, and by the end of the summer he had more customers than he could serve.",
    "Few inventions have changed the kitchen as much as the clock. Before there was one on the "
    "wall, cooks measured time by songs and prayers, and a recipe might ask for an egg to be "
    "boiled while a psalm was said three times. It worked well enough, as long as nobody was in "
    "a hurry and everybody sang at the same speed.",
    "From the top of the tower you can see where the old city ended. The streets inside the "
    "former wall are narrow and bend without a reason; beyond it they are straight and lined "
    "with trees. In the east the chimneys of the brick works still stand, although no smoke has "
    "come from them for thirty years. Storks nest on the tallest one and return to it each "
    "March.",
    "She had decided to sell the piano, but each time somebody came to look at it she found a "
    "reason to send them away. One buyer had cold hands, another wanted to paint it white. In "
    "the end she gave it to the neighbour's daughter, who could play only one tune, on the "
    "condition that the window should stay open while she practised.",
    "Salt was once so costly that soldiers guarded the roads on which it travelled. It came "
    "from the sea, where the sun dried it in shallow ponds, or out of the earth, where miners "
    "cut it in grey blocks. Without it there was no way to keep meat and fish through the "
    "winter, and a town that owned a salt well could build a cathedral.",
    "The train was late again, and the people on the platform had begun to talk to one another. "
    "A woman with a cello explained that it needed a ticket of its own. A boy counted the "
    "pigeons, lost his place and started from the beginning. When the train came at last, "
    "nobody seemed to be in a hurry to get in.",
    "Moss has no roots. It drinks through its leaves, whenever there is rain or mist, and when "
    "the weather is dry it curls up and waits. A cushion of moss that has lain in a drawer for "
    "years may turn green within an hour of being wetted. On bare rock it is often the first "
    "plant to arrive, and what it leaves becomes the soil for those that follow.",
    "Good instructions begin with what the reader already has in front of them. They name one "
    "step at a time, in the order in which it is done, and they say what should be seen when it "
    "has worked. The best of them also say what to do when it has not, since nobody reads "
    "instructions while everything goes well.",
)
"""A paragraph each; written for this purpose."""
