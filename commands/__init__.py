"""The commands of `stemma`: each calls one function of a package, imported when it is called."""
