"""`python -m proxy`: the same as the command `tollkeeper`."""

from proxy.cli import main

if __name__ == "__main__":
    main()
