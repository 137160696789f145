"""`python -m swintormer`: the program where its script is not installed."""

from swintormer.cli.app import main

main()
