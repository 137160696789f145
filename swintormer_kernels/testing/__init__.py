"""Cases and timing for tests and benches; nothing in the product imports it."""
