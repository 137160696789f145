"""The cpu backend: allocates outputs and scratch with torch and calls the native extension."""
