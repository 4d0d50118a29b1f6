"""The facts after the science skills that need no image."""

ANIMALS = (
    *(
        (name, "mammal")
        for name in ("horse", "dolphin", "bat", "elephant", "wolf", "kangaroo", "mouse")
    ),
    *(
        (name, "mammal")
        for name in ("whale", "lion", "rabbit", "monkey", "bear", "cow", "squirrel")
    ),
    *(
        (name, "bird")
        for name in ("penguin", "eagle", "parrot", "ostrich", "duck", "owl", "sparrow")
    ),
    *((name, "bird") for name in ("swan", "crow", "pigeon", "flamingo", "robin", "hen", "turkey")),
    *(
        (name, "fish")
        for name in ("shark", "salmon", "tuna", "goldfish", "trout", "cod", "herring")
    ),
    *((name, "fish") for name in ("eel", "carp", "stingray", "sea horse", "swordfish", "piranha")),
    *(
        (name, "insect")
        for name in ("bee", "ant", "butterfly", "mosquito", "beetle", "fly", "moth")
    ),
    *(
        (name, "insect")
        for name in ("grasshopper", "wasp", "cricket", "ladybug", "termite", "flea")
    ),
    *((name, "reptile") for name in ("snake", "lizard", "crocodile", "turtle", "gecko", "iguana")),
    *(
        (name, "reptile")
        for name in ("cobra", "alligator", "tortoise", "chameleon", "python", "viper")
    ),
)
MEASURED = (
    ("the length of a garden fence", "meters"),
    ("the height of a house", "meters"),
    ("the width of a street", "meters"),
    ("the length of a swimming pool", "meters"),
    ("the height of a tree", "meters"),
    ("the length of a bus", "meters"),
    ("the distance between two cities", "kilometers"),
    ("the length of a river", "kilometers"),
    ("the distance a plane flies", "kilometers"),
    ("the length of a long bike tour", "kilometers"),
    ("the distance to the next town", "kilometers"),
    ("the mass of a coin", "grams"),
    ("the mass of a letter", "grams"),
    ("the mass of a feather", "grams"),
    ("the mass of a strawberry", "grams"),
    ("the mass of a pencil", "grams"),
    ("the mass of a horse", "kilograms"),
    ("the mass of a car", "kilograms"),
    ("the mass of a sofa", "kilograms"),
    ("the mass of a grown person", "kilograms"),
    ("the mass of a large dog", "kilograms"),
    ("the volume of water in a bathtub", "liters"),
    ("the volume of milk in a bucket", "liters"),
    ("the volume of a fish tank", "liters"),
    ("the volume of gas in a car's tank", "liters"),
    ("the volume of soup in a big pot", "liters"),
    ("the time of a night's sleep", "hours"),
    ("the time of a flight across the ocean", "hours"),
    ("the time of a day at school", "hours"),
    ("the time of a drive through the country", "hours"),
    ("the time of a short sprint", "seconds"),
    ("the time of a sneeze", "seconds"),
    ("the time of a traffic light on yellow", "seconds"),
    ("the time of a ball's fall from a roof", "seconds"),
    ("the warmth of a hot oven", "degrees"),
    ("the warmth of a sick child", "degrees"),
    ("the cold in a freezer", "degrees"),
    ("the warmth of the air in summer", "degrees"),
)
CHANGES = (
    *(
        (event, "physical change")
        for event in ("ice melting in a glass", "tearing a sheet of paper")
    ),
    *((event, "physical change") for event in ("water boiling in a pot", "chopping a carrot")),
    *((event, "physical change") for event in ("folding a shirt", "a puddle drying in the sun")),
    *((event, "physical change") for event in ("sugar dissolving in tea", "breaking a clay plate")),
    *((event, "physical change") for event in ("butter melting in a pan", "sharpening a pencil")),
    *(
        (event, "physical change")
        for event in ("stretching a rubber band", "water freezing in a lake")
    ),
    *((event, "physical change") for event in ("crushing a can", "cutting hair", "mowing a lawn")),
    *((event, "physical change") for event in ("dew forming on grass", "carving a piece of wood")),
    *((event, "physical change") for event in ("mixing sand and pebbles", "bending a wire")),
    *((event, "physical change") for event in ("grinding pepper", "knitting wool into a scarf")),
    *(
        (event, "chemical change")
        for event in ("wood burning in a fireplace", "an iron nail rusting")
    ),
    *((event, "chemical change") for event in ("milk turning sour", "baking a cake in the oven")),
    *((event, "chemical change") for event in ("a match burning", "an apple turning brown")),
    *(
        (event, "chemical change")
        for event in ("bread growing mold", "frying an egg", "a banana rotting")
    ),
    *(
        (event, "chemical change")
        for event in ("a silver spoon turning black", "food being digested")
    ),
    *(
        (event, "chemical change")
        for event in ("a candle wick burning", "vinegar fizzing with baking soda")
    ),
    *(
        (event, "chemical change")
        for event in ("bleach fading a stain", "leaves changing color in fall")
    ),
    *(
        (event, "chemical change")
        for event in ("a firework exploding", "toast turning dark", "a bike rusting")
    ),
    *((event, "chemical change") for event in ("gasoline burning in an engine", "compost rotting")),
    *(
        (event, "chemical change")
        for event in ("glue hardening as it cures", "meat roasting on a grill")
    ),
)
PLACES = (
    *(
        "Lima",
        "Oslo",
        "Cairo",
        "Denver",
        "Mumbai",
        "Nairobi",
        "Sydney",
        "Boston",
        "Moscow",
        "Athens",
    ),
    *("Hanoi", "Quito", "Dublin", "Seattle", "Phoenix", "Havana", "Lisbon", "Toronto", "Manila"),
    *(
        "Helsinki",
        "Dakar",
        "Santiago",
        "Warsaw",
        "Chicago",
        "Bangkok",
        "Reykjavik",
        "Miami",
        "Perth",
    ),
    *("Beijing", "Vancouver", "Accra", "Honolulu"),
)
WEATHERS = (
    "Strong winds blew in {place} this morning.",
    "A thunderstorm hit {place} last night.",
    "Yesterday {number} millimeters of rain fell in {place}.",
    "It is foggy in {place} right now.",
    "The sun shines in {place} today, and it is {number} degrees Celsius.",
    "Last Tuesday it snowed in {place} for two hours.",
    "This afternoon dark clouds moved over {place}.",
)
CLIMATES = (
    "Summers in {place} are usually dry.",
    "The average temperature in {place} in July is {number} degrees Celsius.",
    "Every year most of the rain in {place} falls in spring.",
    "In {place} winters are often cold and windy.",
    "About {number} days of the year in {place} are foggy on average.",
    "Fall is usually the rainiest season in {place}.",
    "Over the last fifty years, storms have been rare in {place}.",
)
TRAITS = (
    (
        "has brown eyes",
        ("both parents of {name} have brown eyes, too", "colored lenses make them look brown"),
    ),
    ("has red hair", ("{name} was born with it, like both parents", "{name} dyed it last week")),
    ("has curly hair", ("{name} was born with it, like both parents", "a hairdresser curled it")),
    ("is very strong", ("{name} got strong muscles through genes", "{name} trained for years")),
    ("has a mark on one knee", ("it runs in the family's genes", "it is a scar from a fall")),
    ("speaks in a deep voice", ("it runs in the family's genes", "{name} practiced it for a play")),
    (
        "has straight teeth",
        ("they grew that way, as in both parents", "a dentist straightened them"),
    ),
    ("is tall", ("the genes of both parents made {name} tall", "thick soles make {name} taller")),
    ("has short hair", ("it never grows long, as in both parents", "a barber cut it")),
    ("has freckles", ("the genes for them came from the mother", "the sun brought them out")),
    ("has a small nose", ("{name} got the genes for it from the father", "a doctor changed it")),
    ("has long eyelashes", ("they were there at birth, as in the mother", "{name} glued them on")),
    ("runs very fast", ("genes from the father gave {name} long legs", "a coach taught {name}")),
    ("can bend far backward", ("loose joints run in the family", "{name} learned it in a circus")),
    ("can roll the tongue", ("both parents could always do it, too", "{name} practiced for weeks")),
    ("has white hair", ("{name} was born with it, like one parent", "it turned white with age")),
    ("sings in tune", ("a gene for good hearing runs in the family", "{name} took lessons")),
    ("has big ears", ("{name} got the genes for them from the father", "they come with a costume")),
)
TRAVELLERS = (
    *("the truck", "the bus", "the horse", "the boat", "the cyclist", "the runner", "the train"),
    *("the tractor", "the duck", "the skater", "the ferry", "the wolf", "the scooter", "the van"),
    *("the camel", "the balloon", "the sled", "the deer", "the robot", "the swimmer", "the drone"),
)
EXPERIMENTS = (
    (
        "{name} grew bean plants in equal pots of soil. Half got one cup of water a day, half "
        "got two cups. After a month {name} measured their height.",
        "the amount of water",
        "the kind of soil",
        "the height of plants",
    ),
    (
        "{name} rolled the same ball down a steep ramp and a flat ramp. Each time {name} "
        "measured how far it rolled.",
        "the slope of the ramp",
        "the ball",
        "the distance rolled",
    ),
    (
        "{name} put ice cubes of one size in cups of cold water and cups of warm water. Then "
        "{name} measured the melting time.",
        "the warmth of the water",
        "the size of the cubes",
        "the melting time",
    ),
    (
        "{name} baked bread from the same dough at two oven temperatures. Then {name} measured "
        "how high the bread rose.",
        "the oven temperature",
        "the dough",
        "the height of the bread",
    ),
    (
        "{name} folded paper airplanes with short wings and with long wings from the same "
        "paper. {name} measured how far they flew.",
        "the length of the wings",
        "the kind of paper",
        "the distance flown",
    ),
    (
        "{name} fed one kind of seed to birds in a red feeder and in a blue feeder. {name} "
        "counted the visiting birds.",
        "the color of the feeder",
        "the kind of seed",
        "the number of birds",
    ),
    (
        "{name} stirred one spoon of salt into cups of water, slowly or quickly. {name} "
        "measured the time until it was dissolved.",
        "the speed of stirring",
        "the amount of salt",
        "the dissolving time",
    ),
    (
        "{name} dropped equal balls from a low shelf and a high shelf. Each time {name} "
        "measured how high the ball bounced.",
        "the height of the shelf",
        "the kind of ball",
        "the height of the bounce",
    ),
    (
        "{name} washed equal stains with two brands of soap in warm water. {name} then rated "
        "how much of each stain was left.",
        "the brand of soap",
        "the warmth of the water",
        "the stain left",
    ),
    (
        "{name} kept slices of one loaf in a dry box and in a damp box. After a week {name} "
        "measured the mold on them.",
        "the dampness of the box",
        "the loaf",
        "the amount of mold",
    ),
    (
        "{name} gave tomato plants of one age sunlight or lamp light. At the end {name} "
        "counted the tomatoes.",
        "the kind of light",
        "the age of the plants",
        "the number of tomatoes",
    ),
    (
        "{name} asked runners to wear light shoes and then heavy shoes on the same track. "
        "{name} measured their running time.",
        "the weight of the shoes",
        "the track",
        "the running time",
    ),
    (
        "{name} hung equal wet towels in a windy yard and in a still yard. {name} measured how "
        "long they took to dry.",
        "the wind",
        "the size of the towels",
        "the drying time",
    ),
    (
        "{name} wound a wire ten times or fifty times around equal nails and joined it to a "
        "battery. {name} counted the pins each nail lifted.",
        "the number of turns",
        "the size of the nail",
        "the number of pins",
    ),
)
