"""One attempt to jump: fit, predict, search along the prediction, move or put back."""
