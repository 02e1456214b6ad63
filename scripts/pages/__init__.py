"""Pages of docs/ that are written from the code: what a name, a key, a script and a notebook say of themselves."""
