"""`python -m llm_entropy` is `llm-entropy`."""

from llm_entropy.commands.cli import main

if __name__ == "__main__":
    main()
