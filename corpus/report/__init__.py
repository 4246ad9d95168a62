"""What people look at: the funnel, its pictures, pages of every rule, one HTML page of it all."""
