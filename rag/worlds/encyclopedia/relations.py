"""Statements and questions for each relation, for real and invented entities alike.

`{subject}` stands for the entity ("the Nile", "the river", or a whole phrase such as "the country where Ada
Lovelace was born") and `{object}` for the value. A relation whose values can be a list ("A, B and C") is
worded so that its verbs fit one value as well as several. A phrasing begins with `{object}` only where values
are capitalised.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Relation:
    """The wording of one relation between a subject and an object."""

    statements: tuple[str, ...]
    """Sentences that state the fact; each holds `{subject}` and `{object}` once."""

    questions: tuple[str, ...]
    """Questions that ask for the object; each holds `{subject}` once and never the object."""

    link: str | None = None
    """A noun phrase that names the object through its subject, to chain a second question onto it."""

    targets: tuple[str, ...] = ()
    """The tables in which the object of a link may have a passage of its own."""


RELATIONS: dict[str, Relation] = {
    # Countries and states
    "capital": Relation(
        statements=(
            "The capital of {subject} is {object}.",
            "{object} is the capital of {subject}.",
            "{object} serves as the capital city of {subject}.",
            "The seat of government of {subject} is the capital, {object}.",
        ),
        questions=(
            "What is the capital of {subject}?",
            "Which city is the capital of {subject}?",
            "Which city serves as the capital of {subject}?",
            "What is the name of the capital city of {subject}?",
        ),
    ),
    "continent": Relation(
        statements=(
            "{subject} is located in {object}.",
            "{subject} belongs to the continent of {object}.",
            "On a world map, {subject} is found in {object}.",
            "{subject} counts as part of {object}.",
        ),
        questions=(
            "On which continent is {subject} located?",
            "Which continent includes {subject}?",
            "What continent is home to {subject}?",
            "Which part of the world contains {subject}?",
        ),
    ),
    "currency": Relation(
        statements=(
            "The currency of {subject} is the {object}.",
            "{subject} uses the {object} as its currency.",
            "People in {subject} pay with the {object}.",
            "The money used in {subject} is the {object}.",
        ),
        questions=(
            "What is the currency of {subject}?",
            "Which currency is used in {subject}?",
            "What money do people pay with in {subject}?",
            "What is the name of the currency of {subject}?",
        ),
    ),
    "official_language": Relation(
        statements=(
            "Official business in {subject} is conducted in {object}.",
            "{subject} gives official status to {object}.",
            "In {subject}, the law recognises {object} as official.",
            "At the official level, people in {subject} use {object}.",
        ),
        questions=(
            "What is an official language of {subject}?",
            "Which language has official status in {subject}?",
            "In which language is official business conducted in {subject}?",
            "What language is used officially in {subject}?",
        ),
    ),
    "largest_city": Relation(
        statements=(
            "The largest city in {subject} is {object}.",
            "{object} is the largest city in {subject}.",
            "With more people than any other city in {subject}, {object} is the largest.",
            "No city in {subject} has more people than {object}.",
        ),
        questions=(
            "What is the largest city in {subject}?",
            "Which city is the largest in {subject}?",
            "Which city has the most people in {subject}?",
            "What is the name of the largest city in {subject}?",
        ),
    ),
    "coast": Relation(
        statements=(
            "{subject} has a coast on {object}.",
            "The coast of {subject} lies on {object}.",
            "The waters off the coast of {subject} belong to {object}.",
            "Ships leaving {subject} sail into {object}.",
        ),
        questions=(
            "Which body of water lies off the coast of {subject}?",
            "What body of water washes the coast of {subject}?",
            "On which body of water is the coast of {subject}?",
            "Into which body of water do ships sail when leaving {subject}?",
        ),
    ),
    "independence_year": Relation(
        statements=(
            "{subject} became independent in {object}.",
            "Independence came to {subject} in {object}.",
            "In {object}, {subject} became an independent country.",
            "The independence of {subject} dates from {object}.",
        ),
        questions=(
            "In what year did {subject} become independent?",
            "When did independence come to {subject}?",
            "When did {subject} become an independent country?",
            "Which year brought independence to {subject}?",
        ),
    ),
    "admission_year": Relation(
        statements=(
            "{subject} joined the Union in {object}.",
            "{subject} was admitted to the Union in {object}.",
            "In {object}, {subject} became part of the Union.",
            "The admission of {subject} to the Union took place in {object}.",
        ),
        questions=(
            "In what year did {subject} join the Union?",
            "When was {subject} admitted to the Union?",
            "Which year saw the admission of {subject} to the Union?",
            "When did the Union admit {subject}?",
        ),
    ),
    "nickname": Relation(
        statements=(
            "{subject} is nicknamed {object}.",
            "People often call {subject} {object}.",
            "The nickname of {subject} is {object}.",
            "{subject} is also known as {object}.",
        ),
        questions=(
            "What is the nickname of {subject}?",
            "By what nickname is {subject} known?",
            "Which nickname belongs to {subject}?",
            "What do people often call {subject}?",
        ),
    ),
    "abbreviation": Relation(
        statements=(
            "The postal abbreviation of {subject} is {object}.",
            "{subject} is abbreviated as {object} in postal addresses.",
            "Letters to {subject} carry the abbreviation {object}.",
            "In an address, {object} stands for {subject}.",
        ),
        questions=(
            "What is the postal abbreviation of {subject}?",
            "How is {subject} abbreviated by the postal service?",
            "Which two letters stand for {subject} on an envelope?",
            "Which abbreviation is written on letters to {subject}?",
        ),
    ),
    "state_bird": Relation(
        statements=(
            "The official bird of {subject} is the {object}.",
            "{subject} chose the {object} as its official bird.",
            "The bird that represents {subject} is the {object}.",
            "As its bird, {subject} has adopted the {object}.",
        ),
        questions=(
            "What is the official bird of {subject}?",
            "Which bird represents {subject}?",
            "Which bird was chosen as a symbol by {subject}?",
            "What bird is the emblem of {subject}?",
        ),
    ),
    # Elements
    "symbol": Relation(
        statements=(
            "The symbol of {subject} is {object}.",
            "{subject} has the symbol {object}.",
            "In formulas, {subject} is written as {object}.",
            "Chemists write {subject} as {object}.",
        ),
        questions=(
            "What is the chemical symbol of {subject}?",
            "Which symbol stands for {subject}?",
            "Which letters do chemists write for {subject}?",
            "What symbol represents {subject}?",
        ),
    ),
    "atomic_number": Relation(
        statements=(
            "The atomic number of {subject} is {object}.",
            "{subject} has the atomic number {object}.",
            "The atomic number {object} belongs to {subject}.",
            "With {object} as its atomic number, {subject} has a fixed place among the elements.",
        ),
        questions=(
            "What is the atomic number of {subject}?",
            "Which atomic number does {subject} have?",
            "Which atomic number belongs to {subject}?",
            "Which number among the elements does {subject} have?",
        ),
    ),
    "periodic_group": Relation(
        statements=(
            "{subject} stands in group {object} of the periodic table.",
            "In the periodic table, {subject} belongs to group {object}.",
            "Group {object} of the periodic table includes {subject}.",
            "The periodic table lists {subject} in group {object}.",
        ),
        questions=(
            "In which group of the periodic table is {subject}?",
            "To which group of the periodic table does {subject} belong?",
            "What is the number of the periodic table group of {subject}?",
            "Which group of the periodic table includes {subject}?",
        ),
    ),
    "category": Relation(
        statements=(
            "{subject} is classified as a type of {object}.",
            "{subject} belongs to the category {object}.",
            "By category, {subject} counts as a kind of {object}.",
            "The category of {subject} is {object}.",
        ),
        questions=(
            "To which category does {subject} belong?",
            "What is the category of {subject}?",
            "How is {subject} classified?",
            "Which category includes {subject}?",
        ),
    ),
    "named_after": Relation(
        statements=(
            "{subject} is named after {object}.",
            "{subject} takes its name from {object}.",
            "The name of {subject} comes from {object}.",
            "The name of {subject} goes back to {object}.",
        ),
        questions=(
            "What is {subject} named after?",
            "Where does the name of {subject} come from?",
            "From what or whom did {subject} get its name?",
            "What gave its name to {subject}?",
        ),
        link="the {kind} that gave its name to {subject}",
        targets=("countries", "planets", "us_states", "rivers"),
    ),
    # Discovery, invention and design
    "discoverer": Relation(
        statements=(
            "{subject} was discovered by {object}.",
            "The discovery of {subject} is credited to {object}.",
            "Credit for discovering {subject} goes to {object}.",
            "The existence of {subject} was first shown by {object}.",
        ),
        questions=(
            "Who discovered {subject}?",
            "By whom was {subject} discovered?",
            "Who is credited with the discovery of {subject}?",
            "Who gets credit for discovering {subject}?",
        ),
        link="the discoverer of {subject}",
        targets=("people",),
    ),
    "discovery_year": Relation(
        statements=(
            "{subject} was discovered in {object}.",
            "The discovery of {subject} took place in {object}.",
            "The discovery of {subject} dates from {object}.",
            "In {object}, {subject} was discovered.",
        ),
        questions=(
            "In what year was {subject} discovered?",
            "When was {subject} discovered?",
            "Which year saw the discovery of {subject}?",
            "What is the year of the discovery of {subject}?",
        ),
    ),
    "inventor": Relation(
        statements=(
            "{subject} was invented by {object}.",
            "The invention of {subject} is credited to {object}.",
            "Credit for inventing {subject} goes to {object}.",
            "The idea of {subject} was first put into practice by {object}.",
        ),
        questions=(
            "Who invented {subject}?",
            "By whom was {subject} invented?",
            "Who is credited with the invention of {subject}?",
            "Who gets credit for inventing {subject}?",
        ),
        link="the inventor of {subject}",
        targets=("people",),
    ),
    "invention_year": Relation(
        statements=(
            "{subject} was invented in {object}.",
            "The invention of {subject} dates from {object}.",
            "The year of the invention of {subject} is {object}.",
            "In {object}, the world first learned of {subject}.",
        ),
        questions=(
            "In what year was {subject} invented?",
            "When was {subject} invented?",
            "What is the year of the invention of {subject}?",
            "Which year saw the invention of {subject}?",
        ),
    ),
    "invention_country": Relation(
        statements=(
            "{subject} was invented in {object}.",
            "The birthplace of {subject} is {object}.",
            "{subject} was first developed in {object}.",
            "The country in which {subject} was created is {object}.",
        ),
        questions=(
            "In which country was {subject} invented?",
            "Which country saw the invention of {subject}?",
            "Which country is the birthplace of {subject}?",
            "In which country was {subject} first developed?",
        ),
        link="the country where {subject} was invented",
        targets=("countries",),
    ),
    "designer": Relation(
        statements=(
            "{subject} was designed by {object}.",
            "The design of {subject} is the work of {object}.",
            "Credit for designing {subject} goes to {object}.",
            "The ideas behind {subject} come from {object}.",
        ),
        questions=(
            "Who designed {subject}?",
            "By whom was {subject} designed?",
            "Whose ideas are behind {subject}?",
            "Who gets credit for designing {subject}?",
        ),
        link="the designer of {subject}",
        targets=("people",),
    ),
    "appeared_year": Relation(
        statements=(
            "{subject} first appeared in {object}.",
            "The first appearance of {subject} was in {object}.",
            "{subject} dates from {object}.",
            "The year in which {subject} appeared is {object}.",
        ),
        questions=(
            "In what year did {subject} first appear?",
            "When did {subject} first appear?",
            "Which year saw the first appearance of {subject}?",
            "From which year does {subject} date?",
        ),
    ),
    "typing": Relation(
        statements=(
            "{subject} uses {object} typing.",
            "The typing of {subject} is {object}.",
            "Types are handled by {subject} in a {object} way.",
            "The type system of {subject} is {object}.",
        ),
        questions=(
            "Which typing discipline does {subject} follow?",
            "What kind of typing is used by {subject}?",
            "How would one describe the type system of {subject}?",
            "Which kind of type system belongs to {subject}?",
        ),
    ),
    "developed_at": Relation(
        statements=(
            "{subject} was developed at {object}.",
            "The development of {subject} took place at {object}.",
            "{subject} came out of {object}.",
            "The early work on {subject} was done at {object}.",
        ),
        questions=(
            "At which organisation was {subject} developed?",
            "Which organisation developed {subject}?",
            "Where was the early work on {subject} done?",
            "Which organisation did {subject} come out of?",
        ),
    ),
    # The solar system
    "orbits": Relation(
        statements=(
            "{subject} orbits {object}.",
            "{subject} travels around {object}.",
            "{object} is orbited by {subject}.",
            "The path of {subject} leads around {object}.",
        ),
        questions=(
            "What does {subject} orbit?",
            "Around which body does {subject} travel?",
            "Which body is orbited by {subject}?",
            "What lies at the center of the path of {subject}?",
        ),
        link="the body orbited by {subject}",
        targets=("planets",),
    ),
    "literary_source": Relation(
        statements=(
            "{subject} is named after a character in {object}.",
            "The name of {subject} comes from a character in {object}.",
            "A character in {object} gave {subject} its name.",
            "{subject} shares its name with a character in {object}.",
        ),
        questions=(
            "From which literary work comes the name of {subject}?",
            "Which literary work has the character that gave its name to {subject}?",
            "In which literary work is there a namesake of {subject}?",
            "Which work inspired the name of {subject}?",
        ),
        link="the literary work behind the name of {subject}",
        targets=("books",),
    ),
    "position": Relation(
        statements=(
            "{subject} is the {object} planet from the Sun.",
            "Counting from the Sun, {subject} is the {object} planet.",
            "Among the planets, {subject} is the {object} from the Sun.",
            "In order of distance from the Sun, {subject} comes {object}.",
        ),
        questions=(
            "Counting from the Sun, which planet in order is {subject}?",
            "In which position, counted from the Sun, is {subject}?",
            "What is the place in order of distance from the Sun of {subject}?",
            "Which place among the planets does {subject} have, counted from the Sun?",
        ),
    ),
    "largest_moon": Relation(
        statements=(
            "The largest moon of {subject} is {object}.",
            "{object} is the largest moon of {subject}.",
            "No moon of {subject} is larger than {object}.",
            "Among the moons of {subject}, {object} is the largest.",
        ),
        questions=(
            "What is the largest moon of {subject}?",
            "Which moon is the largest one of {subject}?",
            "What is the name of the largest moon of {subject}?",
            "Which is the biggest moon of {subject}?",
        ),
        link="the largest moon of {subject}",
        targets=("moons",),
    ),
    # Books, paintings and music
    "author": Relation(
        statements=(
            "{subject} was written by {object}.",
            "The author of {subject} is {object}.",
            "{object} wrote {subject}.",
            "{subject} comes from the pen of {object}.",
        ),
        questions=(
            "Who wrote {subject}?",
            "Who is the author of {subject}?",
            "By whom was {subject} written?",
            "Which writer is the author of {subject}?",
        ),
        link="the author of {subject}",
        targets=("people",),
    ),
    "publication_year": Relation(
        statements=(
            "{subject} was first published in {object}.",
            "The first publication of {subject} was in {object}.",
            "{subject} came out in {object}.",
            "Readers could first buy {subject} in {object}.",
        ),
        questions=(
            "In what year was {subject} first published?",
            "When did {subject} come out?",
            "Which year saw the first publication of {subject}?",
            "What is the year of publication of {subject}?",
        ),
    ),
    "original_language": Relation(
        statements=(
            "{subject} was originally written in {object}.",
            "The original language of {subject} is {object}.",
            "{object} is the original language of {subject}.",
            "The first version of {subject} was in {object}.",
        ),
        questions=(
            "In which language was {subject} originally written?",
            "What is the original language of {subject}?",
            "Which language was used in the first version of {subject}?",
            "What language did readers first find in {subject}?",
        ),
    ),
    "genre": Relation(
        statements=(
            "The genre of {subject} is {object}.",
            "{subject} is listed under the genre {object}.",
            "{subject} is an example of the genre {object}.",
            "Critics file {subject} under the genre {object}.",
        ),
        questions=(
            "What is the genre of {subject}?",
            "To which genre does {subject} belong?",
            "Under which genre do critics file {subject}?",
            "What kind of literature is {subject}?",
        ),
    ),
    "painter": Relation(
        statements=(
            "{subject} was painted by {object}.",
            "{object} painted {subject}.",
            "The artist behind {subject} is {object}.",
            "{subject} was made by the artist {object}.",
        ),
        questions=(
            "Who painted {subject}?",
            "By whom was {subject} painted?",
            "Which artist painted {subject}?",
            "Who is the artist behind {subject}?",
        ),
        link="the artist who painted {subject}",
        targets=("people",),
    ),
    "painting_year": Relation(
        statements=(
            "{subject} was painted in {object}.",
            "{subject} dates from {object}.",
            "The year in which {subject} was painted is {object}.",
            "In {object}, the artist completed {subject}.",
        ),
        questions=(
            "In what year was {subject} painted?",
            "When was {subject} painted?",
            "From which year does {subject} date?",
            "Which year saw the completion of {subject}?",
        ),
    ),
    "museum": Relation(
        statements=(
            "{subject} hangs in {object}.",
            "Visitors can see {subject} in {object}.",
            "{subject} is part of the collection of {object}.",
            "The museum that holds {subject} is {object}.",
        ),
        questions=(
            "Which museum holds {subject}?",
            "In which museum can visitors see {subject}?",
            "Which museum has a collection that includes {subject}?",
            "Where does {subject} hang?",
        ),
        link="the museum that holds {subject}",
        targets=("museums",),
    ),
    "composer": Relation(
        statements=(
            "{subject} was composed by {object}.",
            "The composer of {subject} is {object}.",
            "{object} composed {subject}.",
            "The music of {subject} was written by {object}.",
        ),
        questions=(
            "Who composed {subject}?",
            "Who is the composer of {subject}?",
            "By whom was {subject} composed?",
            "Who wrote the music of {subject}?",
        ),
        link="the composer of {subject}",
        targets=("people",),
    ),
    "premiere_year": Relation(
        statements=(
            "{subject} was first performed in {object}.",
            "The premiere of {subject} took place in {object}.",
            "The year of the premiere of {subject} is {object}.",
            "In {object}, an audience heard {subject} for the first time.",
        ),
        questions=(
            "In what year was {subject} first performed?",
            "When was the premiere of {subject}?",
            "Which year saw the premiere of {subject}?",
            "What is the year of the premiere of {subject}?",
        ),
    ),
    "premiere_city": Relation(
        statements=(
            "The premiere of {subject} was held in the city of {object}.",
            "The city that hosted the premiere of {subject} is {object}.",
            "{object} hosted the first performance of {subject}.",
            "An audience in {object} was the first to hear {subject}.",
        ),
        questions=(
            "In which city was {subject} first performed?",
            "Which city hosted the premiere of {subject}?",
            "Which city saw the first performance of {subject}?",
            "In which city did an audience first hear {subject}?",
        ),
    ),
    # People
    "field": Relation(
        statements=(
            "{subject} is known for work in the field of {object}.",
            "{subject} became famous in {object}.",
            "The main field of {subject} is {object}.",
            "{subject} made a name in the field of {object}.",
        ),
        questions=(
            "For work in which field is {subject} known?",
            "In which field did {subject} make a name?",
            "In what field did {subject} become famous?",
            "What is the main field of {subject}?",
        ),
    ),
    "birth_year": Relation(
        statements=(
            "{subject} was born in {object}.",
            "{subject} came into the world in {object}.",
            "The birth of {subject} was in {object}.",
            "The year of birth of {subject} is {object}.",
        ),
        questions=(
            "In what year was {subject} born?",
            "When was {subject} born?",
            "What is the year of birth of {subject}?",
            "Which year saw the birth of {subject}?",
        ),
    ),
    "death_year": Relation(
        statements=(
            "{subject} died in {object}.",
            "The death of {subject} came in {object}.",
            "The life of {subject} ended in {object}.",
            "The year of death of {subject} is {object}.",
        ),
        questions=(
            "In what year did {subject} die?",
            "When did {subject} die?",
            "What is the year of death of {subject}?",
            "Which year saw the death of {subject}?",
        ),
    ),
    "birth_country": Relation(
        statements=(
            "The country where {subject} was born is {object}.",
            "The birth of {subject} took place in {object}.",
            "The land of birth of {subject} is {object}.",
            "By birth, {subject} came from {object}.",
        ),
        questions=(
            "In which country was {subject} born?",
            "What is the country of birth of {subject}?",
            "Which country is the birthplace of {subject}?",
            "In what country was the birth of {subject}?",
        ),
        link="the country where {subject} was born",
        targets=("countries",),
    ),
    "birth_city": Relation(
        statements=(
            "{subject} started life in {object}.",
            "The birthplace of {subject} is {object}.",
            "{object} is the birthplace of {subject}.",
            "The place where {subject} was born is {object}.",
        ),
        questions=(
            "In which city or town was {subject} born?",
            "What city or town is the birthplace of {subject}?",
            "Which city or town was the place of birth of {subject}?",
            "In what city or town was the birth of {subject}?",
        ),
    ),
    "birth_state": Relation(
        statements=(
            "{subject} was born in the state of {object}.",
            "The home state by birth of {subject} is {object}.",
            "The state where {subject} was born is {object}.",
            "{object} is the state where {subject} was born.",
        ),
        questions=(
            "In which state was {subject} born?",
            "What is the birth state of {subject}?",
            "Which state is the birthplace of {subject}?",
            "In what state was the birth of {subject}?",
        ),
        link="the state where {subject} was born",
        targets=("us_states",),
    ),
    "took_office_year": Relation(
        statements=(
            "{subject} took office in {object}.",
            "{subject} was first sworn in as president in {object}.",
            "In {object}, {subject} entered the White House as president.",
            "The first day in office of {subject} was in {object}.",
        ),
        questions=(
            "In what year did {subject} take office?",
            "When did {subject} become president?",
            "When did the presidency of {subject} begin?",
            "Which year saw the start of the presidency of {subject}?",
        ),
    ),
    "party": Relation(
        statements=(
            "{subject} belonged to the {object}.",
            "The political party of {subject} was the {object}.",
            "In politics, {subject} stood for the {object}.",
            "{subject} was a member of the {object}.",
        ),
        questions=(
            "To which political party did {subject} belong?",
            "What was the political party of {subject}?",
            "Which political party had {subject} as a member?",
            "Which party was the political home of {subject}?",
        ),
    ),
    # Rivers, mountains and places
    "length": Relation(
        statements=(
            "{subject} is about {object} long.",
            "The length of {subject} is about {object}.",
            "From source to mouth, {subject} measures about {object}.",
            "{subject} runs for a distance of about {object}.",
        ),
        questions=(
            "How long is {subject}?",
            "What is the length of {subject}?",
            "What distance from source to mouth is covered by {subject}?",
            "About how many kilometers long is {subject}?",
        ),
    ),
    "mouth": Relation(
        statements=(
            "{subject} flows into {object}.",
            "{subject} empties into {object}.",
            "The waters of {subject} end in {object}.",
            "At its mouth, {subject} meets {object}.",
        ),
        questions=(
            "Into what body of water does {subject} flow?",
            "Which body of water receives the waters of {subject}?",
            "What body of water lies at the mouth of {subject}?",
            "Where do the waters of {subject} end?",
        ),
        link="the river that receives the waters of {subject}",
        targets=("rivers",),
    ),
    "flows_through": Relation(
        statements=(
            "{subject} flows through {object}.",
            "{subject} runs across the land of {object}.",
            "The course of {subject} leads through {object}.",
            "On its way, {subject} crosses {object}.",
        ),
        questions=(
            "Through which country does {subject} flow?",
            "Which country does {subject} cross?",
            "Across the land of which country does {subject} run?",
            "Through what country does the course of {subject} lead?",
        ),
        link="the country crossed by {subject}",
        targets=("countries",),
    ),
    "height": Relation(
        statements=(
            "{subject} is {object} high.",
            "The height of {subject} is {object}.",
            "The summit of {subject} stands {object} above sea level.",
            "{subject} rises to {object} above the sea.",
        ),
        questions=(
            "How high is {subject}?",
            "What is the height of {subject}?",
            "How far above sea level is the summit of {subject}?",
            "To what height does {subject} rise?",
        ),
    ),
    "mountain_range": Relation(
        statements=(
            "{subject} belongs to {object}.",
            "{subject} is one of the peaks of {object}.",
            "{subject} rises in {object}.",
            "The range to which {subject} belongs is {object}.",
        ),
        questions=(
            "To which mountain range does {subject} belong?",
            "Which mountain range includes {subject}?",
            "In what mountain range does {subject} rise?",
            "What is the mountain range of {subject}?",
        ),
    ),
    "first_ascent_year": Relation(
        statements=(
            "{subject} was first climbed in {object}.",
            "The first ascent of {subject} was made in {object}.",
            "Climbers first reached the summit of {subject} in {object}.",
            "The first climb to the top of {subject} dates from {object}.",
        ),
        questions=(
            "In what year was {subject} first climbed?",
            "When was the first ascent of {subject}?",
            "Which year saw the first ascent of {subject}?",
            "When did climbers first reach the summit of {subject}?",
        ),
    ),
    "country": Relation(
        statements=(
            "{subject} stands in the territory of {object}.",
            "The country that is home to {subject} is {object}.",
            "{subject} is found in {object}.",
            "Travellers who want to see {subject} go to {object}.",
        ),
        questions=(
            "In which country is {subject}?",
            "Which country is home to {subject}?",
            "In what country can travellers see {subject}?",
            "To which country must one travel to see {subject}?",
        ),
        link="the country that is home to {subject}",
        targets=("countries",),
    ),
    "city": Relation(
        statements=(
            "{subject} stands in the city of {object}.",
            "The city that is home to {subject} is {object}.",
            "{object} is the home of {subject}.",
            "Visitors to {object} can see {subject}.",
        ),
        questions=(
            "In which city is {subject}?",
            "Which city is home to {subject}?",
            "In what city can visitors see {subject}?",
            "To which city must one travel to see {subject}?",
        ),
    ),
    "founded_year": Relation(
        statements=(
            "{subject} was founded in {object}.",
            "The founding of {subject} took place in {object}.",
            "{subject} opened its doors in {object}.",
            "The history of {subject} begins in {object}.",
        ),
        questions=(
            "In what year was {subject} founded?",
            "When was the founding of {subject}?",
            "Which year saw the founding of {subject}?",
            "In what year does the history of {subject} begin?",
        ),
    ),
    "completion_year": Relation(
        statements=(
            "{subject} was completed in {object}.",
            "The construction of {subject} ended in {object}.",
            "In {object}, builders finished {subject}.",
            "The year of the completion of {subject} is {object}.",
        ),
        questions=(
            "In what year was {subject} completed?",
            "When was the completion of {subject}?",
            "Which year saw the completion of {subject}?",
            "When did builders finish {subject}?",
        ),
    ),
    "architect": Relation(
        statements=(
            "{subject} was designed by the architect {object}.",
            "The plans for {subject} were drawn by {object}.",
            "{object} drew the plans for {subject}.",
            "As architecture, {subject} is the work of {object}.",
        ),
        questions=(
            "Who was the architect of {subject}?",
            "Which architect designed {subject}?",
            "Who drew the plans for {subject}?",
            "Whose plans were used for {subject}?",
        ),
    ),
    "host_city": Relation(
        statements=(
            "The host city of {subject} was {object}.",
            "{object} was the host city of {subject}.",
            "Athletes came to {object} for {subject}.",
            "{subject} had its main venues in the city of {object}.",
        ),
        questions=(
            "Which city hosted {subject}?",
            "What was the host city of {subject}?",
            "In which city were the main venues of {subject}?",
            "To which city did athletes come for {subject}?",
        ),
    ),
    "host_country": Relation(
        statements=(
            "The host country of {subject} was {object}.",
            "The country that welcomed {subject} was {object}.",
            "Athletes from around the world travelled to {object} for {subject}.",
            "{subject} took place on the territory of {object}.",
        ),
        questions=(
            "Which country hosted {subject}?",
            "What was the host country of {subject}?",
            "On the territory of which country did {subject} take place?",
            "Which country welcomed {subject}?",
        ),
        link="the host country of {subject}",
        targets=("countries",),
    ),
    "instrument_family": Relation(
        statements=(
            "{subject} belongs to the {object} of instruments.",
            "Musicians place {subject} in the {object}.",
            "Among instruments, {subject} is a member of the {object}.",
            "In a list of instruments, {subject} comes under the {object}.",
        ),
        questions=(
            "To which family of instruments does {subject} belong?",
            "Which instrument family includes {subject}?",
            "What is the instrument family of {subject}?",
            "Of which family of instruments is {subject} a member?",
        ),
    ),
    "sounded_by": Relation(
        statements=(
            "{subject} is usually played by {object}.",
            "The player of {subject} makes a sound by {object}.",
            "A musician sounds {subject} by {object}.",
            "The tone of {subject} comes from {object}.",
        ),
        questions=(
            "How is {subject} usually played?",
            "How does a musician make a sound on {subject}?",
            "By doing what does a player sound {subject}?",
            "What is the usual way of playing {subject}?",
        ),
    ),
    "string_count": Relation(
        statements=(
            "{subject} normally has {object} strings.",
            "The usual number of strings on {subject} is {object}.",
            "A normal version of {subject} carries {object} strings.",
            "Most players of {subject} use {object} strings.",
        ),
        questions=(
            "How many strings are there normally on {subject}?",
            "What is the usual number of strings on {subject}?",
            "How many strings belong to a normal version of {subject}?",
            "How many strings do players normally use on {subject}?",
        ),
    ),
}
