"""One document per experiment: the command, the expected result, every key commented."""
