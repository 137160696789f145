"""The program `swintormer`: one file a command."""
