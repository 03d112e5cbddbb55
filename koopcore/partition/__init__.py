"""Which parameters share an operator: layouts of networks, and the groups made from them."""
