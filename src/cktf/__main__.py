"""`python -m cktf`."""

from cktf.cli.main import main

if __name__ == "__main__":
    main()
