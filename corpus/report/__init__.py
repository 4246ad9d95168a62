"""Reports on a cleaned corpus for people: the funnel, plots, sample pages of every rule, one HTML page of it all."""
