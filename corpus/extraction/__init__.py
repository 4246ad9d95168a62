"""From a page's bytes to its main text: encoding, lines and the boxes they stand in, which lines are text."""
