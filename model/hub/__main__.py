"""The command `python -m model.hub IN OUT` (convert.py)."""

from model.hub.convert import main

if __name__ == "__main__":
    main()
