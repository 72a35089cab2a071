"""The zoo: the list of its networks (`entries`), and their training (`jobs`)."""
