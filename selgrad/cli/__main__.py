"""Runs the command line as `python -m selgrad.cli`.

This does the same as the installed `selgrad` and `python -m selgrad`.
"""

from selgrad.cli import main

if __name__ == "__main__":
    main()
