"""Who gives the better answer: pairwise verdicts of a judge, and the win rates that follow from them."""
