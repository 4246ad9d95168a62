"""From a page's bytes to its main text: encoding, lines and the elements that contain them, which lines are text."""
