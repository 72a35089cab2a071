"""The zoo: the list of its networks (`entries`), and what trains them (`jobs`)."""
