"""Where examples come from: built-in samples, tables, folders, and what makes arrays of them."""
