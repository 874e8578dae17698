"""Word lists shared by the families, so that nearly every word is one token."""

SHE = (
    "Mia Ana Eva Nora Lily Zoe Emma Ruth Kate Lucy Rosa Jane Sara Ella Ivy Nina Dora Vera Maya Tess"
).split()
HE = (
    "Tom Ben Sam Max Leo Ivan Paul Jack Noah Adam Luke Omar Hugo Finn Karl Eric Dan Joe Tim Ned"
).split()
NAMES = SHE + HE
FOODS = "apples plums pears eggs cakes nuts pies figs beans grapes".split()
MORE_ITEMS = (
    "pens books cards coins shells stamps seeds roses stones beads balls cups hats keys rings"
    " bells toys kites maps lamps boats drums"
).split()
ITEMS = FOODS + MORE_ITEMS
COLOURS = "red green blue white black yellow brown grey pink gold".split()
ANIMALS = "fox cat dog rabbit horse bird bear mouse hen goat duck frog".split()
JOBS = "baker farmer singer painter driver writer sailor cook nurse pilot guard judge".split()
TOWNS = "Rome Paris Oslo London Bonn Lima Cairo Berlin Delhi Kyoto Milan Dublin".split()
OBJECTS = (
    "boat lamp drum hat key map bell book kite ring coat cup clock flute basket lantern"
).split()
PLACES = "forest garden village desert port market castle valley barn cave tower park".split()
TRAITS = "brave kind shy clever lazy proud quiet young small happy careful strong".split()

# How a text is cut before it is tokens: a new line with its indent, a possessive, one digit, a
# word, the next word of a compound name, a sequence of signs, other white space. Nearly every piece
# of a problem's text is one token.
PIECES = r"\n *|'s| ?[0-9]| ?[A-Za-z]+|_[A-Za-z]*| ?[^\sA-Za-z0-9_]+|\s+"
