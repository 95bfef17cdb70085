"""Runs the command line as `python -m selgrad.cli`.

The same as the installed `selgrad` and as `python -m selgrad`.
"""

from selgrad.cli import main

if __name__ == "__main__":
    main()
