"""Records: what one line, row or element of a data file holds, in every container that the library reads."""
