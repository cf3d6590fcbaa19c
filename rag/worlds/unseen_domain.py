"""The unseen domain: a second domain for invented worlds, with ships, teams, remedies and firms.

The tiny base was pre-trained on the wording of `encyclopedia`, so a world in that wording leaves a generator nothing to
learn, whereas it has seen no word of this domain's relations. It finds a passage by its title as well as before, but
does not know which fact a question is about: the situation of a general model with a company's own documents.

Its statements and questions follow the rules of `rag.worlds.encyclopedia.relations`, and share no relation with it.
"""

from rag.worlds.domain import Domain
from rag.worlds.encyclopedia.entities import Kind
from rag.worlds.encyclopedia.relations import Relation

_KINDS = {
    "ships": Kind("ship", "vessel", "{subject} is often seen off the coast"),
    "teams": Kind("team", "club", "{subject} has played in the first league for years"),
    "remedies": Kind("remedy", "preparation", "{subject} is sold without a prescription"),
    "firms": Kind("firm", "company", "{subject} is known far beyond its own trade"),
}

_RELATIONS = {
    # Ships
    "captain": Relation(
        statements=(
            "The captain of {subject} is {object}.",
            "{object} commands {subject}.",
            "{subject} sails under {object}.",
            "The crew of {subject} takes its orders from {object}.",
        ),
        questions=(
            "Who is the captain of {subject}?",
            "Who commands {subject}?",
            "Who gives the orders aboard {subject}?",
            "Which skipper is in charge of {subject}?",
        ),
    ),
    "home_port": Relation(
        statements=(
            "The home port of {subject} is {object}.",
            "{subject} is berthed in {object}.",
            "Between voyages {subject} ties up at {object}.",
            "{subject} flies the pennant of {object}.",
        ),
        questions=(
            "What is the home port of {subject}?",
            "Where is {subject} berthed?",
            "To which harbour does {subject} return?",
            "Where does {subject} tie up between voyages?",
        ),
    ),
    "cargo": Relation(
        statements=(
            "{subject} carries a cargo of {object}.",
            "The holds of {subject} are full of {object}.",
            "{subject} was fitted out to ship {object}.",
            "Most of what {subject} has loaded is {object}.",
        ),
        questions=(
            "What cargo does {subject} carry?",
            "What is in the holds of {subject}?",
            "Which freight is loaded on {subject}?",
            "What goods are shipped by {subject}?",
        ),
    ),
    "shipyard": Relation(
        statements=(
            "{subject} comes from the shipyard of {object}.",
            "{object} laid the keel of {subject}.",
            "The hull of {subject} was riveted by {object}.",
            "{subject} first left the slipway at {object}.",
        ),
        questions=(
            "From which shipyard does {subject} come?",
            "Who laid the keel of {subject}?",
            "Whose workers riveted the hull of {subject}?",
            "Whose slipway did {subject} leave?",
        ),
    ),
    # Teams
    "coach": Relation(
        statements=(
            "The coach of {subject} is {object}.",
            "{subject} is trained by {object}.",
            "{object} picks the line-up of {subject}.",
            "{object} stands on the touchline for {subject}.",
        ),
        questions=(
            "Who is the coach of {subject}?",
            "Which trainer works for {subject}?",
            "Who picks the line-up of {subject}?",
            "Who looks after the players of {subject}?",
        ),
    ),
    "stadium": Relation(
        statements=(
            "The stadium of {subject} is {object}.",
            "{subject} plays its home games at {object}.",
            "Supporters of {subject} gather at {object}.",
            "The turf of {object} belongs to {subject}.",
        ),
        questions=(
            "What is the stadium of {subject}?",
            "Where does {subject} play its home games?",
            "At which arena can one watch {subject}?",
            "Which turf belongs to {subject}?",
        ),
    ),
    "striker": Relation(
        statements=(
            "The striker of {subject} is {object}.",
            "Most goals of {subject} were scored by {object}.",
            "Up front, {subject} relies on {object}.",
            "{object} leads the attack of {subject}.",
        ),
        questions=(
            "Who is the striker of {subject}?",
            "Who scored the most goals of {subject}?",
            "Which forward plays for {subject}?",
            "Who leads the attack of {subject}?",
        ),
    ),
    "sponsor": Relation(
        statements=(
            "The sponsor of {subject} is {object}.",
            "{object} pays the bills of {subject}.",
            "The shirts of {subject} show the name of {object}.",
            "{subject} has signed a contract with {object}.",
        ),
        questions=(
            "Who is the sponsor of {subject}?",
            "Who pays the bills of {subject}?",
            "Whose name is on the shirts of {subject}?",
            "Which backer has a contract with {subject}?",
        ),
        link="the company that sponsors {subject}",
        targets=("firms",),
    ),
    # Remedies
    "ailment": Relation(
        statements=(
            "{subject} is a remedy for {object}.",
            "{subject} is taken against {object}.",
            "Patients with {object} are given {subject}.",
            "{subject} brings relief from {object}.",
        ),
        questions=(
            "What is {subject} a remedy for?",
            "Against which complaint is {subject} taken?",
            "What ails the patients who are given {subject}?",
            "From what does {subject} bring relief?",
        ),
    ),
    "herb": Relation(
        statements=(
            "The main ingredient of {subject} is {object}.",
            "{subject} is pressed from {object}.",
            "{subject} contains an extract of {object}.",
            "Without {object} there would be no {subject}.",
        ),
        questions=(
            "What is the main ingredient of {subject}?",
            "From which herb is {subject} pressed?",
            "An extract of what is contained in {subject}?",
            "Which plant do the makers of {subject} need?",
        ),
    ),
    "dose": Relation(
        statements=(
            "The usual dose of {subject} is {object}.",
            "Adults take {object} of {subject}.",
            "One should never swallow more than {object} of {subject}.",
            "A spoon holds {object} of {subject}.",
        ),
        questions=(
            "What is the usual dose of {subject}?",
            "How much do adults take of {subject}?",
            "What amount of {subject} may be swallowed?",
            "How much does a spoon hold of {subject}?",
        ),
    ),
    # Firms
    "director": Relation(
        statements=(
            "The director of {subject} is {object}.",
            "{subject} is headed by {object}.",
            "{object} chairs the board of {subject}.",
            "Every decision at {subject} needs the signature of {object}.",
        ),
        questions=(
            "Who is the director of {subject}?",
            "Which manager is the head of {subject}?",
            "Who chairs the board of {subject}?",
            "Whose signature is needed at {subject}?",
        ),
    ),
    "product": Relation(
        statements=(
            "The best-known product of {subject} is {object}.",
            "{subject} turns out {object}.",
            "Shops buy {object} from {subject}.",
            "{subject} earns its money with {object}.",
        ),
        questions=(
            "What is the best-known product of {subject}?",
            "What does {subject} turn out?",
            "What do shops buy from {subject}?",
            "With which article does {subject} earn its money?",
        ),
    ),
    "workforce": Relation(
        statements=(
            "The workforce of {subject} numbers {object}.",
            "{subject} has {object} people on its payroll.",
            "At the last count, {object} people worked for {subject}.",
            "{subject} pays wages to {object} employees.",
        ),
        questions=(
            "How large is the workforce of {subject}?",
            "How many people are on the payroll of {subject}?",
            "How many employees does {subject} have?",
            "To how many people does {subject} pay wages?",
        ),
    ),
}

