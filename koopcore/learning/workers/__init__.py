"""Learning on several processes: Algorithm 2 in step, Algorithm 3 without waiting."""
