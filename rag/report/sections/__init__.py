"""Parts of a page that several kinds of pages share: tables and lists of questions."""