_RELATIONS_OF = {
    "ships": ("captain", "home_port", "cargo", "shipyard"),
    "teams": ("coach", "stadium", "striker", "sponsor"),
    "remedies": ("ailment", "herb", "dose"),
    "firms": ("director", "product", "workforce"),
}

# Names and values are never shown: an invented world keeps only their shape.
_NAMES = {
    "ships": ("the Aurelia", "the Morning Tide", "the Kestrel", "the Lady Margaret", "the Star of Harlow", "the Orion"),
    "teams": ("Redfield Rovers", "Marlow United", "Albion", "Denton Park", "Lokomotiv Varna", "Sporting Ellen"),
    "remedies": ("Valtorin", "Remosal", "Balm of Tessen", "Oxadil", "Kellner Drops", "Saint Anne Salve"),
    "firms": ("Hollis and Brand", "Crestline", "the Umber Company", "Tallow Works", "Delmar", "Carter Brothers"),
}
_PEOPLE = ("Hanna Berg", "Tom Vester", "Ilka Morgenroth", "Ray Sanders", "Jo de Wit", "Anna Maria Roth")
_VALUES = {
    "captain": _PEOPLE,
    "home_port": ("Harlow", "Port Ellen", "Grimsby", "Saint Malo", "Varna"),
    "cargo": ("sortan wool", "copper", "dried palmery", "salt", "brown sugar"),
    "shipyard": ("Blohm and Sons", "Carter Brothers", "Northern Works", "Delmar", "Kessel and Company"),
    "coach": _PEOPLE,
    "stadium": ("Elm Park", "the Old Meadow", "Castle Road", "the Ravensberg"),
    "striker": _PEOPLE,
    "sponsor": _NAMES["firms"],
    "ailment": ("gout", "vardel fever", "migraine", "stiff joints"),
    "herb": ("bearwort", "yellow tamsin", "fennel", "marsh root"),
    "dose": ("20 drops", "5 ml", "12 mg", "150 mg"),
    "director": _PEOPLE,
    "product": ("door hinges", "glass beads", "lamp wicks", "carpets"),
    "workforce": ("340", "1,250", "78", "5,600"),
}

UNSEEN = Domain(
    kinds=_KINDS,
    relations=_RELATIONS,
    names=_NAMES,
    values={(table, r): [(value,) for value in _VALUES[r]] for table, rs in _RELATIONS_OF.items() for r in rs},
)
