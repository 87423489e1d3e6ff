"""`python -m lightning_mllm`: the same program as the console script `lightning`."""

from lightning_mllm.cli.main import main

if __name__ == "__main__":
    main()
