"""What learns: a module for each algorithm, and what they share."""
