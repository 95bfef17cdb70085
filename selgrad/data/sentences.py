"""Sixty short messages written for this project, with the kind of message as the label: text that needs no file and no network.

They resemble messages on which a keyboard or a clinic would train: 0 is everyday, 1 is health, 2 is money. No line names a real person or place.
"""

from __future__ import annotations

from selgrad.data.text import TextDataset, make_text

_EVERYDAY = """
the bakery on the corner opens at seven
can you bring the blue umbrella tomorrow
our train was late again this morning
please water the plants while we are away
she left her keys on the kitchen table
the cat slept on the warm piano all day
we should paint the fence before winter
he sings loudest when nobody is home
dinner is ready and the soup is still hot
the children built a bridge out of boxes
my phone died halfway through the call
turn left after the old stone church
they moved the meeting to thursday afternoon
the garden smells of rain and mint
i forgot to return your library book
the neighbours are having a party tonight
could you send me the recipe for the bread
our team lost but we laughed a lot
the clock in the hall is ten minutes fast
bring a jacket because the wind is cold
"""
_HEALTH = """
my mother was told she has diabetes last week
the scan showed a small shadow on his left lung
take one tablet in the morning and two at night
i have not slept well since the operation
her test came back positive on monday
the doctor thinks it could be an allergy to nuts
his blood pressure is far too high again
we are waiting for the results of the biopsy
i started seeing a therapist about the panic attacks
the baby had a fever of forty degrees
she is pregnant and has told nobody yet
the new medicine makes my hands shake
my knee hurts whenever i climb the stairs
he was admitted to the ward on friday evening
please refill the prescription for my asthma
the nurse said the wound is healing slowly
i stopped drinking three months ago
her migraine comes back every second week
they found a murmur when they listened to his heart
my father forgets our names more often now
"""
_MONEY = """
the code for the safe is four nine two seven
i still owe my brother nine hundred euros
please wire the deposit before the end of march
her salary was cut by a tenth last month
the bank refused our loan without a reason
we sold the car to pay the rent
my account was charged twice for the same ticket
he hides cash behind the books in the study
the invoice for the roof is overdue
i won a little on the lottery and told no one
they want to close the shop by summer
our landlord raised the price for the third time
the tax office asked for all our receipts
send the contract to my private address
she invested everything in her cousin's company
the insurance will not pay for the broken window
i need an advance until the tenth of may
the password is the name of my first dog
we put the house in my sister's name
his pension is smaller than he had hoped
"""


def sentences(*, tokenizer: str = "words", max_length: int = 32, count: int | None = None, offset: int = 0) -> TextDataset:
    """Loads the built-in messages of three alternating kinds; it works offline with the built-in word-level tokenizer.

    Args:
      tokenizer: `words`, a folder with tokenizer files, or a name on the hub.
      max_length: tokens to which a sentence is cut.
      count: samples to keep, all by default.
      offset: samples to leave out first.
    """
    kinds = [[line for line in text.splitlines() if line] for text in (_EVERYDAY, _HEALTH, _MONEY)]
    pairs = [(text, label) for turn in zip(*kinds, strict=True) for label, text in enumerate(turn)]
    return make_text(
        [text for text, _ in pairs], [label for _, label in pairs],
        num_classes=3, tokenizer=tokenizer, max_length=max_length, count=count, offset=offset, source="sentences",
    )  # fmt: skip
