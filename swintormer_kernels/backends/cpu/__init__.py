"""The native extension: checks of what it takes, outputs and scratch allocated with torch, then one call into C++."""
