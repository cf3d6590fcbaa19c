"""The templates and the style sheet of the pages."""
