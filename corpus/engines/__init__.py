"""Where the units of work run; the result is the same bytes wherever that is."""
