"""Records: the raw entries of data files, in every container that the library reads."""
